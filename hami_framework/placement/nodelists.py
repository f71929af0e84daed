# SPDX-License-Identifier: Apache-2.0
"""Lists of node names, and their columns. kube-scheduler sends thousands of names with every pod, mostly the same ones:
comparing a list with the last one is far cheaper than looking every name up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hami_framework.placement.fleet import Fleet


class NodeList(NamedTuple):
    """Names of nodes and their columns, -1 for those not known."""

    names: list[str]
    array: NDArray[np.object_]
    """The same names, to pick from."""
    columns: NDArray[np.intp]
    width: int
    """Width of the fleet when the names were looked up."""


class NodeLists:
    """The last list asked about and the last one let through: the next question is likely about one of them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        nothing = NodeList([], np.empty(0, dtype=object), np.empty(0, dtype=np.intp), -1)
        self._asked = nothing
        self._passed = nothing

    def find(self, names: Sequence[str]) -> NodeList:
        """These names with their columns."""
        for seen in (self._asked, self._passed):
            if seen.width == self._fleet.width and seen.names == names:
                return seen
        find = self._fleet.columns.get
        columns = np.array([find(name, -1) for name in names], dtype=np.intp)
        self._asked = NodeList(list(names), np.array(names, dtype=object), columns, self._fleet.width)
        return self._asked

    def let_through(self, nodes: NodeList) -> None:
        """Remember what filter has answered: prioritize asks about it next."""
        self._passed = nodes
