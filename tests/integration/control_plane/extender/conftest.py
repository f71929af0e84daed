# SPDX-License-Identifier: Apache-2.0
"""A real extender on a real port, in front of the fake API server, with one made-up vendor."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.kube.client import KubeClient
from hami_framework.model import (
    GIB,
    MIB,
    Capacity,
    ContainerGrant,
    Device,
    DeviceClass,
    DeviceGrant,
    DeviceRequest,
    Inventory,
    Offer,
    Owner,
    PodGrant,
    Rejection,
    ResourceNames,
    VendorInfo,
    share,
    whole,
)
from hami_framework.placement.engine import Engine
from hami_framework.scheduler.server import Scheduler, serving

Object = dict[str, Any]
CATALOG = ResourceCatalog([("acme", ResourceNames(count="acme.com/xpu", memory="acme.com/xpumem", cores="acme.com/xpucores"))], vendors=["acme"])
CLASS = DeviceClass(model="X1", vendor="acme", capacity=Capacity(memory_bytes=16 * GIB, shares=10))


def partition(device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
    if request.whole:
        return (whole(device_class.capacity.memory_bytes),)
    return (share(request.memory_bytes or device_class.capacity.memory_bytes, request.core_percent),)


class Cluster:
    """What a test does to the cluster, and what kube-scheduler would ask."""

    def __init__(self, api: Any, client: KubeClient) -> None:
        self.api, self.client = api, client
        self.scheduler: Scheduler
        self.port = 0

    # -- the cluster --------------------------------------------------------------------------------------------

    def node(self, name: str, devices: int = 1, **device: Any) -> None:
        self.api.put("nodes", {"metadata": {"name": name}})
        found = tuple(Device(id=f"{name}-x{number}", name=f"acme-{name}-x{number}", device_class=CLASS, index=number, **device) for number in range(devices))
        self.api.put(inventories.PLURAL, inventories.to_object(Inventory(node=name, vendors=(VendorInfo(name="acme"),), devices=found)))

    def pod(self, name: str, memory_mib: int | str | None = 4096, *, count: int | str = 1, **limits: str) -> Object:
        wanted = {"acme.com/xpu": str(count), **limits}
        if memory_mib is not None:
            wanted["acme.com/xpumem"] = str(memory_mib)
        return self.plain_pod(name, wanted)

    def plain_pod(self, name: str, limits: dict[str, str]) -> Object:
        containers = [{"name": "main", "image": "x", "resources": {"limits": limits, "requests": limits}}]
        stored: Object = self.api.put(
            "pods", {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "d", "name": name}, "spec": {"containers": containers}, "status": {}}
        )
        return stored

    def stored(self, name: str) -> Object:
        found: Object = self.api.collections["pods"][f"d/{name}"]
        return found

    def granted_pod(self, name: str, uid: str, node: str, memory_bytes: int = 4 * GIB, **changes: Any) -> Object:
        """A pod that an earlier life of the extender bound."""
        device = DeviceGrant(device_id=f"{node}-x0", device_name=f"acme-{node}-x0", vendor="acme", resource="acme.com/xpu", offer=share(memory_bytes))
        grant = PodGrant(
            owner=Owner(kind="pod", uid=changes.get("owner_uid", uid), namespace="d", name=name),
            node=node,
            containers=(ContainerGrant(container="main", devices=(device,)),),
        )
        text = changes.get("text", encode_grant(grant))
        pod = {
            "metadata": {"namespace": "d", "name": name, "uid": uid, "annotations": {GRANT_ANNOTATION: text}},
            "spec": {"nodeName": changes.get("node_name", node), "containers": []},
            "status": {"phase": changes.get("phase", "Running")},
        }
        return self.api.put("pods", pod)  # type: ignore[no-any-return]

    # -- the extender -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def extender(
        self, *, wait: bool = True, settle_seconds: float = 0.4, answer_seconds: float = 3.0, chosen_only: bool = False
    ) -> AsyncIterator[Cluster]:
        self.scheduler = Scheduler(
            Engine(partition),
            CATALOG,
            self.client,
            chosen_only=chosen_only,
            binder_options={"settle_seconds": settle_seconds, "answer_seconds": answer_seconds},
            read_deadline_seconds=2.0,
            backoff_seconds=(0.02, 0.1),
        )
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        async with serving(self.scheduler, sock):
            if wait:
                await self.until(lambda: self.scheduler.extender.ready)
            yield self

    async def until(self, condition: Callable[[], Any], seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            await asyncio.sleep(0.01)

    # -- what kube-scheduler does -------------------------------------------------------------------------------

    async def request(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        def send() -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
                connection.request(method, path, payload, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()

        return await asyncio.to_thread(send)

    async def ask(self, verb: str, body: object) -> Any:
        status, answer = await self.request("POST", f"/{verb}", body)
        assert status == 200, answer
        return json.loads(answer)

    async def filter(self, pod: Object, nodes: list[str]) -> Object:
        answer: Object = await self.ask("filter", {"Pod": pod, "Nodes": None, "NodeNames": nodes})
        assert not answer["Error"], answer["Error"]
        told = [*answer["NodeNames"], *answer["FailedNodes"], *answer["FailedAndUnresolvableNodes"]]
        assert sorted(told) == sorted(nodes), "each node exactly once"
        return answer

    async def bind(self, pod: Object, node: str) -> str:
        meta = pod["metadata"]
        answer = await self.ask("bind", {"PodName": meta["name"], "PodNamespace": meta["namespace"], "PodUID": meta["uid"], "Node": node})
        error: str = answer["Error"]
        return error

    async def place(self, pod: Object, node: str) -> str:
        """filter, then bind, as for one pod's way through kube-scheduler."""
        answer = await self.filter(pod, [node])
        assert answer["NodeNames"] == [node], answer
        return await self.bind(pod, node)

    async def promised_mib(self, node: str) -> int:
        _, body = await self.request("GET", "/state")
        [found] = [entry for entry in json.loads(body)["nodes"] if entry["node"] == node]
        return sum(int(device.get("memoryBytes", 0)) for device in found["devices"]) // MIB


@pytest.fixture
def cluster(api: Any, client: KubeClient) -> Cluster:
    return Cluster(api, client)
