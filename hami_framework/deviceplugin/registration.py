# SPDX-License-Identifier: Apache-2.0
"""Being known to kubelet, at all times: serve, register, and look ten times a second whether that still holds.

kubelet wipes all sockets in its directory when it starts, and forgets a plugin when the ListAndWatch stream ends. After a
reboot, pods that it admits before we are registered fail for good (`real-cluster.md` §5f), so its socket is looked for at
80 ms. One rule covers a kubelet that restarted, a second agent that took our place and left, and a first start: whoever
has no open stream registers, and never twice with the same socket (see `door`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from hami_framework.deviceplugin.door import Door, Identity, identity_of
from hami_framework.deviceplugin.plugin import OPTIONS, SlotPlugin
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as messages
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as stubs

log = logging.getLogger(__name__)

API_VERSION = "v1beta1"
POLL_SECONDS = 0.08
CALL_SECONDS = 5.0
STREAM_SECONDS = 1.0
"""kubelet opens the stream within milliseconds of a registration; after so long without one, we register again."""


OF_ITS_OWN = [("grpc.use_local_subchannel_pool", 1)]
"""Channels to one address share a connection otherwise, and its back-off: a minute too late after a reboot that left a dead socket."""


def listening(path: Path) -> bool:
    """Whether somebody takes connections behind a unix socket. Costs microseconds, which a gRPC channel does not."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


class Registrar:
    """Serves one resource and keeps it registered, by kubelet's own socket."""

    def __init__(self, plugin: SlotPlugin, directory: Path, on_registered: Callable[[], None] = lambda: None) -> None:
        """`directory`: kubelet's device-plugins. `on_registered` is called after every registration."""
        self.plugin = plugin
        self.door = Door(directory, plugin.resource, lambda server: stubs.add_DevicePluginServicer_to_server(plugin, server))
        self._on_registered = on_registered
        self._kubelet = directory / "kubelet.sock"
        self._registered_with: Identity | None = None
        self._deserted: Identity | None = None
        """A `kubelet.sock` behind which nobody was: a kubelet that was killed, or the power cut, left it."""
        self._used = False
        """kubelet has been told of the socket that is served now."""
        self._tried_at = float("-inf")
        self._complaint = ""

    async def run(self) -> None:
        """For ever; stops serving when cancelled."""
        try:
            while True:
                await self.tend()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await self.stop()

    async def tend(self) -> None:
        """One look: serve if our socket is gone, register if kubelet does not know us."""
        kubelet = identity_of(self._kubelet)
        if kubelet is None:
            return
        if kubelet == self._deserted:
            if not listening(self._kubelet):
                return
            self._deserted = None
        waited = time.monotonic() - self._tried_at
        if self.door.open and kubelet == self._registered_with and (self.plugin.streams or waited <= STREAM_SECONDS):
            return
        if self._used or not self.door.open:
            await self.door.renew()
            self._used = False
        await self._register(kubelet)

    async def stop(self) -> None:
        """Stop serving and remove the socket."""
        await self.door.close()

    async def _register(self, kubelet: Identity) -> None:
        self._tried_at = time.monotonic()
        self._registered_with = None
        request = messages.RegisterRequest(version=API_VERSION, endpoint=self.door.socket.name, resource_name=self.plugin.resource, options=OPTIONS)
        async with grpc.aio.insecure_channel(f"unix:{self._kubelet}", OF_ITS_OWN) as channel:
            try:
                await stubs.RegistrationStub(channel).Register(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self._used = error.code() is not grpc.StatusCode.UNAVAILABLE  # nobody there: nobody has heard of our socket
                self._deserted = None if self._used else kubelet
                self._complain(f"{error.code().name}: {error.details()}")
                return
        self._used, self._registered_with, self._complaint = True, kubelet, ""
        self._on_registered()
        log.info("registered %s with kubelet: %d slots", self.plugin.resource, len(self.plugin.slots))

    def _complain(self, words: str) -> None:
        """Say why kubelet did not register us, once per reason: a dead kubelet is asked many times a second."""
        level = logging.DEBUG if words == self._complaint else logging.WARNING
        self._complaint = words
        log.log(level, "kubelet did not register %s: %s", self.plugin.resource, words)
