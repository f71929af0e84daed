# SPDX-License-Identifier: Apache-2.0
"""kubelet's pod-resources API: one List answers everybody who asked before it began.

Its rate limit is real (100 per second, burst 10; 40 parallel calls: 32 refused, `real-cluster.md` §5a), so calls in flight
share a snapshot and a refusal is waited out. The list has one entry per id and does not show init containers.
"""

from __future__ import annotations

import asyncio
import time

import grpc

from hami_framework.deviceplugin.identity import Listed, joined
from hami_framework.errors import Unavailable
from hami_framework.kubelet_api import podresources_v1_pb2 as messages
from hami_framework.kubelet_api import podresources_v1_pb2_grpc as stubs

CALL_SECONDS = 3.0
ATTEMPTS = 8
MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024
"""kubelet's own client for this API takes 16 MiB (k8s.io/kubernetes pkg/kubelet/apis/podresources)."""


class PodResourcesClient:
    """The snapshot of all containers' ids, shared by all calls in flight. Create it inside a running loop."""

    def __init__(self, socket: str) -> None:
        options = [("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES)]
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options)
        self._list = stubs.PodResourcesListerStub(self._channel).List
        self._lock = asyncio.Lock()
        self._began = float("-inf")
        self._rows: tuple[Listed, ...] = ()

    async def snapshot(self) -> tuple[Listed, ...]:
        """Every container's ids, read after this call was made. Raises Unavailable, saying why."""
        asked = time.monotonic()
        async with self._lock:
            if self._began < asked:
                began = time.monotonic()
                self._rows = await self._read()
                self._began = began
            return self._rows

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _read(self) -> tuple[Listed, ...]:
        for attempt in range(ATTEMPTS):
            try:
                answer = await self._list(messages.ListPodResourcesRequest(), timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or attempt == ATTEMPTS - 1:
                    raise Unavailable(f"kubelet's pod-resources does not answer: {error.code().name}: {error.details()}") from error
                await asyncio.sleep(0.02 * 2**attempt)
            else:
                return rows(answer)
        raise AssertionError("the loop above always leaves")


def rows(answer: messages.ListPodResourcesResponse) -> tuple[Listed, ...]:
    """The answer with the ids of each container joined."""
    pairs = [
        ((pod.namespace, pod.name, container.name, devices.resource_name), devices.device_ids)
        for pod in answer.pod_resources
        for container in pod.containers
        for devices in container.devices
    ]
    return tuple(
        Listed(namespace=namespace, pod=pod, container=container, resource=resource, ids=ids)
        for (namespace, pod, container, resource), ids in joined(pairs).items()
    )
