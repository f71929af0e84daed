# SPDX-License-Identifier: Apache-2.0
"""Every second: are the interceptors' books true, and is what they hold to what was granted?

For each container that has an interceptor: a heartbeat, its dead processes taken out, its books checked and compared with
what the driver measures, a changed grant put into effect, shares lent and costs corrected. What is wrong for two looks in a
row becomes a line in the log, an event of the pod and a metric, once for as long as it lasts; by setting the container is
suspended (which its library obeys; a process that goes round the library does not) or its pod evicted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from hami_framework.deviceplugin import attribution, drift, enforcing, fence
from hami_framework.deviceplugin.drift import Books
from hami_framework.deviceplugin.errands import Errands
from hami_framework.deviceplugin.grants import PodBook
from hami_framework.deviceplugin.limit_changes import LimitChanges
from hami_framework.deviceplugin.ports import Cluster, Json, Workers
from hami_framework.deviceplugin.reclaiming import Reclaimer
from hami_framework.deviceplugin.state import Record, StateFile
from hami_framework.deviceplugin.time_shares import TimeShares
from hami_framework.deviceplugin.watched import Watched
from hami_framework.enforcement.control import Control
from hami_framework.enforcement.policy import Compute
from hami_framework.errors import HamiError, PluginError
from hami_framework.model import Usage

log = logging.getLogger(__name__)

OnBypass = Literal["report", "suspend", "evict"]

LOOK_SECONDS = 1.0
LOOKS = 2
"""What is found once may have been caught in the middle of a change."""
ERRAND_SECONDS = 0.3
"""A look waits so long for what it began."""
EVICTION_PAUSES_SECONDS = (1.0, 5.0, 15.0, 30.0, 60.0)


class Reconciler:
    """The loop, and what it knows about each container. `watched` is for the metrics."""

    def __init__(
        self,
        *,
        node: str,
        state_directory: Path,
        state: StateFile,
        pods: PodBook,
        workers: Workers,
        cluster: Cluster,
        overcommit: fence.Overcommit,
        on_bypass: OnBypass = "report",
        compute: Compute = "fixed",
    ) -> None:
        self._state_directory = state_directory
        self._state = state
        self._pods = pods
        self._workers = workers
        self._cluster = cluster
        self._on_bypass = on_bypass
        self.watched: dict[drift.Key, Watched] = {}
        self._baselines: dict[str, int] = {}
        self._complaints: dict[drift.Key, str] = {}
        self._looked = time.monotonic()
        self._errands = Errands()
        self._reclaimer = Reclaimer(self._errands)
        self._shares = TimeShares()
        self._limits = LimitChanges(
            node=node,
            state_directory=state_directory,
            state=state,
            pods=pods,
            workers=workers,
            cluster=cluster,
            overcommit=overcommit,
            compute=compute,
        )

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                began = time.monotonic()
                await self.look()
                await asyncio.sleep(max(0.1, LOOK_SECONDS - (time.monotonic() - began)))
        finally:
            await self.close()

    async def close(self) -> None:
        """End what is still under way."""
        await self._errands.close()

    async def look(self) -> None:
        """One look at everything. What fails for one container is logged and does not stop the others."""
        self._find()
        if not self.watched:
            return
        await self._limits.look(self.watched)
        measured = await self._measured()
        seconds, self._looked = time.monotonic() - self._looked, time.monotonic()
        live = [watched for watched in list(self.watched.values()) if await self._look_at(watched)]
        books = [self._books(watched) for watched in live]
        known = [one for one in books if one is not None]
        found = await asyncio.to_thread(self._drifts, measured, known)
        for watched in live:
            self._judge(watched, [one for one in found if one.key == watched.key])
        self._shares.lend(live)
        self._shares.correct(live, measured, self._state.records.values(), seconds)
        await self._errands.settle(ERRAND_SECONDS)

    # -- Which containers -----------------------------------------------------------------------------------------

    def _find(self) -> None:
        """The containers that have an interceptor now."""
        live: dict[drift.Key, Record] = {}
        for record in self._state.records.values():
            key = (record.owner.uid, record.container)
            if record.phase == "ready" and (key not in live or live[key].at < record.at):
                live[key] = record
        self.watched = {key: one for key, one in self.watched.items() if key in live and live[key].at == one.since and one.directory.exists()}
        for key, record in live.items():
            directory = enforcing.enforcement_directory(self._state_directory, *key)
            if key not in self.watched and (directory / enforcing.FILE).exists():
                self.watched[key] = Watched(record.owner, record.container, directory, record.at)
        self._reclaimer.forget_all_but(self.watched)

    async def _look_at(self, watched: Watched) -> bool:
        try:
            look = await asyncio.to_thread(watched.look)
            watched.note(look)
        except (HamiError, OSError) as error:
            if watched.directory.exists() and self._complaints.get(watched.key) != str(error):
                self._complaints[watched.key] = str(error)
                log.error("%s: %s", watched.name, error)
            return False
        self._complaints.pop(watched.key, None)
        if look.usage is not None:
            self._reclaimer.take_out(watched, look.usage.dead)
        return True

    # -- Books against driver -------------------------------------------------------------------------------------

    async def _measured(self) -> dict[str, Usage]:
        """What the drivers measure, by device. A vendor that cannot be asked is missing: its worker's own watch says so already."""
        grants = [self._state.grants[uid] for uid, _ in self.watched if uid in self._state.grants]
        vendors = {device.vendor for grant in grants for container in grant.containers for device in container.devices}
        found: dict[str, Usage] = {}
        for vendor in vendors & self._workers.vendors.keys():
            try:
                found |= {usage.device_id: usage for usage in await self._workers.usage(vendor)}
            except PluginError as error:
                log.debug("nothing is measured by %s: %s", vendor, error)
        return found

    def _books(self, watched: Watched) -> Books | None:
        if watched.last is None or watched.last.usage is None:
            return None
        return Books(key=watched.key, device_ids=watched.device_ids, usage=watched.last.usage)

    def _drifts(self, measured: Mapping[str, Usage], books: Sequence[Books]) -> list[drift.Drift]:
        uids = {one.key[0] for one in books}
        found: list[drift.Drift] = []
        totals = {}
        for device_id, usage in measured.items():
            if usage.processes is not None:
                owned = ((one.pid, one.memory_bytes, attribution.party(one.pid, uids)) for one in usage.processes)
                found += drift.by_process(device_id, [(pid, memory, party) for pid, memory, party in owned if party is not None], books)
            elif usage.memory_used_bytes is not None:
                totals[device_id] = usage.memory_used_bytes
        self._baselines = drift.baselines(self._baselines, totals, books)
        alone = (drift.by_device(device_id, used, self._baselines[device_id], books) for device_id, used in totals.items())
        return found + [one for one in alone if one is not None]

    def _judge(self, watched: Watched, drifts: Sequence[drift.Drift]) -> None:
        assert watched.last is not None
        found: dict[tuple[str, object], str] = {(one.kind, (one.device_id, one.pid)): one.message for one in drifts}
        found |= {(one.kind, (one.device, one.slot)): one.message for one in watched.last.findings}
        for kind, message in watched.lasting(found, LOOKS):
            log.warning("%s: %s: %s", watched.name, kind, message)
            pod = self._pods.get(watched.owner.uid)
            if pod is not None:
                self._errands.send(self._cluster.warn(pod, "LimitBypassed", f"container {watched.container}: {kind}: {message}"))
            self._act(watched, kind)

    def _act(self, watched: Watched, kind: str) -> None:
        if self._on_bypass == "suspend":
            watched.say(Control.suspend)
            log.warning("%s is suspended because of %s, until it is started again", watched.name, kind)
        elif self._on_bypass == "evict" and (pod := self._pods.get(watched.owner.uid)) is not None:
            self._errands.send(self._evict(watched, pod, kind))

    async def _evict(self, watched: Watched, pod: Json, kind: str) -> None:
        """A disruption budget, or an API server that is away, may forbid it for now."""
        for pause in EVICTION_PAUSES_SECONDS:
            try:
                await self._cluster.evict(pod)
            except HamiError as error:
                log.error("%s is not evicted: %s; again in %.0f s", watched.name, error, pause)
                await asyncio.sleep(pause)
                if self._pods.fate(watched.owner.uid) != "alive":
                    return
            else:
                log.warning("%s is evicted because of %s", watched.name, kind)
                return
