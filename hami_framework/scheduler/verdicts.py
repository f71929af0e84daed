# SPDX-License-Identifier: Apache-2.0
"""The last verdict on each pod, kept so that `hami explain` and events can say why in words.

Reasons are structured (`model.Rejection`) and made on demand: a filter call pays for codes only. They are therefore made
from the state at the time of asking, which is what someone who asks "why is it pending" wants to know.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hami_framework.codec.words import MEANING, sentence, summary
from hami_framework.model import Reason, Rejection, to_builtins

NAMES_KEPT = 500_000
"""Node names remembered over all verdicts, some 50 MB at most: the last 100 pods of 5,000 nodes, or 5,000 pods of 100."""

EXAMPLES_PER_CODE = 20
"""Nodes among which the nearest miss is looked for; looking at all would cost more than an event is worth."""


@dataclass(frozen=True)
class Record:
    """One answer to one filter call, or why the pod cannot be read (`invalid`)."""

    uid: str
    namespace: str
    name: str
    asked: int
    feasible: int
    refused: Mapping[Reason, Sequence[str]] = field(default_factory=dict)
    """Code → the nodes that it stands for."""
    rejections: Mapping[str, tuple[Rejection, ...]] = field(default_factory=dict)
    invalid: tuple[Rejection, ...] = ()
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def state(self) -> str:
        """`invalid`: no node will ever do. `feasible`: at least one node would. `refused`: none does now."""
        return "invalid" if self.invalid else "feasible" if self.feasible else "refused"

    def words(self) -> str:
        """One line for an event: each code with its count, and the nearest examples."""
        if self.invalid:
            return f"cannot be scheduled as it is written: {summary(self.invalid)}"
        parts = [self._group(code, nodes) for code, nodes in sorted(self.refused.items(), key=lambda group: -len(group[1]))]
        counts = f"{self.feasible} of {self.asked} nodes can take it"
        return f"{counts}: {'; '.join(parts)}" if parts else counts

    def _group(self, code: Reason, nodes: Sequence[str]) -> str:
        examples = [
            (_shortfall(rejection), node, rejection) for node in nodes[:EXAMPLES_PER_CODE] for rejection in self._reasons(node) if rejection.reason is code
        ]
        _, node, nearest = min(examples, default=(0.0, nodes[0], None), key=lambda example: example[0])
        where = node if len(nodes) == 1 else f"{len(nodes)} nodes, nearest {node}"
        return f"[{code.value}] {where}: {sentence(nearest) if nearest else MEANING[code]}"

    def explanation(self) -> dict[str, Any]:
        """The JSON of /explain."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "at": self.at.isoformat(timespec="milliseconds"),
            "state": self.state,
            "asked": self.asked,
            "feasible": self.feasible,
            "summary": self.words(),
            "codes": {code.value: len(nodes) for code, nodes in self.refused.items()},
            "invalid": _told(self.invalid),
            "nodes": {
                node: {"code": code.value, "final": code.final, "rejections": _told(self._reasons(node))}
                for code, nodes in self.refused.items()
                for node in nodes
            },
        }

    def _reasons(self, node: str) -> tuple[Rejection, ...]:
        """Empty when the node would be feasible by now."""
        return self.rejections.get(node, ())


def _shortfall(rejection: Rejection) -> float:
    """How far off it was; what cannot be counted is farthest."""
    wanted, free = rejection.wanted, rejection.free
    return wanted - free if isinstance(wanted, int) and isinstance(free, int) else float("inf")


def _told(rejections: Sequence[Rejection]) -> list[Any]:
    """Each rejection as JSON, with its sentence beside it."""
    return [{**_fields(rejection), "sentence": sentence(rejection)} for rejection in rejections]


def _fields(rejection: Rejection) -> dict[str, Any]:
    fields = to_builtins(rejection)
    assert isinstance(fields, dict)
    return fields


class Verdicts:
    """The latest record of each pod, by namespace and name; the oldest make room."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[str, str], Record] = OrderedDict()
        self._names = 0

    def add(self, record: Record) -> None:
        """Keep it in place of the pod's former one; the latest is always kept."""
        self.forget(record.namespace, record.name)
        self._records[record.namespace, record.name] = record
        self._names += record.asked
        while self._names > NAMES_KEPT and len(self._records) > 1:
            self._names -= self._records.popitem(last=False)[1].asked

    def get(self, namespace: str, name: str) -> Record | None:
        """The last verdict on the pod of this name, or None when it was not asked about (or long ago)."""
        return self._records.get((namespace, name))

    def forget(self, namespace: str, name: str) -> None:
        """The pod is gone."""
        record = self._records.pop((namespace, name), None)
        self._names -= record.asked if record else 0
