# SPDX-License-Identifier: Apache-2.0
"""kubelet's pod-resources API v1, with the traps a client meets on a real node.

From pkg/kubelet/apis/podresources/server_v1.go and a run of 1.36.3: at most 100 calls a second with a burst of 10, then
ResourceExhausted; one `ContainerDevices` entry for *each* id (and NUMA node); init containers that are not sidecars are
hidden; a pod is listed as soon as kubelet knows it, but without devices until Allocate was answered and recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
import grpc.aio

from hami_framework.kubelet_api import podresources_v1_pb2 as api
from hami_framework.kubelet_api import podresources_v1_pb2_grpc as services
from hami_framework.sandbox.kubelet.admission import DeviceAdmission
from hami_framework.sandbox.kubelet.checkpoint import NO_TOPOLOGY

Pod = Mapping[str, Any]


class TokenBucket:
    """golang.org/x/time/rate: `burst` calls at once, refilled at `qps` a second."""

    def __init__(self, qps: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._qps = qps
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    def allow(self) -> bool:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._qps)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RateLimit(grpc.aio.ServerInterceptor):
    """One bucket for all methods of the server."""

    def __init__(self, bucket: TokenBucket) -> None:
        self._bucket = bucket

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        if self._bucket.allow():
            return await continuation(details)
        return grpc.unary_unary_rpc_method_handler(_rejected)


async def _rejected(_request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")


class PodResources(services.PodResourcesListerServicer):
    """`active_pods` gives the pods kubelet knows and has not seen end."""

    def __init__(self, admission: DeviceAdmission, active_pods: Callable[[], Iterable[Pod]]) -> None:
        self._admission = admission
        self._active_pods = active_pods

    async def List(  # noqa: N802
        self, request: api.ListPodResourcesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api.ListPodResourcesResponse:
        self._admission.collect()
        return api.ListPodResourcesResponse(pod_resources=[self._pod(pod) for pod in self._active_pods()])

    async def Get(  # noqa: N802
        self, request: api.GetPodResourcesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api.GetPodResourcesResponse:
        wanted = (request.pod_name, request.pod_namespace)
        for pod in self._active_pods():
            if (pod["metadata"]["name"], pod["metadata"].get("namespace", "default")) == wanted:
                return api.GetPodResourcesResponse(pod_resources=self._pod(pod))
        return await context.abort(grpc.StatusCode.UNKNOWN, f"pod {request.pod_name} in namespace {request.pod_namespace} not found")

    async def GetAllocatableResources(  # noqa: N802
        self, request: api.AllocatableResourcesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> api.AllocatableResourcesResponse:
        manager = self._admission.manager
        entries = [
            _entry(resource, device, numa)
            for resource, ids in manager.healthy.items()
            for device in sorted(ids)
            for numa in manager.devices[resource][device].numa or (NO_TOPOLOGY,)
        ]
        return api.AllocatableResourcesResponse(devices=entries)

    def _pod(self, pod: Pod) -> api.PodResources:
        sidecars = [container for container in pod["spec"].get("initContainers") or () if container.get("restartPolicy") == "Always"]
        containers = [self._container(pod["metadata"]["uid"], container["name"]) for container in (*sidecars, *pod["spec"]["containers"])]
        return api.PodResources(name=pod["metadata"]["name"], namespace=pod["metadata"].get("namespace", "default"), containers=containers)

    def _container(self, uid: str, name: str) -> api.ContainerResources:
        records = self._admission.manager.container_records(uid, name)
        devices = [_entry(record.resource, device, numa) for record in records for numa, ids in record.devices.items() for device in ids]
        return api.ContainerResources(name=name, devices=devices)


def _entry(resource: str, device: str, numa: int) -> api.ContainerDevices:
    topology = None if numa == NO_TOPOLOGY else api.TopologyInfo(nodes=[api.NUMANode(ID=numa)])
    return api.ContainerDevices(resource_name=resource, device_ids=[device], topology=topology)
