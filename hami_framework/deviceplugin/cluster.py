# SPDX-License-Identifier: Apache-2.0
"""The API server as the node agent uses it: its own pods (watched), its own inventory (written), events.

Credentials are resolved after the agent has registered with kubelet: kubelet must not wait for a slow or absent API server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from hami_framework.codec import inventories
from hami_framework.codec.annotations import ENFORCEMENT
from hami_framework.codec.grants import GRANT_ANNOTATION
from hami_framework.deviceplugin.grants import PodBook, describe
from hami_framework.deviceplugin.ports import Json
from hami_framework.errors import Unavailable
from hami_framework.kube import client as kube
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import load
from hami_framework.kube.errors import KubeError
from hami_framework.kube.reflector import Reflector
from hami_framework.model import Rejection

log = logging.getLogger(__name__)

LONGEST_MESSAGE = 1024
"""The API server refuses longer ones (events.k8s.io validation)."""
THREADS = 2
"""Concurrent calls: one look-up and one write; the watch has a thread of its own."""


def connect(kubeconfig: str | None) -> KubeClient:
    """A client for the API server of this file, or of the pod's service account. Raises ConfigError."""
    return KubeClient(load(kubeconfig), threads=THREADS, user_agent="hami-agent")


class KubeCluster:
    """`ports.Cluster` over a real API server. `connect` gives the client; it is called once, in a thread."""

    def __init__(self, connect: Callable[[], KubeClient], *, lease_namespace: str = "hami-system") -> None:
        self._connect = connect
        self._lease_namespace = lease_namespace
        self._client: asyncio.Future[KubeClient] | None = None

    async def watch(self, node: str, pods: PodBook) -> None:
        """Keep `pods` up to date for ever. Raises ConfigError when the credentials are unusable."""
        reflector: Reflector[Json] = Reflector(
            await self._ready(),
            kube.path("pods"),
            on_upsert=pods.upsert,
            on_delete=lambda metadata: pods.remove(metadata.uid),
            decode=decode_pod,
            field_selector=f"spec.nodeName={node}",
        )
        marking = asyncio.create_task(_mark_synced(reflector, pods))
        try:
            await reflector.run()
        finally:
            marking.cancel()

    async def pod(self, namespace: str, name: str) -> Json | None:
        """The pod of this name now, None when there is none. Raises Unavailable."""
        return await self._get(kube.path("pods", namespace=namespace, name=name))

    async def node(self, name: str) -> Json | None:
        """The node's own object now, None when there is none. Raises Unavailable."""
        return await self._get(kube.path("nodes", name=name))

    async def inventory(self, node: str) -> Json | None:
        """The node's inventory object, None when there is none. Raises Unavailable."""
        return await self._get(_inventory_path(node))

    async def create_inventory(self, body: Json) -> None:
        """POST the inventory. Raises KubeError."""
        client = await self._ready()
        await client.call(client.create, _inventory_path(None), dict(body))

    async def replace_inventory(self, node: str, body: Json) -> None:
        """PUT the inventory; the resourceVersion in it must be current. Raises KubeError."""
        client = await self._ready()
        await client.call(client.replace, _inventory_path(node), dict(body))

    async def write_inventory_status(self, node: str, status: Json) -> None:
        """PATCH the status of the node's inventory; nobody else writes there, so no version is named. Raises KubeError."""
        client = await self._ready()
        await client.call(client.patch, f"{_inventory_path(node)}/status", {"status": dict(status)})

    async def lease(self, name: str) -> Json | None:
        """The agents' Lease of this name, None when there is none. Raises Unavailable."""
        return await self._get(kube.path("leases", group="coordination.k8s.io", namespace=self._lease_namespace, name=name))

    async def write_lease(self, body: Json) -> Json:
        """Create the Lease, or replace the version that `body` names. Raises KubeError."""
        client, known = await self._ready(), body["metadata"].get("resourceVersion")
        url = kube.path("leases", group="coordination.k8s.io", namespace=self._lease_namespace, name=body["metadata"]["name"] if known else None)
        return await client.call(client.replace if known else client.create, url, dict(body))

    async def report(self, pod: Json, rejection: Rejection) -> None:
        """An event on the pod. A failure to write it is only logged: the refusal itself stands."""
        await self.warn(pod, "GrantRefused", describe(rejection))

    async def evict(self, pod: Json) -> None:
        """Ask for the pod's eviction; this very pod's, not that of one that has its name by now. Raises KubeError."""
        client = await self._ready()
        metadata = pod["metadata"]
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": metadata["name"], "namespace": metadata.get("namespace", "default")},
            "deleteOptions": {"preconditions": {"uid": metadata["uid"]}},
        }
        place = kube.path("pods", namespace=metadata.get("namespace", "default"), name=metadata["name"], subresource="eviction")
        await client.call(client.create, place, body)

    async def warn(self, pod: Json, reason: str, message: str, *, name: str = "") -> None:
        """A warning event on the pod. A failure to write it is only logged; an event of this `name` that is there already is none."""
        client = await self._ready()
        try:
            await client.call(client.create, kube.path("events", namespace=pod["metadata"].get("namespace", "default")), _event(pod, reason, message, name))
        except KubeError as error:
            if name and getattr(error, "conflict", False):
                return
            log.warning("event for pod %s not written: %s", pod["metadata"]["name"], error)

    async def _get(self, path: str) -> Json | None:
        client = await self._ready()
        try:
            found: Json = await client.call(client.get, path)
        except KubeError as error:
            if getattr(error, "not_found", False):
                return None
            raise Unavailable(f"reading {path}: {error}") from error
        return found

    async def _ready(self) -> KubeClient:
        if self._client is None:
            self._client = asyncio.ensure_future(asyncio.to_thread(self._connect))
        return await asyncio.shield(self._client)


class _Metadata(msgspec.Struct):
    uid: str
    name: str
    namespace: str = ""
    annotations: dict[str, str] = {}


class _Container(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str
    restart_policy: str | None = None


class _Spec(msgspec.Struct, rename="camel", omit_defaults=True):
    node_name: str | None = None
    init_containers: list[_Container] | None = None
    containers: list[_Container] = []


class _ContainerStatus(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str
    state: dict[str, Any] | None = None
    last_state: dict[str, Any] | None = None


class _Status(msgspec.Struct, rename="camel", omit_defaults=True):
    phase: str | None = None
    reason: str | None = None
    message: str | None = None
    init_container_statuses: list[_ContainerStatus] | None = None
    container_statuses: list[_ContainerStatus] | None = None


class _Pod(msgspec.Struct, omit_defaults=True):
    """The part of a pod that this agent reads; a node's pods in full would be the larger part of its memory."""

    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


_pod_decoder = msgspec.json.Decoder(_Pod)


def decode_pod(raw: bytes) -> Json:
    """A pod as the agent keeps it: Kubernetes' own shape, less everything that nobody here reads."""
    pod = _pod_decoder.decode(raw)
    pod.metadata.annotations = {key: text for key, text in pod.metadata.annotations.items() if key in (GRANT_ANNOTATION, ENFORCEMENT)}
    slim: Json = msgspec.to_builtins(pod)
    return slim


async def _mark_synced(reflector: Reflector[Json], pods: PodBook) -> None:
    await reflector.synced.wait()
    pods.synced = True


def _inventory_path(node: str | None) -> str:
    return kube.path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION, name=node)


def _event(pod: Json, reason: str, message: str, name: str = "") -> dict[str, Any]:
    metadata = pod["metadata"]
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name or f"{metadata['name']}.{int(now.timestamp() * 1e6):x}", "namespace": metadata.get("namespace", "default")},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "namespace": metadata.get("namespace"), "uid": metadata["uid"]},
        "reason": reason,
        "message": message[:LONGEST_MESSAGE],
        "type": "Warning",
        "source": {"component": "hami-agent", "host": (pod.get("spec") or {}).get("nodeName", "")},
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
