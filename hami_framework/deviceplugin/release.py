# SPDX-License-Identifier: Apache-2.0
"""Undoing what was made for containers that are gone. There is no call for it, so the agent compares what it made with what is.

A record is over when its pod has ended, or its object is gone and its containers were seen to stop; a pod whose object
vanished while a container still ran (a forced deletion) gets a grace, and counts as there while kubelet lists it.
A finished init container is undone when a later container of its pod starts. Order: vendor hook, CDI file, directory,
record; a failure at any step leaves the record, and the whole is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path
from weakref import WeakValueDictionary

from msgspec import structs

from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.grants import PodBook
from hami_framework.deviceplugin.ports import PodResources, Workers
from hami_framework.deviceplugin.state import Key, Record, StateFile
from hami_framework.errors import PluginError, Unavailable
from hami_framework.model import ContainerGrant, PodGrant

log = logging.getLogger(__name__)

LONGEST_BACKOFF_SECONDS = 60.0


def container_directory(state_directory: Path, uid: str, container: str) -> Path:
    """The directory that is private to one container."""
    return state_directory / "containers" / f"{uid}_{container}"


class Releaser:
    """The reconcile loop, and the same on demand before a new grant takes a device."""

    def __init__(
        self,
        *,
        state_directory: Path,
        state: StateFile,
        pods: PodBook,
        pod_resources: PodResources,
        workers: Workers,
        cdi: CdiDirectory,
        grace_seconds: float = 30.0,
        interval_seconds: float = 1.0,
    ) -> None:
        self._state_directory = state_directory
        self._state = state
        self._pods = pods
        self._pod_resources = pod_resources
        self._workers = workers
        self._cdi = cdi
        self._grace_seconds = grace_seconds
        self._interval_seconds = interval_seconds
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._retry: dict[Key, tuple[float, float]] = {}

    async def run(self) -> None:
        """Reconcile whenever the pods change and at least every interval."""
        while True:
            await self.reconcile()
            await self._pods.changed(self._interval_seconds)

    async def reconcile(self) -> None:
        """Release every record that is over; failures are logged and tried again later."""
        for record in list(self._state.records.values()):
            if self._retry.get(record.key, (0.0, 0.0))[0] <= time.monotonic() and await self._over(record):
                await self._try(record)

    async def make_room(self, grant: PodGrant, container: ContainerGrant) -> None:
        """Before a grant takes effect: undo ended pods on its devices, and the finished init containers of its own pod."""
        wanted = {device.device_id for device in container.devices}
        order = [one.container for one in grant.containers]
        earlier = set(order[: order.index(container.container)])
        for record in list(self._state.records.values()):
            own = record.owner.uid == grant.owner.uid
            if own and record.live and record.kind == "init" and record.container in earlier:
                await self._release(record)
            elif not own and wanted & {device.device_id for device in record.devices} and self._pods.fate(record.owner.uid) == "ended":
                await self._try(record)

    async def _over(self, record: Record) -> bool:
        fate = self._pods.fate(record.owner.uid)
        if fate != "vanished":
            return fate == "ended"
        if self._pods.absent_seconds(record.owner.uid) < self._grace_seconds:
            return False
        try:
            listed = await self._pod_resources.snapshot()
        except Unavailable:
            return False
        owner = record.owner
        return not any((row.namespace, row.pod) == (owner.namespace, owner.name) and row.ids & set(record.slots) for row in listed)

    async def _try(self, record: Record) -> None:
        try:
            await self._release(record)
        except (PluginError, OSError) as error:
            pause = min(LONGEST_BACKOFF_SECONDS, max(1.0, 2 * self._retry.get(record.key, (0.0, 0.0))[1]))
            self._retry[record.key] = (time.monotonic() + pause, pause)
            log.error("releasing container %s of %s/%s: %s; again in %.0f s", record.container, record.owner.namespace, record.owner.name, error, pause)
        else:
            self._retry.pop(record.key, None)

    async def _release(self, record: Record) -> None:
        """Undo one record. A finished init container of a live pod leaves a mark, see `identity.starting`."""
        lock = self._locks.setdefault(record.key, asyncio.Lock())
        async with lock:
            if self._state.records.get(record.key) != record:
                return
            for grant in record.leads:
                await self._workers.release(grant.devices[0].vendor, grant)
            if self._state.records.get(record.key) == record:
                self._forget(record)
                await self._state.durable()

    def _forget(self, record: Record) -> None:
        for slot in record.slots:
            if self._state.holder(slot) in (None, record):
                self._cdi.delete(slot)
        if self._pods.fate(record.owner.uid) == "alive":
            self._state.put(structs.replace(record, phase="released", leads=()))
        else:
            self._state.remove(record.key)
        if not any(one.container == record.container and one.live for one in self._state.of_pod(record.owner.uid)):
            shutil.rmtree(container_directory(self._state_directory, record.owner.uid, record.container), ignore_errors=True)
        log.info("released container %s of %s/%s: %s", record.container, record.owner.namespace, record.owner.name, ", ".join(record.slots))


def sweep(cdi: CdiDirectory, state: StateFile) -> None:
    """At start: delete CDI files of slots that nobody holds, left by a kill between two steps."""
    held = {slot for record in state.records.values() if record.live for slot in record.slots}
    for slot in cdi.slots() - held:
        cdi.delete(slot)
