# SPDX-License-Identifier: Apache-2.0
"""kubelet's DevicePlugin service for one resource. Every call may run beside every other.

Source: k8s.io/kubelet pkg/apis/deviceplugin/v1beta1/api.proto. No message names a pod; `Allocate` therefore answers CDI
names only, in constant time, and everything that knows of pods happens in `PreStartContainer`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from hami_framework.deviceplugin.cdi import CdiDirectory, qualified_name
from hami_framework.deviceplugin.slots import Slot
from hami_framework.errors import HamiError
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as messages
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as stubs

log = logging.getLogger(__name__)

Prepare = Callable[[str, frozenset[str]], Awaitable[None]]
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

OPTIONS = messages.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)


class SlotPlugin(stubs.DevicePluginServicer):
    """Offers one resource's slots. Create it inside a running loop."""

    def __init__(self, resource: str, cdi: CdiDirectory, prepare: Prepare) -> None:
        self.resource = resource
        self.streams = 0
        """How many ListAndWatch streams are open: none means that kubelet does not know us (any more)."""
        self._cdi = cdi
        self._prepare = prepare
        self._slots: tuple[Slot, ...] = ()
        self._changed = asyncio.Event()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What is offered now."""
        return self._slots

    def offer(self, slots: Sequence[Slot]) -> None:
        """Offer these; kubelet is told when they differ from what it has. Every message makes it write its checkpoint."""
        if tuple(slots) != self._slots:
            self._slots = tuple(slots)
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def GetDevicePluginOptions(self, request: messages.Empty, context: Context) -> messages.DevicePluginOptions:  # noqa: N802
        return OPTIONS

    async def ListAndWatch(self, request: messages.Empty, context: Context) -> AsyncIterator[messages.ListAndWatchResponse]:  # noqa: N802
        self.streams += 1
        try:
            while True:
                changed = self._changed
                yield messages.ListAndWatchResponse(
                    devices=[messages.Device(ID=slot.id, health="Healthy" if slot.healthy else "Unhealthy") for slot in self._slots]
                )
                await changed.wait()
        finally:
            self.streams -= 1

    async def GetPreferredAllocation(self, request: messages.PreferredAllocationRequest, context: Context) -> messages.PreferredAllocationResponse:  # noqa: N802
        """Tokens are all alike; the choice is made stable, so that slots are reused instead of spread."""
        order = {slot.id: number for number, slot in enumerate(self._slots)}
        return messages.PreferredAllocationResponse(
            container_responses=[messages.ContainerPreferredAllocationResponse(deviceIDs=preferred(one, order)) for one in request.container_requests]
        )

    async def Allocate(self, request: messages.AllocateRequest, context: Context) -> messages.AllocateResponse:  # noqa: N802
        """CDI names of the slots. Their old files go, so that a skipped PreStart can never show another pod's."""
        known = {slot.id for slot in self._slots}
        unknown = sorted({slot for one in request.container_requests for slot in one.devices_ids} - known)
        if unknown:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{self.resource} has no slots {', '.join(unknown)}")
        for one in request.container_requests:
            for slot in one.devices_ids:
                self._cdi.delete(slot)
        return messages.AllocateResponse(
            container_responses=[
                messages.ContainerAllocateResponse(cdi_devices=[messages.CDIDevice(name=qualified_name(slot)) for slot in sorted(one.devices_ids)])
                for one in request.container_requests
            ]
        )

    async def PreStartContainer(self, request: messages.PreStartContainerRequest, context: Context) -> messages.PreStartContainerResponse:  # noqa: N802
        """The container's own grant onto its slots; any failure is an error that kubelet answers by trying again."""
        try:
            await self._prepare(self.resource, frozenset(request.devices_ids))
        except (HamiError, OSError) as error:
            log.warning("PreStartContainer of %s refused for now: %s", self.resource, error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return messages.PreStartContainerResponse()


def preferred(request: messages.ContainerPreferredAllocationRequest, order: dict[str, int]) -> list[str]:
    """What must be included, then the lowest numbers."""
    must = list(request.must_include_deviceIDs)
    rest = sorted(set(request.available_deviceIDs) - set(must), key=lambda slot: (order.get(slot, len(order)), slot))
    return (must + rest)[: request.allocation_size]
