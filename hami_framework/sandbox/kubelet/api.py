# SPDX-License-Identifier: Apache-2.0
"""What a kubelet double asks of the API server, over HTTP; tests put something smaller in its place."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import ApiError
from hami_framework.kube.reflector import Metadata, Reflector

Object = dict[str, Any]
GONE_OR_REPLACED = (404, 409)


class Mirror(Protocol):
    """A watch of the node's pods that runs until it is cancelled."""

    @property
    def synced(self) -> Any: ...

    async def run(self) -> None: ...


class NodeApi(Protocol):
    """The API server as seen from one node. Methods raise `errors.HamiError` when the server cannot be reached."""

    def mirror(self, node: str, on_pod: Callable[[Object], None], on_gone: Callable[[str], None]) -> Mirror:
        """Pods bound to `node`; `on_gone` gets the UID."""
        ...

    async def pod_status(self, pod: Mapping[str, Any], status: Object) -> None:
        """Write the status of this incarnation of the pod; nothing happens when it is gone."""
        ...

    async def delete_pod(self, pod: Mapping[str, Any]) -> None:
        """The last step of a graceful deletion: remove this incarnation for good."""
        ...

    async def ensure_node(self, node: Object) -> None:
        """Create the Node object unless it is there."""
        ...

    async def node_status(self, node: str, status: Object) -> None:
        """Merge into the node's status."""
        ...

    async def event(self, pod: Mapping[str, Any], kind: str, reason: str, message: str) -> None:
        """Tell people, as kubelet's event recorder does."""
        ...

    def close(self) -> None: ...


class HttpNodeApi:
    """`NodeApi` through the project's own Kubernetes client."""

    def __init__(self, server: str, *, threads: int = 4) -> None:
        self._client = KubeClient(Credentials(server=server), threads=threads, user_agent="hami-sandbox-kubelet")

    def mirror(self, node: str, on_pod: Callable[[Object], None], on_gone: Callable[[str], None]) -> Mirror:
        def deleted(metadata: Metadata) -> None:
            on_gone(metadata.uid)

        return Reflector[Object](self._client, path("pods"), on_upsert=on_pod, on_delete=deleted, field_selector=f"spec.nodeName={node}")

    async def pod_status(self, pod: Mapping[str, Any], status: Object) -> None:
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        try:
            await self._client.call(self._client.patch, _pod_path(pod, "status"), body)
        except ApiError as error:
            if error.status not in GONE_OR_REPLACED:
                raise

    async def delete_pod(self, pod: Mapping[str, Any]) -> None:
        try:
            await self._client.call(self._client.delete, _pod_path(pod), uid=pod["metadata"]["uid"], grace_seconds=0)
        except ApiError as error:
            if error.status not in GONE_OR_REPLACED:
                raise

    async def ensure_node(self, node: Object) -> None:
        try:
            await self._client.call(self._client.create, path("nodes"), node)
        except ApiError as error:
            if not error.conflict:
                raise

    async def node_status(self, node: str, status: Object) -> None:
        await self._client.call(self._client.patch, path("nodes", name=node, subresource="status"), {"status": status})

    async def event(self, pod: Mapping[str, Any], kind: str, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        namespace = metadata.get("namespace", "default")
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "namespace": namespace, "uid": metadata["uid"]},
            "type": kind, "reason": reason, "message": message, "source": {"component": "kubelet"}, "reportingComponent": "kubelet",
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }  # fmt: skip
        await self._client.call(self._client.create, path("events", namespace=namespace), body)

    def close(self) -> None:
        self._client.close()


def _pod_path(pod: Mapping[str, Any], subresource: str | None = None) -> str:
    metadata = pod["metadata"]
    return path("pods", namespace=metadata.get("namespace", "default"), name=metadata["name"], subresource=subresource)
