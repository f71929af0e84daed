# SPDX-License-Identifier: Apache-2.0
"""The other way to be known to kubelet: its plugin watcher finds our socket in `plugins_registry` and asks who we are.

Source: k8s.io/kubelet pkg/apis/pluginregistration/v1/api.proto. kubelet looks at the directory one second after it has begun to
admit pods, so after a reboot this way is always too late (`real-cluster.md` §5g): `registration` is the default, and this is for
nodes where a plugin may write to `plugins_registry` only. kubelet finds a socket again by itself when it restarts; a stream that
ended while kubelet runs is answered with a new socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from hami_framework.deviceplugin.door import Door
from hami_framework.deviceplugin.plugin import SlotPlugin
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as plugin_stubs
from hami_framework.kubelet_api import pluginregistration_v1_pb2 as messages
from hami_framework.kubelet_api import pluginregistration_v1_pb2_grpc as stubs

log = logging.getLogger(__name__)

TYPE = "DevicePlugin"
"""`DevicePlugin` in k8s.io/kubelet pkg/apis/pluginregistration/v1/constants.go."""
API_VERSION = "v1beta1"
POLL_SECONDS = 0.1
STREAM_SECONDS = 3.0
"""A kubelet that knows us and reads nothing for so long has dropped us. It drops and takes up again by itself within 2 s when it starts."""

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class WatchedRegistrar(stubs.RegistrationServicer):
    """Serves one resource where kubelet's plugin watcher finds it, and keeps it found."""

    def __init__(self, plugin: SlotPlugin, directory: Path, on_registered: Callable[[], None] = lambda: None) -> None:
        """`directory`: kubelet's plugins_registry. `on_registered` is called after every registration."""
        self.plugin = plugin
        self.door = Door(directory, plugin.resource, self._serve_both)
        self._directory = directory
        self._on_registered = on_registered
        self._asked = False
        """kubelet knows the socket that is served now."""
        self._quiet_since = float("-inf")

    async def run(self) -> None:
        """For ever; stops serving when cancelled."""
        try:
            while True:
                await self.tend()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await self.stop()

    async def tend(self) -> None:
        """One look: a socket that is gone, or that kubelet knows and has dropped, is replaced."""
        if not self._directory.is_dir():
            return  # kubelet makes it
        if not self._asked or self.plugin.streams:
            self._quiet_since = time.monotonic()
        if not self.door.open or time.monotonic() - self._quiet_since > STREAM_SECONDS:
            self._asked = False
            await self.door.renew()

    async def stop(self) -> None:
        """Stop serving and remove the socket."""
        await self.door.close()

    async def GetInfo(self, request: messages.InfoRequest, context: Context) -> messages.PluginInfo:  # noqa: N802
        """Who we are; no endpoint means: at this very socket."""
        self._asked, self._quiet_since = True, time.monotonic()
        return messages.PluginInfo(type=TYPE, name=self.plugin.resource, supported_versions=[API_VERSION])

    async def NotifyRegistrationStatus(self, request: messages.RegistrationStatus, context: Context) -> messages.RegistrationStatusResponse:  # noqa: N802
        """What came of it. A refusal is tried again with a new socket: kubelet itself would not."""
        if request.plugin_registered:
            self._on_registered()
            log.info("registered %s with kubelet's plugin watcher: %d slots", self.plugin.resource, len(self.plugin.slots))
        else:
            log.warning("kubelet's plugin watcher did not register %s: %s", self.plugin.resource, request.error)
        return messages.RegistrationStatusResponse()

    def _serve_both(self, server: grpc.aio.Server) -> None:
        stubs.add_RegistrationServicer_to_server(self, server)
        plugin_stubs.add_DevicePluginServicer_to_server(self.plugin, server)
