# SPDX-License-Identifier: Apache-2.0
"""Being known to kubelet, at all times: serve, register, and look ten times a second whether that still holds.

kubelet wipes all sockets in its directory when it starts, and forgets a plugin when the ListAndWatch stream ends. After a
reboot, pods that it admits before we are registered fail for good (`real-cluster.md` §5f), so its socket is looked for at
100 ms. One rule covers a kubelet that restarted, a second agent that took our place and left, and a first start: whoever
has no open stream registers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from hami_framework.deviceplugin.plugin import OPTIONS, SlotPlugin
from hami_framework.deviceplugin.slots import slot_prefix
from hami_framework.errors import ConfigError
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as messages
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as stubs

log = logging.getLogger(__name__)

API_VERSION = "v1beta1"
POLL_SECONDS = 0.08
CALL_SECONDS = 5.0
STREAM_SECONDS = 1.0
"""kubelet opens the stream within milliseconds of a registration; after so long without one, we register again."""

STOP_SECONDS = 2.0

LONGEST_SOCKET_PATH = 107
"""`sun_path` of a unix socket, less the closing zero."""

Identity = tuple[int, int]


def socket_name(resource: str) -> str:
    """File name of a resource's socket in kubelet's plugin directory."""
    return f"hami-{slot_prefix(resource)}.sock"


def identity_of(path: Path) -> Identity | None:
    """What tells one incarnation of a socket file from the next; None when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_ctime_ns)


class Registrar:
    """Serves one resource and keeps it registered."""

    def __init__(self, plugin: SlotPlugin, directory: Path, on_registered: Callable[[], None] = lambda: None) -> None:
        """`on_registered` is called after every registration."""
        self.plugin = plugin
        self._on_registered = on_registered
        self._directory = directory
        self._socket = directory / socket_name(plugin.resource)
        if len(str(self._socket).encode()) > LONGEST_SOCKET_PATH:
            raise ConfigError(f"socket path {self._socket} is longer than {LONGEST_SOCKET_PATH} bytes; choose a shorter kubelet directory")
        self._kubelet = directory / "kubelet.sock"
        self._server: grpc.aio.Server | None = None
        self._own: Identity | None = None
        self._registered_with: Identity | None = None
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
        if self._server is None or identity_of(self._socket) != self._own:
            await self._serve()
        waited = time.monotonic() - self._tried_at
        if kubelet != self._registered_with or (self.plugin.streams == 0 and waited > STREAM_SECONDS):
            await self._register(kubelet)

    async def stop(self) -> None:
        """Stop serving and remove the socket."""
        server, self._server = self._server, None
        if server is not None:
            await _stopped(server)
            if identity_of(self._socket) == self._own:
                self._socket.unlink(missing_ok=True)

    async def _serve(self) -> None:
        """A new server on a new socket; a predecessor's streams end with it."""
        if self._server is not None:
            await _stopped(self._server)
        self._socket.unlink(missing_ok=True)
        server = grpc.aio.server()
        stubs.add_DevicePluginServicer_to_server(self.plugin, server)
        server.add_insecure_port(f"unix:{self._socket}")
        await server.start()
        self._server, self._own, self._registered_with = server, identity_of(self._socket), None

    async def _register(self, kubelet: Identity) -> None:
        self._tried_at = time.monotonic()
        request = messages.RegisterRequest(version=API_VERSION, endpoint=self._socket.name, resource_name=self.plugin.resource, options=OPTIONS)
        async with grpc.aio.insecure_channel(f"unix:{self._kubelet}") as channel:
            try:
                await stubs.RegistrationStub(channel).Register(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self._registered_with = None
                self._complain(f"{error.code().name}: {error.details()}")
                return
        self._registered_with, self._complaint = kubelet, ""
        self._on_registered()
        log.info("registered %s with kubelet: %d slots", self.plugin.resource, len(self.plugin.slots))

    def _complain(self, words: str) -> None:
        """Say why kubelet did not register us, once per reason: a dead kubelet is asked many times a second."""
        level = logging.DEBUG if words == self._complaint else logging.WARNING
        self._complaint = words
        log.log(level, "kubelet did not register %s: %s", self.plugin.resource, words)


async def _stopped(server: grpc.aio.Server) -> None:
    """Stop a server, and do not wait for ever: what it served is over either way."""
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await server.stop(None)
    except TimeoutError:
        log.warning("a gRPC server did not stop within %.0f s; going on without it", STOP_SECONDS)
