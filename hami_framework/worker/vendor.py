# SPDX-License-Identifier: Apache-2.0
"""One vendor on this node: keeps its worker running, knows its devices, and puts it in quarantine when it misbehaves.

Quarantine means: the devices last seen are unhealthy, with the reason; the worker is started again with a growing pause;
the first good discovery ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hami_framework.codec.resources import renamed
from hami_framework.errors import PluginError
from hami_framework.model import Device, Grant, Health, Host, VendorInfo, device_name
from hami_framework.plugins import Source
from hami_framework.worker.process import Broken, WorkerProcess
from hami_framework.worker.terms import NO_TERMS, NodeTerms, on_terms

log = logging.getLogger(__name__)

HEALTH_SECONDS = 1.0
"""Health changes must reach kubelet within two seconds; half of that is left for the way there."""
DISCOVERY_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
FAILURES_BEFORE_QUARANTINE = 3
"""One pod's grant that a hook cannot serve is that pod's problem; so many different pods in a row are the vendor's."""


class VendorWorker:
    """The one place that talks to a vendor's worker. `on_change` is called in the loop whenever `info` or `devices` changed."""

    def __init__(
        self,
        source: Source,
        directory: Path,
        host: Host,
        environment: Mapping[str, str],
        on_change: Callable[[], None],
        rename: Mapping[str, str],
        user: int | None = None,
        terms: NodeTerms = NO_TERMS,
    ) -> None:
        self.name = source.vendor
        self.info = VendorInfo(name=source.vendor, package=source.package, version=source.version, state="starting")
        self.devices: tuple[Device, ...] = ()
        self._source = source
        self._directory = directory
        self._host = host
        self._environment = environment
        self._on_change = on_change
        self._rename = rename
        self._user = user
        self._terms = terms
        self._process: WorkerProcess | None = None
        self._failing: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.settled = asyncio.Event()
        """Set once the first attempt to start has ended, well or badly."""

    def start(self) -> None:
        """Begin to keep the worker running."""
        self._task = asyncio.create_task(self._run(), name=f"worker-{self.name}")

    async def stop(self) -> None:
        """End the worker and stop keeping it running."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._drop_process()

    async def call_for(self, hook: str, grant: Grant) -> Any:
        """Put an owner's grant to the hook. Raises `PluginError`, and quarantines the vendor where the fault is its own."""
        devices = tuple(device for wanted in grant.devices for device in self.devices if device.id == wanted.device_id)
        process = self._process
        if process is None:
            raise PluginError(self.name, hook, f"the vendor's worker is not running: {self.info.reason or self.info.state}")
        try:
            result = await process.call(hook, grant=grant, devices=devices)
        except Broken as error:
            self._broken(error)
            raise
        except PluginError as error:
            self._failing.add(grant.owner.uid)
            if len(self._failing) >= FAILURES_BEFORE_QUARANTINE:
                self._broken(error)
            raise
        self._failing.discard(grant.owner.uid)
        return result

    async def usage(self) -> Any:
        """What `hami_usage` answers for the devices, or None."""
        if self._process is None:
            return None
        return await self._process.call("hami_usage", host=self._host, devices=self.devices)

    async def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                process = self._process = await WorkerProcess.start(self._source, self._directory, self._environment, self._user)
                await self._watch(process)
            except PluginError as error:
                was_ready = self.info.state == "ready"
                self._quarantine(error)
                pause = FIRST_PAUSE_SECONDS if was_ready else min(pause * 2, LONGEST_PAUSE_SECONDS)
            finally:
                self.settled.set()
            self._drop_process()
            self._wake.clear()
            await asyncio.sleep(pause)

    async def _watch(self, process: WorkerProcess) -> None:
        """Discover, then look after health, until something breaks (raises `PluginError`)."""
        loop = asyncio.get_running_loop()
        has_health = "hami_health" in process.hello.hooks
        next_discovery = 0.0
        while True:
            if not has_health or loop.time() >= next_discovery:
                self._discovered(process, await process.call("hami_discover", host=self._host) or ())
                next_discovery = loop.time() + DISCOVERY_SECONDS
            if has_health and self.devices:
                self._checked(await process.call("hami_health", host=self._host, devices=self.devices) or {})
            self.settled.set()
            try:
                async with asyncio.timeout(HEALTH_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue
            raise PluginError(self.name, "(quarantine)", self.info.reason)

    def _discovered(self, process: WorkerProcess, devices: tuple[Device, ...]) -> None:
        info = self._renamed(process.hello.info or self.info)
        named = tuple(self._named(device) for device in devices)
        twice = {device.id for device in named if sum(other.id == device.id for other in named) > 1}
        if twice:
            raise PluginError(self.name, "hami_discover", f"reported the device id {sorted(twice)[0]!r} more than once")
        self._update(info, named)

    def _checked(self, health: Mapping[str, Health]) -> None:
        changed = tuple(msgspec.structs.replace(device, health=health.get(device.id, device.health)) for device in self.devices)
        self._update(self.info, changed)

    def _renamed(self, info: VendorInfo) -> VendorInfo:
        """What the vendor says of itself, under the operator's resource names: those that pods write and kubelet counts."""
        return msgspec.structs.replace(info, resources=tuple(renamed(family, self._rename) for family in info.resources))

    def _named(self, device: Device) -> Device:
        """The device with what the core fills in: its vendor, its DNS label, and the operator's terms."""
        owned = on_terms(msgspec.structs.replace(device.device_class, vendor=self.name), self._terms)
        return msgspec.structs.replace(device, device_class=owned, name=device.name or device_name(self.name, device.id))

    def _broken(self, error: PluginError) -> None:
        self._quarantine(error)
        self._drop_process()
        self._wake.set()

    def _quarantine(self, error: PluginError) -> None:
        reason = f"{error.hook}: {error.problem}"
        if error.hook != "(quarantine)" and self.info.reason != reason:
            log.warning("%s; its devices are unhealthy until it behaves again", error)
        elif error.hook == "(quarantine)":
            reason = self.info.reason
        self._failing.clear()
        unhealthy = Health(state="unhealthy", reason=f"vendor {self.name} in quarantine: {reason}")
        info = msgspec.structs.replace(self.info, state="quarantined", reason=reason)
        self._update(info, tuple(msgspec.structs.replace(device, health=unhealthy) for device in self.devices))

    def _update(self, info: VendorInfo, devices: tuple[Device, ...]) -> None:
        if (info, devices) != (self.info, self.devices):
            self.info, self.devices = info, devices
            self._on_change()

    def _drop_process(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None
