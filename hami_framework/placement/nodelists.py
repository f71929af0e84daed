# SPDX-License-Identifier: Apache-2.0
"""Lists of node names, and their columns. kube-scheduler sends thousands of names with every pod, mostly the same ones,
starting anywhere in its ring of nodes: comparing a list with the last one, turned where need be, is far cheaper than
looking every name up, and so is comparing which of them passed with those that passed last time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hami_framework.placement.fleet import Bools, Fleet
from hami_framework.placement.policies import Floats
from hami_framework.placement.standing import Standing

_SPLITS_KEPT = 64
"""Splits remembered: one for each of the shapes asked about lately (some 300 KB each at 5,000 nodes)."""


class NodeList(NamedTuple):
    """Names of nodes and their columns, -1 for those not known."""

    names: list[str]
    array: NDArray[np.object_]
    """The same names, to pick from."""
    columns: NDArray[np.intp]
    width: int
    """Width of the fleet when the names were looked up."""
    known: bool
    """Whether every node is known."""

    def picked(self, chosen: Bools) -> NodeList:
        """Those marked, in the same order."""
        array, columns = self.array[chosen], self.columns.compress(chosen)
        return NodeList(array.tolist(), array, columns, self.width, self.known or bool((columns >= 0).all()))

    def turned(self, start: int) -> NodeList:
        """The same ring, from another start."""
        array = np.concatenate((self.array[start:], self.array[:start]))
        columns = np.concatenate((self.columns[start:], self.columns[:start]))
        return NodeList(self.names[start:] + self.names[:start], array, columns, self.width, self.known)

    def feasible(self, standing: Standing) -> Bools:
        """Which of them are feasible; an unknown one never is."""
        found: Bools = standing.feasible[self.columns] if self.known else np.append(standing.feasible, False)[self.columns]
        return found

    def score(self, standing: Standing) -> Floats:
        """Their scores; 0 for an unknown one."""
        found: Floats = standing.score[self.columns] if self.known else np.append(standing.score, 0.0)[self.columns]
        return found


class Split(NamedTuple):
    """A list, and what of it was let through."""

    asked: NodeList
    good: Bools
    passed: NodeList
    refused: NodeList


class NodeLists:
    """The last list asked about, the last one let through, and how the lists of late were split."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        nothing = NodeList([], np.empty(0, dtype=object), np.empty(0, dtype=np.intp), -1, known=True)
        self._asked = nothing
        self._passed = nothing
        self._splits: OrderedDict[Standing, Split] = OrderedDict()

    def find(self, names: Sequence[str]) -> NodeList:
        """These names with their columns."""
        for seen in (self._asked, self._passed):
            if seen.width == self._fleet.width and seen.names == names:
                return seen
        self._asked = self._turned(names) or self._looked_up(names)
        return self._asked

    def split(self, standing: Standing, asked: NodeList) -> Split:
        """Those that pass and those that do not; prioritize asks about the former next."""
        good = asked.feasible(standing)
        split = self._splits.get(standing)
        if split is None or split.asked is not asked or not np.array_equal(split.good, good):
            passed = asked if good.all() else asked.picked(good)
            split = self._splits[standing] = Split(asked, good, passed, asked.picked(~good))
        self._splits.move_to_end(standing)
        if len(self._splits) > _SPLITS_KEPT:
            self._splits.popitem(last=False)
        self._passed = split.passed
        return split

    def _turned(self, names: Sequence[str]) -> NodeList | None:
        """The last list from another start, if these names are that."""
        last = self._asked
        if not names or last.width != self._fleet.width or len(last.names) != len(names) or names[0] not in last.names:
            return None
        start = last.names.index(names[0])
        rest = len(names) - start
        return last.turned(start) if last.names[start:] == names[:rest] and last.names[:start] == names[rest:] else None

    def _looked_up(self, names: Sequence[str]) -> NodeList:
        find = self._fleet.columns.get
        columns = np.array([find(name, -1) for name in names], dtype=np.intp)
        return NodeList(list(names), np.array(names, dtype=object), columns, self._fleet.width, bool((columns >= 0).all()))
