# SPDX-License-Identifier: Apache-2.0
"""The engine's picture of the cluster: pods, nodes and inventories, each followed by a reflector.

What pods hold is read from their grant annotation, and what local runs (`hami run`) hold on a node from its inventory,
nowhere else, so a restart rebuilds everything. An annotation on a
pod that is not bound, or that speaks of another pod or node, counts for nothing (anyone may write annotations). Data of
ours that cannot be read is counted and reported once per object, and leaves the rest alone.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant
from hami_framework.errors import FormatError
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.reflector import Metadata, Reflector
from hami_framework.model import Inventory, PodGrant
from hami_framework.placement.engine import Engine
from hami_framework.scheduler.events import EventWriter
from hami_framework.scheduler.metrics import Metrics

NEVER_PREEMPTED = sys.maxsize
"""The priority of local runs: no pod's deletion by kube-scheduler ends one."""

ENDED = frozenset({"Succeeded", "Failed"})
"""Pod phases in which containers will never run again (Kubernetes documentation, "Pod Lifecycle")."""

_FORGED = (
    f"annotation {GRANT_ANNOTATION} stood on the pod before it was bound; only the extender writes it, in the Binding: this one grants nothing. "
    "Remove it from the pod, or from the template that the pod is made from"
)

_log = logging.getLogger(__name__)


class _PodMeta(msgspec.Struct, rename="camel", gc=False):
    name: str
    namespace: str
    uid: str
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _PodSpec(msgspec.Struct, rename="camel", gc=False):
    node_name: str = ""
    priority: int | None = None


class _PodStatus(msgspec.Struct, rename="camel", gc=False):
    phase: str = ""
    start_time: str | None = None


class PodView(msgspec.Struct, gc=False):
    """The few fields of a pod that matter here; the other kilobytes are never built (40,000 pods decode in 0.1 s)."""

    metadata: _PodMeta
    spec: _PodSpec
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)

    @property
    def grant_text(self) -> str | None:
        return (self.metadata.annotations or {}).get(GRANT_ANNOTATION)


class Listener:
    """Who else wants to know what the watches show."""

    def inventory_read(self, inventory: Inventory) -> None:
        """A node's inventory is there, or has changed."""

    def pod_bound(self, pod: PodView) -> None:
        """The watch shows the pod on a node."""

    def pod_gone(self, namespace: str, name: str, uid: str) -> None:
        """The pod was deleted or has ended."""

    def freed(self, why: str) -> None:
        """What was held or out of order may be had now."""


class ClusterState:
    """Feeds the engine. `run` follows the cluster until cancelled; `synced` is set when all three lists are complete."""

    def __init__(self, engine: Engine, client: KubeClient, events: EventWriter, metrics: Metrics, listener: Listener, **reflector_options: Any) -> None:
        self._engine, self._events, self._metrics, self._listener = engine, events, metrics, listener
        self._nodes: set[str] = set()
        self._inventories: dict[str, Inventory] = {}
        self._held: dict[str, set[str]] = {}
        self._reported: dict[str, str] = {}
        self._forged: dict[str, str] = {}
        """Pods that had a grant before they were bound, by UID: somebody else wrote it, and it stays worthless on any node."""
        pods: Reflector[PodView] = Reflector(
            client, path("pods"), on_upsert=self._pod, on_delete=self._pod_deleted, decode=msgspec.json.Decoder(PodView).decode, **reflector_options
        )
        nodes: Reflector[Metadata] = Reflector(
            client, path("nodes"), on_upsert=self._node, on_delete=self._node_deleted, decode=_decode_metadata, **reflector_options
        )
        published: Reflector[dict[str, Any]] = Reflector(
            client,
            path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION),
            on_upsert=self._inventory,
            on_delete=self._inventory_deleted,
            **reflector_options,
        )
        self.reflectors: dict[str, Reflector[Any]] = {"nodes": nodes, "inventories": published, "pods": pods}
        self.synced = asyncio.Event()

    async def run(self, on_synced: Callable[[], None]) -> None:
        """Follow the cluster; `on_synced` is called once, after the first complete picture."""
        async with asyncio.TaskGroup() as group:
            for name, reflector in self.reflectors.items():
                group.create_task(reflector.run(), name=f"reflector {name}")
            for reflector in self.reflectors.values():
                await reflector.synced.wait()
            self.synced.set()
            on_synced()

    # -- pods ---------------------------------------------------------------------------------------------------

    def _pod(self, pod: PodView) -> None:
        meta = pod.metadata
        if pod.status.phase in ENDED:
            self._drop(meta.namespace, meta.name, meta.uid)
            return
        text = pod.grant_text
        if not pod.spec.node_name:
            if text is not None:
                self._forged[meta.uid] = text
                self._bad_grant(meta, text, FormatError(_FORGED))
            return
        self._listener.pod_bound(pod)
        if text is None:
            return
        try:
            if self._forged.get(meta.uid) == text:
                raise FormatError(_FORGED)
            grant = decode_grant(text)
            if (grant.owner.uid, grant.node) != (meta.uid, pod.spec.node_name):
                raise FormatError(
                    f"annotation {GRANT_ANNOTATION} is for pod uid {grant.owner.uid} on node {grant.node}, but stands on pod uid {meta.uid} "
                    f"on node {pod.spec.node_name}; copied annotations grant nothing: remove it"
                )
        except FormatError as error:
            self._bad_grant(meta, text, error)
            return
        self._engine.observe(grant, pod.spec.priority or 0)

    def _bad_grant(self, meta: _PodMeta, text: str, error: FormatError) -> None:
        self._report_bad("grant", f"pod {meta.namespace}/{meta.name}", f"{meta.uid} {text}", error)
        self._events.tell((meta.namespace, meta.name, meta.uid), "Warning", "BadGrant", str(error), same=("bad-grant", text))

    def _pod_deleted(self, meta: Metadata) -> None:
        self._drop(meta.namespace, meta.name, meta.uid)

    def _drop(self, namespace: str, name: str, uid: str) -> None:
        self._forged.pop(uid, None)
        self._reported.pop(f"pod {namespace}/{name}", None)
        held = self._engine.entry(uid) is not None
        self._engine.forget(uid)
        self._listener.pod_gone(namespace, name, uid)
        if held:
            self._listener.freed("a pod ended")

    # -- nodes and inventories ----------------------------------------------------------------------------------

    def _node(self, meta: Metadata) -> None:
        if meta.name not in self._nodes:
            self._nodes.add(meta.name)
            self._show(meta.name)

    def _node_deleted(self, meta: Metadata) -> None:
        self._nodes.discard(meta.name)
        self._engine.remove_node(meta.name)

    def _inventory(self, document: dict[str, Any]) -> None:
        name = document["metadata"]["name"]
        try:
            self._inventories[name] = inventory = inventories.from_object(document)
        except FormatError as error:
            # What was readable before stays: its grants are live. A new node without a readable inventory has none.
            self._report_bad("inventory", f"inventory {name}", str(error), error)
            return
        self._reported.pop(f"inventory {name}", None)
        self._listener.inventory_read(inventory)
        self._hold(name, inventory.held)
        self._show(name)

    def _inventory_deleted(self, meta: Metadata) -> None:
        self._inventories.pop(meta.name, None)
        self._hold(meta.name, ())
        self._engine.remove_node(meta.name)

    def _hold(self, node: str, grants: Iterable[PodGrant]) -> None:
        """What local runs hold there counts like what pods hold. A node speaks for itself alone, and never in a pod's name."""
        local = {f"{grant.owner.uid}@{node}": grant for grant in grants if grant.node == node and grant.owner.kind == "local"}
        for uid in self._held.pop(node, set()) - local.keys():
            self._engine.forget(uid)
        for uid, grant in local.items():
            self._engine.observe(msgspec.structs.replace(grant, owner=msgspec.structs.replace(grant.owner, uid=uid)), NEVER_PREEMPTED)
        if local:
            self._held[node] = set(local)

    def _show(self, name: str) -> None:
        """Devices count while both the node and its inventory are there; either may come first."""
        inventory = self._inventories.get(name)
        if inventory is not None and name in self._nodes:
            self._engine.set_inventory(inventory)
            self._listener.freed(f"the inventory of {name} changed")

    @property
    def inventory_of(self) -> dict[str, Inventory]:
        """Readable inventories of nodes that are there, by node."""
        return {name: inventory for name, inventory in self._inventories.items() if name in self._nodes}

    def _report_bad(self, kind: str, what: str, content: str, error: FormatError) -> None:
        """Count it; log it once for each object and content, not once per update of its status."""
        if self._reported.get(what) == content:
            return
        self._reported[what] = content
        self._metrics.bad_objects.labels(kind).inc()
        _log.error("%s: %s", what, error)


class _Named(msgspec.Struct):
    metadata: Metadata


_named_decoder = msgspec.json.Decoder(_Named)


def _decode_metadata(data: bytes) -> Metadata:
    return _named_decoder.decode(data).metadata
