# SPDX-License-Identifier: Apache-2.0
"""One gRPC server on a socket with a name that nobody had before it.

kubelet 1.37 knows a plugin by the path of its socket. A second registration of a path that it still holds for connected is
refused, and makes it forget to clear up when the first connection ends: from then on it refuses that path until kubelet itself
restarts (`real-cluster.md` §5f; k8s.io/kubernetes v1.37.2 devicemanager: connectClient, PluginConnected). A path that is
used once cannot be held against us.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import grpc

from hami_framework.deviceplugin.slots import slot_prefix
from hami_framework.errors import ConfigError

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0

LONGEST_SOCKET_PATH = 107
"""`sun_path` of a unix socket, less the closing zero."""

Identity = tuple[int, int]


def identity_of(path: Path) -> Identity | None:
    """What tells one incarnation of a socket file from the next; None when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_ctime_ns)


def socket_name(resource: str) -> str:
    """A file name for a socket of this resource, another one at each call."""
    return f"hami-{slot_prefix(resource)}-{os.urandom(3).hex()}.sock"


class Door:
    """Where kubelet reaches the plugin of one resource. `services` adds what is served to a server."""

    def __init__(self, directory: Path, resource: str, services: Callable[[grpc.aio.Server], None]) -> None:
        """Raises ConfigError when the kernel would not take the path."""
        self._directory = directory
        self._resource = resource
        self._services = services
        self._server: grpc.aio.Server | None = None
        self._own: Identity | None = None
        self.socket = directory / socket_name(resource)
        if len(str(self.socket).encode()) > LONGEST_SOCKET_PATH:
            raise ConfigError(f"socket path {self.socket} is longer than {LONGEST_SOCKET_PATH} bytes; choose a shorter kubelet directory")

    @property
    def open(self) -> bool:
        """Whether somebody who looks for the socket finds ours: kubelet wipes its directory when it starts."""
        return self._server is not None and identity_of(self.socket) == self._own

    async def renew(self) -> None:
        """Serve on a new socket; streams of the old one end first, and sockets that a killed agent left go."""
        await self.close()
        for left in self._directory.glob(f"hami-{slot_prefix(self._resource)}*.sock"):
            left.unlink(missing_ok=True)
        self.socket = self._directory / socket_name(self._resource)
        server = grpc.aio.server()
        self._services(server)
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        self._server, self._own = server, identity_of(self.socket)

    async def close(self) -> None:
        """Stop serving and remove the socket. What was served is over either way: nobody waits for ever."""
        server, self._server = self._server, None
        if server is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await server.stop(None)
        except TimeoutError:
            log.warning("a gRPC server did not stop within %.0f s; going on without it", STOP_SECONDS)
        if identity_of(self.socket) == self._own:
            self.socket.unlink(missing_ok=True)
