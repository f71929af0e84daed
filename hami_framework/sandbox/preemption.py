# SPDX-License-Identifier: Apache-2.0
"""DefaultPreemption, as far as in-tree filters go: which pods of lower priority would have to leave which node.

kube-scheduler does not run extender filters in this dry run, and a node on which no in-tree filter fails is no
candidate; both are so here (pkg/scheduler/framework/preemption, pkg/scheduler/framework/plugins/defaultpreemption).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hami_framework.sandbox.extender import Victims
from hami_framework.sandbox.fit import Amounts, NodeState, check, priority

Json = dict[str, Any]

NO_VICTIMS = "No preemption victims found for incoming pod"
NOT_HELPFUL = "Preemption is not helpful for scheduling"


def candidates(pod: Json, wanted: Amounts, nodes: Iterable[NodeState], ignored: frozenset[str]) -> Victims:
    """Node name → UIDs of the least set of victims, nodes without any left out."""
    found = {state.node["metadata"]["name"]: _victims(pod, wanted, state, ignored) for state in nodes}
    return {node: victims for node, victims in found.items() if victims}


def _victims(pod: Json, wanted: Amounts, state: NodeState, ignored: frozenset[str]) -> list[str]:
    """All lower pods go, then as many as possible come back, the most important first."""
    lower = [uid for uid, other in state.pods.items() if priority(other) < priority(pod)]
    if not lower or check(pod, wanted, state.without(lower), ignored) is not None:
        return []
    lower.sort(key=lambda uid: (-priority(state.pods[uid]), state.pods[uid]["metadata"]["creationTimestamp"]))
    gone = list(lower)
    for uid in lower:
        gone.remove(uid)
        if check(pod, wanted, state.without(gone), ignored) is not None:
            gone.append(uid)
    return gone


def best(victims: Victims, nodes: Mapping[str, NodeState]) -> str:
    """The node whose most important victim matters least, then the least sum of priorities, then the fewest victims."""

    def cost(node: str) -> tuple[int, int, int, str]:
        priorities = [priority(nodes[node].pods[uid]) for uid in victims[node]]
        return max(priorities), sum(priorities), len(priorities), node

    return min(victims, key=cost)


def message(total: int, considered: int) -> str:
    """What a pending pod's event says about preemption when it could not help."""
    parts = [f"{considered} {NO_VICTIMS}"] if considered else []
    parts += [f"{total - considered} {NOT_HELPFUL}"] if total > considered else []
    return f"preemption: 0/{total} nodes are available: {', '.join(parts)}."
