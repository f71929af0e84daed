# SPDX-License-Identifier: Apache-2.0
"""The engine's answer to one filter call. Codes are cheap; the full reasons of a node are made when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hami_framework.model import Reason, Rejection

V = TypeVar("V")


class Lazy(Mapping[str, V]):
    """Node → value, made on first access."""

    def __init__(self, nodes: Sequence[str], make: Callable[[str], V]) -> None:
        self._nodes = nodes
        self._make = make
        self._made: dict[str, V] = {}
        self._index: frozenset[str] | None = None

    def __getitem__(self, node: str) -> V:
        if node not in self._made:
            if node not in self:
                raise KeyError(node)
            self._made[node] = self._make(node)
        return self._made[node]

    def __contains__(self, node: object) -> bool:
        if self._index is None:
            self._index = frozenset(self._nodes)
        return node in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a pod may go."""

    feasible: list[str]
    """All nodes asked about on which the pod can be bound if nothing changes, in the order asked."""
    refused: list[str]
    """The others."""
    best: str | None
    """The first-ranked feasible node, where the pod now has a tentative entry; None when there is none."""
    scores: Mapping[str, float]
    """Feasible node → score of the node policy, higher is better."""
    rejections: Mapping[str, tuple[Rejection, ...]]
    """Refused node → reasons, the code of `code` first; made when asked for, from the state at that time."""
    codes: Callable[[str], Reason] = field(repr=False)
    groups: Callable[[], dict[Reason, list[str]]] = field(repr=False, default=dict)

    def code(self, node: str) -> Reason:
        """The one reason that stands for a refused node; raises `KeyError` for a node that was not refused."""
        return self.codes(node)

    def by_reason(self) -> dict[Reason, list[str]]:
        """All refused nodes by their code: the quick way to the codes of thousands."""
        return self.groups()
