# SPDX-License-Identifier: Apache-2.0
"""A lab of one node: the kubelet double, an API server in memory, and the smallest device plugin that speaks real gRPC."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as api
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as services
from hami_framework.kubelet_api import podresources_v1_pb2 as resources_api
from hami_framework.kubelet_api import podresources_v1_pb2_grpc as resources_services
from hami_framework.sandbox.kubelet.node import KubeletDouble
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.kubelet.paths import KubeletPaths

RESOURCE = "example.com/slot"


class MemoryApi:
    """`NodeApi` without HTTP: the test creates and deletes pods, kubelet reports into `pods` and `node`."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.node: dict[str, Any] = {}
        self.node_history: list[dict[str, Any]] = []
        self.events: list[tuple[str, str, str]] = []
        self._mirrors: list[MemoryMirror] = []

    def mirror(self, node: str, on_pod: Callable[[dict[str, Any]], None], on_gone: Callable[[str], None]) -> MemoryMirror:
        return MemoryMirror(self, on_pod, on_gone)

    def put(self, pod: dict[str, Any]) -> None:
        self.pods[pod["metadata"]["uid"]] = pod
        for mirror in self._mirrors:
            mirror.on_pod(copy.deepcopy(pod))

    async def pod_status(self, pod: Any, status: dict[str, Any]) -> None:
        if pod["metadata"]["uid"] in self.pods:
            self.pods[pod["metadata"]["uid"]].setdefault("status", {}).update(status)

    async def delete_pod(self, pod: Any) -> None:
        if self.pods.pop(pod["metadata"]["uid"], None) is not None:
            for mirror in self._mirrors:
                mirror.on_gone(pod["metadata"]["uid"])

    async def ensure_node(self, node: dict[str, Any]) -> None:
        self.node.setdefault("metadata", node["metadata"])

    async def node_status(self, node: str, status: dict[str, Any]) -> None:
        self.node["status"] = status
        self.node_history.append(status)

    async def event(self, pod: Any, kind: str, reason: str, message: str) -> None:
        self.events.append((pod["metadata"]["name"], reason, message))

    def close(self) -> None:
        self._mirrors.clear()


class MemoryMirror:
    def __init__(self, owner: MemoryApi, on_pod: Callable[[dict[str, Any]], None], on_gone: Callable[[str], None]) -> None:
        self.owner, self.on_pod, self.on_gone = owner, on_pod, on_gone
        self.synced = asyncio.Event()

    async def run(self) -> None:
        for pod in self.owner.pods.values():
            self.on_pod(copy.deepcopy(pod))
        self.owner._mirrors.append(self)
        self.synced.set()
        try:
            await asyncio.Event().wait()
        finally:
            if self in self.owner._mirrors:
                self.owner._mirrors.remove(self)


class Plugin(services.DevicePluginServicer):
    """Slots as tokens: Allocate answers CDI names, PreStartContainer writes the spec. What it was asked stands in `calls`."""

    def __init__(self, paths: KubeletPaths, ids: Sequence[str], *, resource: str = RESOURCE, socket: str = "slot.sock", numa: int | None = None) -> None:
        self.paths, self.resource, self.socket, self.numa = paths, resource, socket, numa
        self.options = api.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)
        self.health = dict.fromkeys(ids, True)
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.streams = 0
        self.preferred: Callable[[api.ContainerPreferredAllocationRequest], list[str]] = lambda request: []
        self.on_allocate: Callable[[tuple[str, ...]], Awaitable[None]] = self._nothing
        self.on_pre_start: Callable[[tuple[str, ...]], Awaitable[None]] = self.write_specs
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def serve(self) -> None:
        self._server = grpc.aio.server()
        services.add_DevicePluginServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.paths.plugin_dir / self.socket}")
        await self._server.start()

    async def register(self, *, version: str = "v1beta1", resource: str | None = None, endpoint: str | None = None, claimed: Any = None) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self.paths.kubelet_socket}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = services.RegistrationStub(channel)
            request = api.RegisterRequest(version=version, endpoint=endpoint or self.socket, resource_name=resource or self.resource, options=claimed)
            await stub.Register(request, timeout=5)

    async def up(self) -> Plugin:
        await self.serve()
        await self.register()
        return self

    async def down(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def set_health(self, **health: bool) -> None:
        async with self._changed:
            self.health.update(health)
            self._changed.notify_all()

    def count(self, method: str) -> int:
        return sum(1 for name, _ in self.calls if name == method)

    async def GetDevicePluginOptions(self, request: Any, context: Any) -> api.DevicePluginOptions:  # noqa: N802
        return self.options

    async def ListAndWatch(self, request: Any, context: Any) -> AsyncIterator[api.ListAndWatchResponse]:  # noqa: N802
        self.streams += 1
        while True:
            yield api.ListAndWatchResponse(devices=[self._device(name, ok) for name, ok in self.health.items()])
            async with self._changed:
                await self._changed.wait()

    async def GetPreferredAllocation(self, request: api.PreferredAllocationRequest, context: Any) -> api.PreferredAllocationResponse:  # noqa: N802
        [wanted] = request.container_requests
        self.calls.append(("GetPreferredAllocation", tuple(wanted.available_deviceIDs)))
        return api.PreferredAllocationResponse(container_responses=[api.ContainerPreferredAllocationResponse(deviceIDs=self.preferred(wanted))])

    async def Allocate(self, request: api.AllocateRequest, context: Any) -> api.AllocateResponse:  # noqa: N802
        [wanted] = request.container_requests
        ids = tuple(wanted.devices_ids)
        self.calls.append(("Allocate", ids))
        await self.on_allocate(ids)
        names = [api.CDIDevice(name=f"{self.resource}={device}") for device in ids]
        return api.AllocateResponse(container_responses=[api.ContainerAllocateResponse(cdi_devices=names, envs={"FROM": "allocate", "ONLY_ALLOCATE": "1"})])

    async def PreStartContainer(self, request: api.PreStartContainerRequest, context: Any) -> api.PreStartContainerResponse:  # noqa: N802
        ids = tuple(request.devices_ids)
        self.calls.append(("PreStartContainer", ids))
        await self.on_pre_start(ids)
        return api.PreStartContainerResponse()

    async def write_specs(self, ids: tuple[str, ...]) -> None:
        for device in ids:
            self.write_spec(device, {"env": [f"SLOT_{device}=1", "FROM=cdi"]})

    def write_spec(self, device: str, edits: dict[str, Any], version: str = "0.5.0") -> None:
        spec = {"cdiVersion": version, "kind": self.resource, "devices": [{"name": device, "containerEdits": edits}]}
        (self.paths.cdi_dirs[-1] / f"slot_{device}.json").write_text(json.dumps(spec))

    def _device(self, name: str, ok: bool) -> api.Device:
        topology = None if self.numa is None else api.TopologyInfo(nodes=[api.NUMANode(ID=self.numa)])
        return api.Device(ID=name, health="Healthy" if ok else "Unhealthy", topology=topology)

    async def _nothing(self, ids: tuple[str, ...]) -> None:
        return None


class Lab:
    """The node with whatever a test puts on it."""

    def __init__(self, directory: Path) -> None:
        self.paths = KubeletPaths(
            plugin_dir=directory / "dp",
            pod_resources_socket=directory / "pr" / "kubelet.sock",
            cdi_dirs=(directory / "etc", directory / "run"),
            root=directory / "root",
        )
        self.api = MemoryApi()
        self.plugins: list[Plugin] = []
        self.kubelet = self.boot()

    def boot(self, **options: Any) -> KubeletDouble:
        self.kubelet = KubeletDouble(
            "n1", self.api, self.paths, options=KubeletOptions(**{"time_scale": 0.05, "node_status_lag_s": 0.01, "admission_delay_s": 0.03, **options})
        )
        return self.kubelet

    async def plugin(self, *ids: str, **options: Any) -> Plugin:
        plugin = Plugin(self.paths, ids, **options)
        self.plugins.append(plugin)
        await plugin.up()
        await self.until(lambda: self.kubelet.registered().get(plugin.resource) == len(ids))
        return plugin

    def pod(self, name: str, containers: dict[str, int], *, init: dict[str, int] | None = None, sidecars: dict[str, int] | None = None, **more: Any) -> str:
        """Bind a pod; counts are of RESOURCE. Init containers come before sidecars. Returns the UID."""
        uid = str(uuid.uuid4())
        before = [container(key, count) for key, count in (init or {}).items()]
        before += [container(key, count) | {"restartPolicy": "Always"} for key, count in (sidecars or {}).items()]
        spec = {"nodeName": "n1", "initContainers": before, "containers": [container(key, count) for key, count in containers.items()], **more.pop("spec", {})}
        self.api.put({"metadata": {"name": name, "namespace": "default", "uid": uid, **more}, "spec": spec, "status": {"phase": "Pending"}})
        return uid

    def delete(self, uid: str) -> None:
        pod = copy.deepcopy(self.api.pods[uid])
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        self.api.put(pod)

    def status(self, uid: str) -> dict[str, Any]:
        status: dict[str, Any] = self.api.pods[uid]["status"]
        return status

    async def phase(self, uid: str, phase: str) -> dict[str, Any]:
        await self.until(lambda: self.status(uid).get("phase") == phase)
        return self.status(uid)

    async def waiting(self, uid: str, reason: str) -> str:
        """The message of a container that waits for this reason."""
        await self.until(lambda: self._waiting(uid).get("reason") == reason)
        return str(self._waiting(uid)["message"])

    def _waiting(self, uid: str) -> dict[str, Any]:
        entries = self.status(uid).get("initContainerStatuses", []) + self.status(uid).get("containerStatuses", [])
        return next((entry["state"]["waiting"] for entry in entries if entry["state"].get("waiting", {}).get("message")), {})

    def view(self, uid: str, name: str) -> dict[str, Any]:
        return next(item for item in self.kubelet.containers() if item["podUID"] == uid and item["container"] == name)

    def checkpoint(self) -> dict[tuple[str, str], list[str]]:
        """(pod UID, container) → ids, straight from the file."""
        data = json.loads((self.paths.plugin_dir / "kubelet_internal_checkpoint").read_text())["Data"]
        return {(entry["PodUID"], entry["ContainerName"]): [i for ids in entry["DeviceIDs"].values() for i in ids] for entry in data["PodDeviceEntries"] or ()}

    async def list_resources(self, calls: int = 1) -> list[Any]:
        """`calls` concurrent List calls: each answer or error."""
        async with grpc.aio.insecure_channel(f"unix:{self.paths.pod_resources_socket}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = resources_services.PodResourcesListerStub(channel)
            request = resources_api.ListPodResourcesRequest()

            async def once() -> Any:
                return await stub.List(request, timeout=5)

            return await asyncio.gather(*(once() for _ in range(calls)), return_exceptions=True)

    async def resources_stub(self, method: str, request: Any) -> Any:
        async with grpc.aio.insecure_channel(f"unix:{self.paths.pod_resources_socket}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = resources_services.PodResourcesListerStub(channel)
            return await getattr(stub, method)(request, timeout=5)

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until the condition holds. A status that was not sent yet (KeyError) is "not yet", like any other."""
        async with asyncio.timeout(seconds):
            while not _holds(condition):  # noqa: ASYNC110 — what is waited for has no event
                await asyncio.sleep(0.005)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except KeyError:
        return False


def container(name: str, count: int, resource: str = RESOURCE) -> dict[str, Any]:
    return {"name": name, "image": "busybox", "resources": {"limits": {resource: str(count)} if count else {}}}


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """A node whose kubelet runs already; `lab.boot(...)` before `start()` is for tests that want other options."""
    directory = Path(tempfile.mkdtemp(prefix="hk", dir="/tmp"))
    lab = Lab(directory)
    await lab.kubelet.start()
    try:
        yield lab
    finally:
        await lab.kubelet.stop()
        for plugin in lab.plugins:
            await plugin.down()
        shutil.rmtree(directory)
