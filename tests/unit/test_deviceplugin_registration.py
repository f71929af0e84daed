# SPDX-License-Identifier: Apache-2.0
"""Being registered, always: real gRPC between the plugin and the smallest possible kubelet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.door import socket_name
from hami_framework.deviceplugin.plugin import SlotPlugin
from hami_framework.deviceplugin.podresources import PodResourcesClient
from hami_framework.deviceplugin.registration import Registrar
from hami_framework.deviceplugin.slots import Slot
from hami_framework.errors import ConfigError, Unavailable
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as messages
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as stubs
from hami_framework.kubelet_api import podresources_v1_pb2 as resources
from hami_framework.kubelet_api import podresources_v1_pb2_grpc as resource_stubs
from hami_framework.model import ContainerEdits

XPU = "acme.com/xpu"


class Kubelet(stubs.RegistrationServicer):
    """Dials whoever registers and keeps the last list it was sent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.registrations = 0
        self.endpoints: list[str] = []
        self.refuse = 0
        self.lists: list[dict[str, str]] = []
        self.channel: Any = None
        self.reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.server = grpc.aio.server()
        stubs.add_RegistrationServicer_to_server(self, self.server)
        self.server.add_insecure_port(f"unix:{self.directory}/kubelet.sock")
        await self.server.start()

    async def Register(self, request: messages.RegisterRequest, context: Any) -> messages.Empty:  # noqa: N802
        assert (request.version, request.resource_name) == ("v1beta1", XPU)
        self.endpoints.append(request.endpoint)
        if self.refuse:
            self.refuse -= 1
            await context.abort(grpc.StatusCode.UNKNOWN, "device plugin already connected")
        await self.hang_up()
        self.channel = grpc.aio.insecure_channel(f"unix:{self.directory / request.endpoint}")
        self.plugin = stubs.DevicePluginStub(self.channel)
        options = await self.plugin.GetDevicePluginOptions(messages.Empty())
        assert options.pre_start_required
        self.registrations += 1
        self.reading = asyncio.create_task(self._read())
        return messages.Empty()

    async def _read(self) -> None:
        try:
            async for answer in self.plugin.ListAndWatch(messages.Empty()):
                self.lists.append({device.ID: device.health for device in answer.devices})
        except grpc.aio.AioRpcError:
            return

    async def hang_up(self) -> None:
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.gather(self.reading, return_exceptions=True)
            await self.channel.close()
            self.reading = None

    async def stop(self) -> None:
        await self.hang_up()
        await self.server.stop(None)


class Setup:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubelet = Kubelet(directory)
        self.asked: list[frozenset[str]] = []
        self.cdi = CdiDirectory(directory / "cdi")
        self.plugin = SlotPlugin(XPU, self.cdi, self.prepare)
        self.plugin.offer([Slot(id="xpu-0"), Slot(id="xpu-1"), Slot(id="xpu-2")])
        self.registrar = Registrar(self.plugin, directory)

    async def prepare(self, resource: str, ids: frozenset[str]) -> None:
        self.asked.append(ids)
        if "xpu-2" in ids:
            raise Unavailable("not yet")

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110 - looks at several objects that have no event of their own
                await asyncio.sleep(0.01)


@pytest.fixture
async def setup(short_directory: Path) -> AsyncIterator[Setup]:
    setup = Setup(short_directory)
    running = asyncio.create_task(setup.registrar.run())
    await setup.kubelet.start()
    await setup.until(lambda: setup.kubelet.lists)
    yield setup
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await setup.kubelet.stop()


async def test_the_whole_list_is_sent_at_first_and_then_on_change_only(setup: Setup) -> None:
    assert setup.kubelet.lists == [{"xpu-0": "Healthy", "xpu-1": "Healthy", "xpu-2": "Healthy"}]

    setup.plugin.offer([Slot(id="xpu-0"), Slot(id="xpu-1"), Slot(id="xpu-2")])
    setup.plugin.offer([Slot(id="xpu-0"), Slot(id="xpu-1", healthy=False)])
    await setup.until(lambda: len(setup.kubelet.lists) == 2)

    assert setup.kubelet.lists[-1] == {"xpu-0": "Healthy", "xpu-1": "Unhealthy"}


async def test_it_registers_again_when_the_stream_ends(setup: Setup) -> None:
    await setup.kubelet.hang_up()

    await setup.until(lambda: setup.kubelet.registrations == 2)
    await setup.until(lambda: len(setup.kubelet.lists) == 2)


async def test_it_serves_and_registers_again_when_kubelet_wiped_all_sockets(setup: Setup) -> None:
    await setup.kubelet.stop()
    for path in setup.directory.glob("*.sock"):
        path.unlink()
    await setup.kubelet.start()

    await setup.until(lambda: setup.kubelet.registrations == 2)
    await setup.until(lambda: len(setup.kubelet.lists) == 2)
    assert setup.registrar.door.open


async def test_no_socket_is_registered_twice(setup: Setup) -> None:
    """kubelet 1.37 would refuse the second time, and from then on for ever."""
    for turn in range(2, 5):
        await setup.kubelet.hang_up()
        await setup.until(lambda turn=turn: setup.kubelet.registrations == turn)  # type: ignore[misc]

    assert len(set(setup.kubelet.endpoints)) == 4
    assert [path.name for path in setup.directory.glob("hami-*")] == setup.kubelet.endpoints[-1:], "used ones are gone"


async def test_a_refused_registration_is_tried_again_with_a_new_socket(setup: Setup) -> None:
    setup.kubelet.refuse = 2
    await setup.kubelet.hang_up()

    await setup.until(lambda: setup.kubelet.registrations == 2)

    assert len(set(setup.kubelet.endpoints)) == 4


async def test_sockets_that_a_killed_agent_left_are_removed(setup: Setup) -> None:
    left = setup.directory / socket_name(XPU)
    left.touch()
    other = setup.directory / socket_name("acme.com/other")
    other.touch()
    await setup.kubelet.hang_up()

    await setup.until(lambda: setup.kubelet.registrations == 2)

    assert (left.exists(), other.exists()) == (False, True)


async def test_a_dead_socket_of_kubelet_costs_nothing_once_somebody_listens(short_directory: Path) -> None:
    """After a power cut the old kubelet.sock is still there. gRPC alone would back off, up to two minutes."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(short_directory / "kubelet.sock"))
    setup = Setup(short_directory)
    running = asyncio.create_task(setup.registrar.run())
    await asyncio.sleep(3)
    (short_directory / "kubelet.sock").unlink()
    await setup.kubelet.start()
    began = asyncio.get_running_loop().time()

    await setup.until(lambda: setup.kubelet.lists)

    assert asyncio.get_running_loop().time() - began < 0.5
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await setup.kubelet.stop()


async def test_one_registration_is_enough(setup: Setup) -> None:
    await asyncio.sleep(1.3)

    assert setup.kubelet.registrations == 1


async def test_allocate_answers_cdi_names_and_deletes_the_old_files(setup: Setup) -> None:
    setup.cdi.write(["xpu-0", "xpu-1", "xpu-2"], ContainerEdits(env={"OLD": "owner"}))
    request = messages.AllocateRequest(container_requests=[messages.ContainerAllocateRequest(devices_ids=["xpu-1", "xpu-0"])])

    answer = await setup.kubelet.plugin.Allocate(request)

    (one,) = answer.container_responses
    assert [device.name for device in one.cdi_devices] == ["hami.io/slot=xpu-0", "hami.io/slot=xpu-1"]
    assert not any((one.envs, one.mounts, one.devices, one.annotations))
    assert setup.cdi.slots() == {"xpu-2"}


async def test_allocate_refuses_a_slot_it_does_not_have(setup: Setup) -> None:
    request = messages.AllocateRequest(container_requests=[messages.ContainerAllocateRequest(devices_ids=["xpu-9"])])

    with pytest.raises(grpc.aio.AioRpcError, match=r"acme\.com/xpu has no slots xpu-9"):
        await setup.kubelet.plugin.Allocate(request)


async def test_prestart_passes_the_ids_on_and_its_errors_back(setup: Setup) -> None:
    await setup.kubelet.plugin.PreStartContainer(messages.PreStartContainerRequest(devices_ids=["xpu-1", "xpu-0"]))
    assert setup.asked == [{"xpu-0", "xpu-1"}]

    with pytest.raises(grpc.aio.AioRpcError, match="not yet") as error:
        await setup.kubelet.plugin.PreStartContainer(messages.PreStartContainerRequest(devices_ids=["xpu-2"]))
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_preferred_slots_are_what_must_be_included_and_then_the_lowest(setup: Setup) -> None:
    request = messages.ContainerPreferredAllocationRequest(available_deviceIDs=["xpu-2", "xpu-1", "xpu-0"], must_include_deviceIDs=["xpu-2"], allocation_size=2)

    answer = await setup.kubelet.plugin.GetPreferredAllocation(messages.PreferredAllocationRequest(container_requests=[request]))

    assert list(answer.container_responses[0].deviceIDs) == ["xpu-2", "xpu-0"]


def test_a_socket_path_that_the_kernel_would_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than 107 bytes"):
        Registrar(_plugin(tmp_path), tmp_path / ("x" * 100))


def _plugin(directory: Path) -> SlotPlugin:
    async def nothing(resource: str, ids: frozenset[str]) -> None: ...

    return SlotPlugin(XPU, CdiDirectory(directory), nothing)


# -- pod-resources ------------------------------------------------------------------------------------------------


class Lister(resource_stubs.PodResourcesListerServicer):
    """Answers slowly and refuses every second call, as a rate-limited kubelet does."""

    def __init__(self) -> None:
        self.calls = 0
        self.refuse = True

    async def List(self, request: resources.ListPodResourcesRequest, context: Any) -> resources.ListPodResourcesResponse:  # noqa: N802
        self.calls += 1
        if self.refuse and self.calls % 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
        await asyncio.sleep(0.02)
        devices = [resources.ContainerDevices(resource_name=XPU, device_ids=[one]) for one in ("a", "b")]
        container = resources.ContainerResources(name="main", devices=devices)
        return resources.ListPodResourcesResponse(pod_resources=[resources.PodResources(name="web", namespace="ns", containers=[container])])


async def test_forty_calls_share_a_few_lists_and_outlast_the_rate_limit(short_directory: Path) -> None:
    lister = Lister()
    server = grpc.aio.server()
    resource_stubs.add_PodResourcesListerServicer_to_server(lister, server)
    server.add_insecure_port(f"unix:{short_directory}/pr.sock")
    await server.start()
    client = PodResourcesClient(f"{short_directory}/pr.sock")

    answers = await asyncio.gather(*(client.snapshot() for _ in range(40)))

    assert {(row.namespace, row.pod, row.container, row.ids) for rows in answers for row in rows} == {("ns", "web", "main", frozenset({"a", "b"}))}
    assert lister.calls <= 6
    await client.close()
    await server.stop(None)


async def test_a_kubelet_that_is_away_is_unavailable(short_directory: Path) -> None:
    client = PodResourcesClient(f"{short_directory}/nobody.sock")

    with pytest.raises(Unavailable, match="pod-resources does not answer: UNAVAILABLE"):
        await client.snapshot()
    await client.close()
