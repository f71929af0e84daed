# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's side of the extender protocol: CapitalCase keys, node names only (`nodeCacheCapable`).

Source: k8s.io/kube-scheduler, `extender/v1/types.go`, and pkg/scheduler/extender.go of Kubernetes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hami_framework.errors import Unavailable
from hami_framework.sandbox.jsonhttp import JsonClient

Json = dict[str, Any]
Victims = dict[str, list[str]]
"""Node → UIDs of the pods that would have to go."""


@dataclass(frozen=True)
class FilterResult:
    """Nodes that passed, and why the others did not. A node in neither counts as unresolvable, as in kube-scheduler."""

    passed: tuple[str, ...]
    failed: Mapping[str, str]
    unresolvable: Mapping[str, str]


class Extender:
    """One configured extender. Every method raises `Unavailable` when it cannot be reached or answers an error."""

    def __init__(self, url: str, managed: frozenset[str], *, weight: int = 1, timeout_s: float = 5.0) -> None:
        """`managed`: resource names whose pods it is asked about; empty means every pod."""
        self.managed = managed
        self.weight = weight
        self._client = JsonClient(url, timeout_s)

    def interested(self, pod: Json) -> bool:
        """True when a container or init container names a managed resource, in requests or limits."""
        if not self.managed:
            return True
        containers = [*(pod["spec"].get("containers") or ()), *(pod["spec"].get("initContainers") or ())]
        sections = [(container.get("resources") or {}).get(section) or {} for container in containers for section in ("requests", "limits")]
        return any(name in self.managed for section in sections for name in section)

    async def filter(self, pod: Json, nodes: Sequence[str]) -> FilterResult:
        answer = await self._client.post("/filter", {"Pod": pod, "Nodes": None, "NodeNames": list(nodes)})
        if answer.get("Error"):
            raise Unavailable(f"extender filter: {answer['Error']}")
        passed = tuple(answer.get("NodeNames") or ())
        strangers = sorted(set(passed) - set(nodes))
        if strangers:
            raise Unavailable(f"extender filter: answered nodes it was not asked about: {', '.join(strangers)}")
        failed, unresolvable = answer.get("FailedNodes") or {}, dict(answer.get("FailedAndUnresolvableNodes") or {})
        for node in set(nodes) - set(passed) - set(failed) - set(unresolvable):
            unresolvable[node] = "node(s) dropped by the extender without a reason"
        return FilterResult(passed, failed, unresolvable)

    async def prioritize(self, pod: Json, nodes: Sequence[str]) -> dict[str, int]:
        """Node → score × weight × 10: extender scores of 0 to 10 are brought to the in-tree range of 0 to 100."""
        answer = await self._client.post("/prioritize", {"Pod": pod, "Nodes": None, "NodeNames": list(nodes)})
        return {item["Host"]: int(item["Score"]) * self.weight * 10 for item in answer or ()}

    async def bind(self, pod: Json, node: str) -> None:
        metadata = pod["metadata"]
        body = {"PodName": metadata["name"], "PodNamespace": metadata["namespace"], "PodUID": metadata["uid"], "Node": node}
        answer = await self._client.post("/bind", body)
        if answer.get("Error"):
            raise Unavailable(f"extender bind: {answer['Error']}")

    async def preempt(self, pod: Json, victims: Victims) -> Victims:
        """Which of the candidates remain, and with which victims. Raises when it names a victim it was not offered a node for."""
        offered = {node: {"Pods": [{"UID": uid} for uid in uids], "NumPDBViolations": 0} for node, uids in victims.items()}
        answer = await self._client.post("/preempt", {"Pod": pod, "NodeNameToVictims": None, "NodeNameToMetaVictims": offered})
        chosen = answer.get("NodeNameToMetaVictims") or {}
        strangers = sorted(set(chosen) - set(victims))
        if strangers:
            raise Unavailable(f"extender preempt: answered nodes it was not asked about: {', '.join(strangers)}")
        return {node: [item["UID"] for item in entry.get("Pods") or ()] for node, entry in chosen.items()}

    async def close(self) -> None:
        await self._client.close()
