# SPDX-License-Identifier: Apache-2.0
"""Pods that hold devices, as someone who may evict them sees them: their labels, their disruption budgets, whether they are leaving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec


class Requirement(msgspec.Struct, gc=False):
    """One line of `matchExpressions` (meta/v1 LabelSelectorRequirement)."""

    key: str
    operator: str
    values: list[str] | None = None

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it; an operator that is not known is met by nothing."""
        value, values = labels.get(self.key), self.values or ()
        match self.operator:
            case "In":
                return value in values
            case "NotIn":
                return value not in values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
        return False


class LabelSelector(msgspec.Struct, rename="camel", gc=False):
    """meta/v1 LabelSelector: an empty one selects everything."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[Requirement] | None = None

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether all of it is met."""
        own = self.match_labels or {}
        return all(labels.get(key) == value for key, value in own.items()) and all(line.holds(labels) for line in self.match_expressions or ())


class _Meta(msgspec.Struct, gc=False):
    name: str
    namespace: str = ""


class _Spec(msgspec.Struct, gc=False):
    selector: LabelSelector | None = None


class _Status(msgspec.Struct, rename="camel", gc=False):
    disruptions_allowed: int = 0


class Budget(msgspec.Struct, gc=False):
    """What matters of a policy/v1 PodDisruptionBudget. One without a selector selects nothing."""

    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class Resident(msgspec.Struct, gc=False):
    """A bound pod that holds devices."""

    namespace: str
    name: str
    node: str
    labels: dict[str, str]
    started: str = ""
    """`status.startTime`, as written (RFC 3339, so that text order is time order)."""
    leaving: bool = False
    """Its deletion has begun."""


class Residents:
    """All of them by uid, and the budgets."""

    def __init__(self) -> None:
        self.pods: dict[str, Resident] = {}
        self._on: dict[str, set[str]] = {}
        self._budgets: dict[tuple[str, str], Budget] = {}

    def budget(self, budget: Budget) -> None:
        """A budget is there, or has changed."""
        self._budgets[budget.metadata.namespace, budget.metadata.name] = budget

    def budget_gone(self, namespace: str, name: str) -> None:
        self._budgets.pop((namespace, name), None)

    def put(self, uid: str, pod: Resident) -> None:
        """The pod is bound and holds devices, or has changed."""
        self.pods[uid] = pod
        self._on.setdefault(pod.node, set()).add(uid)

    def drop(self, uid: str) -> None:
        """The pod is gone or has ended."""
        pod = self.pods.pop(uid, None)
        if pod is not None:
            self._on[pod.node].discard(uid)

    def leaving(self, node: str) -> set[str]:
        """Those on this node that are going anyway."""
        return {uid for uid in self._on.get(node, ()) if self.pods[uid].leaving}

    def protected(self, uids: Iterable[str]) -> set[str]:
        """Which of these, evicted one after the other, would break a budget (as kube-scheduler counts: each eviction takes one from each budget)."""
        left = {key: budget.status.disruptions_allowed for key, budget in self._budgets.items()}
        found = set()
        for uid in uids:
            pod = self.pods.get(uid)
            if pod is None:
                continue
            keys = [
                key
                for key, budget in self._budgets.items()
                if key[0] == pod.namespace and budget.spec.selector is not None and budget.spec.selector.selects(pod.labels)
            ]
            for key in keys:
                left[key] -= 1
            if any(left[key] < 0 for key in keys):
                found.add(uid)
        return found

    def latest_start(self, uids: Sequence[str]) -> str:
        """The earliest start of the most important ones, for comparing nodes: the later the better."""
        return min((pod.started for uid in uids if (pod := self.pods.get(uid)) is not None), default="")
