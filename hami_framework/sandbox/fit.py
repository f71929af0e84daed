# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's in-tree filters that matter here: resources, pod count, selectors, taints, cordons.

Not simulated: pod affinity, topology spread, volumes, ports. Reasons are kube-scheduler's own words
(pkg/scheduler/framework/plugins/*), for they end up in the event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from hami_framework.sandbox import quantities
from hami_framework.sandbox.selectors import matches_expression

Json = dict[str, Any]
Amounts = dict[str, Fraction]

SELECTOR = "node(s) didn't match Pod's node affinity/selector"
CORDONED = "node(s) were unschedulable"
TOO_MANY_PODS = "Too many pods"


@dataclass(frozen=True)
class Unfit:
    """Why a node does not do. `resolvable`: it could, if other pods went."""

    reasons: tuple[str, ...]
    resolvable: bool


def requests(pod: Json) -> Amounts:
    """What the scheduler counts: the larger of any start-up phase, sidecars running through (KEP-753)."""
    spec = pod["spec"]
    sidecars: Amounts = {}
    largest: Amounts = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            _add(sidecars, _amounts(container))
            _raise(largest, sidecars)
        else:
            _raise(largest, _sum(sidecars, _amounts(container)))
    for container in spec.get("containers") or ():
        _add(sidecars, _amounts(container))
    _raise(largest, sidecars)
    return largest


@dataclass
class NodeState:
    """A node and the pods that count on it: bound, assumed, and nominated after a preemption."""

    node: Json
    pods: dict[str, Json] = field(default_factory=dict)
    nominated: dict[str, Json] = field(default_factory=dict)
    used: Amounts = field(default_factory=dict)
    allocatable: Amounts = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.update(self.node)

    def update(self, node: Json) -> None:
        self.node = node
        self.allocatable = {name: quantities.amount(raw) for name, raw in (node.get("status", {}).get("allocatable") or {}).items()}

    def add(self, pod: Json) -> None:
        if pod["metadata"]["uid"] not in self.pods:
            self.pods[pod["metadata"]["uid"]] = pod
            _add(self.used, requests(pod))

    def remove(self, uid: str) -> None:
        pod = self.pods.pop(uid, None)
        if pod is not None:
            _add(self.used, {name: -amount for name, amount in requests(pod).items()})

    def without(self, uids: Iterable[str]) -> NodeState:
        """The node as it would be with these pods gone."""
        gone = set(uids)
        state = NodeState(self.node, nominated=dict(self.nominated))
        for uid, pod in self.pods.items():
            if uid not in gone:
                state.add(pod)
        return state


def check(pod: Json, wanted: Amounts, state: NodeState, ignored: frozenset[str]) -> Unfit | None:
    """None when the pod fits. `ignored`: resources with `ignoredByScheduler`."""
    node = state.node
    if node.get("spec", {}).get("unschedulable") and not _tolerates(pod, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}):
        return Unfit((CORDONED,), resolvable=False)
    for taint in node.get("spec", {}).get("taints") or ():
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not _tolerates(pod, taint):
            return Unfit((f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}",), resolvable=False)
    if not _selected(pod, node):
        return Unfit((SELECTOR,), resolvable=False)
    return _resources_fit(pod, wanted, state, ignored)


def _resources_fit(pod: Json, wanted: Amounts, state: NodeState, ignored: frozenset[str]) -> Unfit | None:
    rivals = [other for uid, other in state.nominated.items() if uid != pod["metadata"]["uid"] and uid not in state.pods and priority(other) >= priority(pod)]
    reserved: Amounts = {}
    for other in rivals:
        _add(reserved, requests(other))
    reasons, hopeless = [], False
    if len(state.pods) + len(rivals) + 1 > state.allocatable.get("pods", Fraction(110)):
        reasons.append(TOO_MANY_PODS)
    for name, amount in wanted.items():
        total = state.allocatable.get(name, Fraction(0))
        if name not in ignored and amount > 0 and amount > total - state.used.get(name, 0) - reserved.get(name, 0):
            reasons.append(f"Insufficient {name}")
            hopeless = hopeless or amount > total
    return Unfit(tuple(reasons), resolvable=not hopeless) if reasons else None


def priority(pod: Json) -> int:
    return int(pod["spec"].get("priority") or 0)


def _selected(pod: Json, node: Json) -> bool:
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return False
    affinity = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    return affinity is None or any(_term_matches(term, node, labels) for term in affinity.get("nodeSelectorTerms") or ())


def _term_matches(term: Json, node: Json, labels: Mapping[str, str]) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    names = {"metadata.name": node["metadata"]["name"]}
    return (
        bool(expressions or fields)
        and all(matches_expression(item, labels) for item in expressions)
        and all(matches_expression(item, names) for item in fields)
    )


def _tolerates(pod: Json, taint: Json) -> bool:
    return any(_tolerated(toleration, taint) for toleration in pod["spec"].get("tolerations") or ())


def _tolerated(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") not in (None, "", taint["key"]):
        return False
    return toleration.get("operator", "Equal") == "Exists" or (bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", ""))


def _amounts(container: Json) -> Amounts:
    given = (container.get("resources") or {}).get("requests") or {}
    return {name: quantities.amount(raw) for name, raw in given.items()}


def _sum(first: Amounts, second: Amounts) -> Amounts:
    total = dict(first)
    _add(total, second)
    return total


def _add(total: Amounts, more: Amounts) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, Fraction(0)) + amount


def _raise(largest: Amounts, other: Amounts) -> None:
    for name, amount in other.items():
        largest[name] = max(largest.get(name, Fraction(0)), amount)
