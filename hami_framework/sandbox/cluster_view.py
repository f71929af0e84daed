# SPDX-License-Identifier: Apache-2.0
"""The scheduler's cache: every node with the pods that count on it, and what changed that may let a waiting pod fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hami_framework.sandbox.fit import NodeState
from hami_framework.sandbox.resources import NODES, PODS, Kind
from hami_framework.sandbox.storage import Change, Store

Json = dict[str, Any]

AGAIN_SECONDS = (0.5, 2.0)
"""An extender hears of such a change by a watch of its own: asked at the same instant, it may answer from before."""


def terminal(pod: Json) -> bool:
    """True for pods that hold nothing any more."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


class ClusterView:
    """Follows the store change by change. `on_room`: something changed that may help a waiting pod."""

    def __init__(self, store: Store, on_pod: Callable[[Change], None], on_room: Callable[[], None], also: frozenset[tuple[str, str]]) -> None:
        """`also`: (group, plural) of further kinds whose changes may help, e.g. inventories."""
        self.nodes: dict[str, NodeState] = {}
        self._places: dict[str, str] = {}
        """UID → node on which the pod counts."""
        self._on_pod, self._on_room, self._also = on_pod, on_room, also
        for node in store.list(NODES):
            self._node_changed(node)
        for pod in store.list(PODS):
            self._place(pod)
        self._store = store
        store.on_change.append(self._changed)

    def close(self) -> None:
        self._store.on_change.remove(self._changed)

    def assume(self, pod: Json, node: str) -> None:
        """Count a pod on its node before the binding is seen."""
        self._settle(pod["metadata"]["uid"], pod, node)

    def forget(self, uid: str) -> None:
        """The binding failed."""
        self._settle(uid, None, "")

    def nominate(self, pod: Json, node: str) -> None:
        """Keep room for a pod whose victims are leaving."""
        self.drop_nomination(pod["metadata"]["uid"])
        if node in self.nodes:
            self.nodes[node].nominated[pod["metadata"]["uid"]] = pod

    def drop_nomination(self, uid: str) -> None:
        for state in self.nodes.values():
            state.nominated.pop(uid, None)

    def _changed(self, change: Change) -> None:
        if _is(change, NODES):
            if change.type == "DELETED":
                self.nodes.pop(change.after["metadata"]["name"], None)
            elif self._node_changed(change.after):
                self._on_room()
        elif _is(change, PODS):
            self._pod_changed(change)
        elif change.kind.storage in self._also:
            self._on_room()
            for seconds in AGAIN_SECONDS:
                asyncio.get_running_loop().call_later(seconds, self._on_room)

    def _pod_changed(self, change: Change) -> None:
        pod, uid = change.after, change.after["metadata"]["uid"]
        held = uid in self._places
        if change.type == "DELETED" or terminal(pod):
            self.drop_nomination(uid)
            self._settle(uid, None, "")
            if held or pod["spec"].get("nodeName"):
                self._on_room()
        else:
            self._place(pod)
        self._on_pod(change)

    def _place(self, pod: Json) -> None:
        node = pod["spec"].get("nodeName")
        if node and not terminal(pod):
            self.drop_nomination(pod["metadata"]["uid"])
            self._settle(pod["metadata"]["uid"], pod, node)

    def _settle(self, uid: str, pod: Json | None, node: str) -> None:
        old = self._places.pop(uid, None)
        if old in self.nodes:
            self.nodes[old].remove(uid)
        if pod is not None:
            self._places[uid] = node
            if node in self.nodes:
                self.nodes[node].add(pod)

    def _node_changed(self, node: Json) -> bool:
        """True when it matters for scheduling; heartbeats do not."""
        name = node["metadata"]["name"]
        state = self.nodes.get(name)
        if state is None:
            self.nodes[name] = state = NodeState(node)
            return True
        before = (state.allocatable, state.node.get("spec"), state.node["metadata"].get("labels"), state.node["metadata"].get("annotations"))
        state.update(node)
        return before != (state.allocatable, node.get("spec"), node["metadata"].get("labels"), node["metadata"].get("annotations"))


def _is(change: Change, kind: Kind) -> bool:
    return change.kind.storage == kind.storage
