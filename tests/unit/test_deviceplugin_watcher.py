# SPDX-License-Identifier: Apache-2.0
"""Found by kubelet's plugin watcher: real gRPC between the plugin and the smallest possible watcher. And one agent at a time."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from hami_framework.deviceplugin import watcher as watching
from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.plugin import SlotPlugin
from hami_framework.deviceplugin.single import only_agent, say_ready
from hami_framework.deviceplugin.slots import Slot
from hami_framework.deviceplugin.watcher import WatchedRegistrar
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as plugin_messages
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as plugin_stubs
from hami_framework.kubelet_api import pluginregistration_v1_pb2 as messages
from hami_framework.kubelet_api import pluginregistration_v1_pb2_grpc as stubs

XPU = "acme.com/xpu"


class Watcher:
    """Takes up each socket that appears once, as kubelet 1.37 does: GetInfo, ListAndWatch, NotifyRegistrationStatus."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.known: set[str] = set()
        self.lists: list[list[str]] = []
        self.refuse = False
        self.channel: Any = None

    async def look(self) -> None:
        for path in self.directory.glob("*.sock"):
            if path.name not in self.known:
                self.known.add(path.name)
                await self.take_up(path)

    async def take_up(self, path: Path) -> None:
        await self.drop()
        self.channel = grpc.aio.insecure_channel(f"unix:{path}")
        registration = stubs.RegistrationStub(self.channel)
        info = await registration.GetInfo(messages.InfoRequest(), timeout=1)
        assert (info.type, info.name, info.endpoint, list(info.supported_versions)) == ("DevicePlugin", XPU, "", ["v1beta1"])
        if not self.refuse:
            plugin = plugin_stubs.DevicePluginStub(self.channel)
            assert (await plugin.GetDevicePluginOptions(plugin_messages.Empty())).pre_start_required
            self.reading = asyncio.create_task(self._read(plugin))
        await registration.NotifyRegistrationStatus(messages.RegistrationStatus(plugin_registered=not self.refuse, error="no" if self.refuse else ""))

    async def _read(self, plugin: Any) -> None:
        try:
            async for answer in plugin.ListAndWatch(plugin_messages.Empty()):
                self.lists.append([device.ID for device in answer.devices])
        except grpc.aio.AioRpcError:
            return

    async def drop(self) -> None:
        if self.channel is not None:
            await self.channel.close()
            self.channel = None


class Setup:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubelet = Watcher(directory)
        self.registered = 0

        async def prepare(resource: str, ids: frozenset[str]) -> None: ...

        plugin = SlotPlugin(XPU, CdiDirectory(directory / "cdi"), prepare)
        plugin.offer([Slot(id="xpu-0"), Slot(id="xpu-1")])
        self.registrar = WatchedRegistrar(plugin, directory, self.count)

    def count(self) -> None:
        self.registered += 1

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                await self.kubelet.look()
                await asyncio.sleep(0.01)


@pytest.fixture
async def setup(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr(watching, "STREAM_SECONDS", 0.3)
    setup = Setup(short_directory)
    running = asyncio.create_task(setup.registrar.run())
    yield setup
    await setup.kubelet.drop()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not list(short_directory.glob("*.sock")), "nothing is left for kubelet to dial"


async def test_it_is_found_and_tells_its_slots(setup: Setup) -> None:
    await setup.until(lambda: setup.kubelet.lists)

    assert setup.kubelet.lists == [["xpu-0", "xpu-1"]]
    assert setup.registered == 1


async def test_a_socket_that_kubelet_has_not_seen_yet_stays(setup: Setup) -> None:
    await asyncio.sleep(0.8)

    assert len(list(setup.directory.glob("*.sock"))) == 1


async def test_kubelet_drops_it_and_finds_a_new_socket(setup: Setup) -> None:
    await setup.until(lambda: setup.kubelet.lists)
    await setup.kubelet.drop()

    await setup.until(lambda: len(setup.kubelet.lists) == 2)

    assert len(setup.kubelet.known) == 2


async def test_a_refusal_is_tried_again_with_a_new_socket(setup: Setup) -> None:
    setup.kubelet.refuse = True
    await setup.until(lambda: setup.kubelet.known)
    setup.kubelet.refuse = False

    await setup.until(lambda: setup.kubelet.lists)

    assert setup.registered == 1


# -- one agent at a time, and a word to the service manager -------------------------------------------------------

HOLDER = """
import asyncio, pathlib, sys
from hami_framework.deviceplugin.single import only_agent

async def hold():
    async with only_agent(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(hold())
"""


async def test_a_second_agent_waits_until_the_first_one_is_killed(tmp_path: Path) -> None:
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, str(tmp_path), stdout=asyncio.subprocess.PIPE)
    assert first.stdout is not None
    assert await first.stdout.readline() == b"held\n"

    async def second() -> bool:
        async with only_agent(tmp_path):
            return True

    waiting = asyncio.create_task(second())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    first.kill()
    await first.wait()

    async with asyncio.timeout(2):
        assert await waiting


def test_the_service_manager_is_told_once_and_only_where_there_is_one(tmp_path: Path) -> None:
    say_ready({})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        say_ready({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(100) == b"READY=1"
    say_ready({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
