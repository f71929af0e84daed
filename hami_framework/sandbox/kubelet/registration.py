# SPDX-License-Identifier: Apache-2.0
"""kubelet's device plugin registry: the Registration service, and a client for every plugin that registered.

Copies pkg/kubelet/cm/devicemanager/plugin/v1beta1/{server,handler,client}.go of 1.36, its flaw included: clients are
keyed by resource, so when an *older* instance's stream ends, whichever instance is current is disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as api
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as services
from hami_framework.sandbox.kubelet.devices import AdmissionError, PluginDevice
from hami_framework.sandbox.kubelet.names import extended_resource_problem
from hami_framework.sandbox.kubelet.options import MAX_RECEIVE_BYTES, KubeletOptions

log = logging.getLogger(__name__)

VERSION = "v1beta1"
HEALTHY = "Healthy"
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", MAX_RECEIVE_BYTES), ("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1))

Call = tuple[str, str, tuple[str, ...]]
"""(RPC, resource, ids) of a call to a plugin, for tests and for people who ask what kubelet did."""


class DeviceSink(Protocol):
    """What a plugin's stream drives: the device manager plus its checkpoint."""

    def update(self, resource: str, devices: Iterable[PluginDevice]) -> None: ...

    def mark_unhealthy(self, resource: str) -> None: ...


class Endpoint:
    """`endpointInfo`: the plugin that currently answers for a resource, with the options it gave itself."""

    def __init__(self, resource: str, client: PluginClient | None, options: api.DevicePluginOptions | None) -> None:
        self.resource = resource
        self.client = client
        self.options = options
        self.stopped_at = time.monotonic() if client is None else None

    def stop(self) -> None:
        self.stopped_at = time.monotonic()

    def gone_for(self, seconds: float) -> bool:
        return self.stopped_at is not None and time.monotonic() - self.stopped_at > seconds

    @property
    def pre_start_required(self) -> bool:
        """False until the plugin has registered with *this* kubelet: that is how PreStart comes to be skipped after a restart."""
        return self.options is not None and self.options.pre_start_required

    @property
    def preferred_available(self) -> bool:
        return self.options is not None and self.options.get_preferred_allocation_available

    def live(self) -> PluginClient:
        """The client, or AdmissionError when the stream has ended."""
        if self.client is None or self.stopped_at is not None:
            raise AdmissionError(f"endpoint {self.resource} has been stopped")
        return self.client


@contextmanager
def _refusals(prefix: str = "") -> Iterator[None]:
    """A call that fails becomes an AdmissionError in kubelet's words.

    Closing the channel under a call (the plugin's stream has ended) shows here as a cancellation that nobody asked this
    task for; kubelet's client sees an ordinary error then.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise AdmissionError(f"{prefix}{describe(error)}") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise AdmissionError(f"{prefix}rpc error: code = Canceled desc = grpc: the client connection is closing") from None


class PluginClient:
    """One dialled plugin instance."""

    def __init__(self, resource: str, socket: Path, calls: deque[Call]) -> None:
        self.resource = resource
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)
        self._stub: Any = services.DevicePluginStub(self._channel)
        self._calls = calls

    async def connect(self, timeout: float) -> api.DevicePluginOptions:
        """Dial and ask for the options. Raises AdmissionError in kubelet's words."""
        try:
            async with asyncio.timeout(timeout):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise AdmissionError(f"failed to dial device plugin: no server on its socket within {timeout:g} s") from error
        with _refusals("failed to get device plugin options: "):
            options: api.DevicePluginOptions = await self._stub.GetDevicePluginOptions(api.Empty())
        return options

    async def watch(self, receive: Callable[[api.ListAndWatchResponse], None]) -> str:
        """Read ListAndWatch until it ends; why it did."""
        try:
            async for response in self._stub.ListAndWatch(api.Empty()):
                receive(response)
        except grpc.aio.AioRpcError as error:
            return describe(error)
        return "EOF"

    async def preferred(self, available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
        request = api.ContainerPreferredAllocationRequest(available_deviceIDs=available, must_include_deviceIDs=must_include, allocation_size=size)
        self._note("GetPreferredAllocation", available)
        with _refusals("device plugin GetPreferredAllocation rpc failed with err: "):
            answer = await self._stub.GetPreferredAllocation(api.PreferredAllocationRequest(container_requests=[request]))
        return tuple(answer.container_responses[0].deviceIDs) if answer.container_responses else ()

    async def allocate(self, ids: Sequence[str]) -> bytes:
        """The first container response, serialised; kubelet reads no other."""
        self._note("Allocate", ids)
        request = api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=ids)])
        with _refusals():
            answer: api.AllocateResponse = await self._stub.Allocate(request)
        if not answer.container_responses:
            raise AdmissionError(f"no containers return in allocation response {answer}")
        return answer.container_responses[0].SerializeToString()

    async def pre_start(self, ids: Sequence[str], deadline: float) -> None:
        self._note("PreStartContainer", ids)
        with _refusals("device plugin PreStartContainer rpc failed with err: "):
            await self._stub.PreStartContainer(api.PreStartContainerRequest(devices_ids=ids), timeout=deadline)

    async def close(self) -> None:
        await self._channel.close()

    def _note(self, method: str, ids: Sequence[str]) -> None:
        self._calls.append((method, self.resource, tuple(ids)))


def describe(error: grpc.aio.AioRpcError) -> str:
    """As Go prints a gRPC status."""
    return f"rpc error: code = {error.code().name} desc = {error.details()}"


class PluginRegistry(services.RegistrationServicer):
    """The Registration service, its clients and the endpoints the device manager calls."""

    def __init__(self, directory: Path, sink: DeviceSink, options: KubeletOptions) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.calls: deque[Call] = deque(maxlen=100_000)
        self._directory = directory
        self._sink = sink
        self._options = options
        self._clients: dict[str, PluginClient] = {}
        self._streams: set[asyncio.Task[None]] = set()
        self._open: set[PluginClient] = set()

    def restore(self, resources: Iterable[str]) -> None:
        """After a start: the checkpoint's resources have a stopped endpoint without options."""
        self.endpoints = {resource: Endpoint(resource, None, None) for resource in resources}

    async def Register(  # noqa: N802
        self, request: api.RegisterRequest, context: grpc.aio.ServicerContext[api.RegisterRequest, api.Empty]
    ) -> api.Empty:
        resource = request.resource_name
        if request.version != VERSION:
            problem = f'requested API version "{request.version}" is not supported by kubelet. Supported version is ["{VERSION}"]'
            await context.abort(grpc.StatusCode.UNKNOWN, problem)
        if wrong := extended_resource_problem(resource):
            await context.abort(grpc.StatusCode.UNKNOWN, f'the ResourceName "{resource}" is invalid: {wrong}')
        try:
            await self._connect(resource, self._directory / request.endpoint)
        except AdmissionError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return api.Empty()

    async def close(self) -> None:
        """kubelet is killed: connections drop, no state is told."""
        for task in self._streams:
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        for client in tuple(self._open):
            await client.close()
        self._open.clear()
        self._clients.clear()

    async def _connect(self, resource: str, socket: Path) -> None:
        client = PluginClient(resource, socket, self.calls)
        self._open.add(client)
        self._clients[resource] = client
        try:
            options = await client.connect(self._options.dial_timeout_s)
        except AdmissionError:
            self._clients.pop(resource, None)
            await self._hang_up(client)
            raise
        self.endpoints[resource] = Endpoint(resource, client, options)
        log.info("registered %s at %s", resource, socket)
        task = asyncio.create_task(self._run(client), name=f"ListAndWatch {resource}")
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _run(self, client: PluginClient) -> None:
        """`runClient`: read the stream; at its end disconnect whoever is the resource's client by then."""
        resource = client.resource
        reason = await client.watch(lambda response: self._sink.update(resource, [_device(device) for device in response.devices]))
        log.warning("ListAndWatch of %s ended: %s", resource, reason)
        current = self._clients.pop(resource, None)
        if current is not None:
            self.endpoints[resource].stop()
            self._sink.mark_unhealthy(resource)
            await self._hang_up(current)
        await self._hang_up(client)

    async def _hang_up(self, client: PluginClient) -> None:
        if client in self._open:
            self._open.discard(client)
            await client.close()


def _device(device: api.Device) -> PluginDevice:
    return PluginDevice(id=device.ID, healthy=device.health == HEALTHY, numa=tuple(node.ID for node in device.topology.nodes))
