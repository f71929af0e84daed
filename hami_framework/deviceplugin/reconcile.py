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
import os
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from msgspec import structs

from hami_framework.deviceplugin import attribution, drift, enforcing, fence, limits
from hami_framework.deviceplugin.drift import Books
from hami_framework.deviceplugin.grants import GrantRefused, PodBook, describe, grant_of
from hami_framework.deviceplugin.ports import Cluster, Json, Workers
from hami_framework.deviceplugin.state import Record, StateFile
from hami_framework.deviceplugin.watched import NS_PER_SECOND, Watched
from hami_framework.enforcement import container as containers
from hami_framework.enforcement import reclaim
from hami_framework.enforcement.control import Control
from hami_framework.enforcement.policy import Compute
from hami_framework.enforcement.region import ProcessUse
from hami_framework.enforcement.sharing import Correction, Tenant, corrected, effective_shares
from hami_framework.errors import FormatError, HamiError, PluginError, Unavailable
from hami_framework.local import ledger
from hami_framework.local.gate import Gate
from hami_framework.model import ContainerGrant, Device, PodGrant, Usage

log = logging.getLogger(__name__)

OnBypass = Literal["report", "suspend", "evict"]

LOOK_SECONDS = 1.0
LOOKS = 2
"""What is found once may have been caught in the middle of a change."""
RECLAIM_SECONDS = 2.0
RECLAIM_MUTEX_SECONDS = 1.0
RECLAIM_PAUSE_SECONDS = 10.0
ERRAND_SECONDS = 0.3
EVICTION_PAUSES_SECONDS = (1.0, 5.0, 15.0, 30.0, 60.0)
HELPERS = 2
"""Helper processes at once: they are short, and there are nodes with hundreds of containers."""


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
        self._node = node
        self._state_directory = state_directory
        self._state = state
        self._pods = pods
        self._workers = workers
        self._cluster = cluster
        self._overcommit = overcommit
        self._on_bypass = on_bypass
        self._compute: Compute = compute
        self.watched: dict[drift.Key, Watched] = {}
        self._baselines: dict[str, int] = {}
        self._corrections: dict[str, Correction] = {}
        self._refused: set[tuple[str, str]] = set()
        self._complaints: dict[drift.Key, str] = {}
        self._looked = time.monotonic()
        self._gate = Gate(state_directory)
        self._helpers = asyncio.Semaphore(HELPERS)
        self._reclaiming: set[drift.Key] = set()
        self._reclaim_again: dict[drift.Key, float] = {}
        self._errands: set[asyncio.Task[None]] = set()

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
        errands = tuple(self._errands)
        for errand in errands:
            errand.cancel()
        await asyncio.gather(*errands, return_exceptions=True)

    async def look(self) -> None:
        """One look at everything. What fails for one container is logged and does not stop the others."""
        self._find()
        if not self.watched:
            return
        await self._change_limits()
        measured = await self._measured()
        seconds, self._looked = time.monotonic() - self._looked, time.monotonic()
        live = [watched for watched in list(self.watched.values()) if await self._look_at(watched)]
        books = [self._books(watched) for watched in live]
        known = [one for one in books if one is not None]
        found = await asyncio.to_thread(self._drifts, measured, known)
        for watched in live:
            self._judge(watched, [one for one in found if one.key == watched.key])
        self._share(live)
        self._correct(live, measured, seconds)
        if self._errands:
            await asyncio.wait(self._errands, timeout=ERRAND_SECONDS)

    def _send(self, errand: Coroutine[Any, Any, None]) -> None:
        """What may take long (a helper, the API server) does not keep the next heartbeat waiting."""
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._returned)

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of the look failed", exc_info=error)

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
        due = self._reclaim_again.get(watched.key, 0.0) <= time.monotonic() and watched.key not in self._reclaiming
        if look.usage is not None and look.usage.dead and due:
            self._reclaiming.add(watched.key)
            self._send(self._reclaim(watched, look.usage.dead))
        return True

    async def _reclaim(self, watched: Watched, dead: Sequence[ProcessUse]) -> None:
        """Take out the dead, in a process that has nothing to lose (see `enforcement.reclaim`). A container that prevents it is left for a while."""
        try:
            problem = await self._help(watched, [f"{process.slot}:{process.state}" for process in dead])
        finally:
            self._reclaiming.discard(watched.key)
        self._reclaim_again = {key: at for key, at in self._reclaim_again.items() if key in self.watched}
        if problem is not None:
            self._reclaim_again[watched.key] = time.monotonic() + RECLAIM_PAUSE_SECONDS
            log.warning("%s: the dead are not taken out: %s; again in %.0f s", watched.name, problem, RECLAIM_PAUSE_SECONDS)

    async def _help(self, watched: Watched, pairs: Sequence[str]) -> str | None:
        """Run the helper; what went wrong, or None."""
        path = containers.state_path(watched.directory)
        command = (sys.executable, "-I", "-S", reclaim.__file__, str(RECLAIM_MUTEX_SECONDS), *pairs)
        async with self._helpers:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                return str(error)
            try:
                helper = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=descriptor,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env={},
                )
            finally:
                os.close(descriptor)
            try:
                async with asyncio.timeout(RECLAIM_SECONDS + RECLAIM_MUTEX_SECONDS):
                    output, problem = await helper.communicate()
            except TimeoutError:
                output, problem = b"", b"it did not end in time"
            finally:
                if helper.returncode is None:
                    helper.kill()
                    await helper.communicate()
        if helper.returncode != 0:
            return problem.decode(errors="replace").strip()[-400:] or f"the helper ended with status {helper.returncode}"
        log.info("%s: %s dead processes taken out of its books", watched.name, output.decode().strip())
        return None

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
                self._send(self._cluster.warn(pod, "LimitBypassed", f"container {watched.container}: {kind}: {message}"))
            self._act(watched, kind)

    def _act(self, watched: Watched, kind: str) -> None:
        if self._on_bypass == "suspend":
            watched.say(Control.suspend)
            log.warning("%s is suspended because of %s, until it is started again", watched.name, kind)
        elif self._on_bypass == "evict" and (pod := self._pods.get(watched.owner.uid)) is not None:
            self._send(self._evict(watched, pod, kind))

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

    # -- Limits that change ---------------------------------------------------------------------------------------

    async def _change_limits(self) -> None:
        """A grant of a higher revision takes effect in the containers that run."""
        for uid in {uid for uid, _ in self.watched}:
            pod, before = self._pods.get(uid), self._state.grants.get(uid)
            if pod is None or before is None:
                continue
            try:
                grant = grant_of(pod, self._node)
                if grant.revision > before.revision:
                    async with self._gate:
                        self._change(before, grant)
                        await self._state.durable()
            except Unavailable:
                continue
            except FileNotFoundError as error:
                log.debug("a container of pod %s is being released: %s", uid, error)
            except (GrantRefused, FormatError) as error:
                await self._refuse(uid, before, error)

    async def _refuse(self, uid: str, before: PodGrant, error: HamiError) -> None:
        """Said once; tried again at every look, since room may come."""
        pod = self._pods.get(uid)
        if pod is not None and (uid, str(error)) not in self._refused:
            self._refused = {refused for refused in self._refused if refused[0] in self._state.grants} | {(uid, str(error))}
            log.error("the changed grant of %s/%s does not take effect: %s", before.owner.namespace, before.owner.name, error)
            await self._cluster.warn(pod, "LimitNotChanged", f"the limits of revision {before.revision} stay: {error}")

    def _change(self, before: PodGrant, grant: PodGrant) -> None:
        if _shape(before) != _shape(grant):
            raise FormatError(f"revision {grant.revision} names other devices than revision {before.revision}; only limits can change while a pod runs")
        devices = self._devices()
        others = [other for uid, other in self._state.grants.items() if uid != grant.owner.uid and self._pods.fate(uid) != "ended"]
        local = ledger.live_grants(self._state_directory, self._node)
        if rejections := fence.check(grant, [*others, *local], devices, self._overcommit):
            raise FormatError("; ".join(describe(rejection) for rejection in rejections))
        for container in grant.containers:
            watched = self.watched.get((grant.owner.uid, container.container))
            if watched is not None:
                declared = enforcing.declaration(watched.directory).by_vendor
                written = containers.update(watched.directory, enforcing.policy_of(grant, container, declared, devices, self._compute))
                _tell(watched, grant, container)
                log.info("%s has the limits of revision %d (policy generation %d)", watched.name, grant.revision, written.generation)
        for record in self._state.of_pod(grant.owner.uid):
            own = grant.container(record.container)
            held = {} if own is None else {(device.device_id, device.resource): device for device in own.devices}
            now = tuple(held.get((device.device_id, device.resource), device) for device in record.devices)
            self._state.put(structs.replace(record, devices=now), grant)

    def _devices(self) -> dict[str, Device]:
        return {device.id: device for vendor in self._workers.vendors for device in self._workers.devices(vendor)}

    # -- Time -----------------------------------------------------------------------------------------------------

    def _share(self, live: Sequence[Watched]) -> None:
        """Deal out the time of every device on which a container lends and borrows."""
        for tenants in _by_device(live).values():
            if any(_mode(watched, place) == "work-conserving" for watched, place in tenants):
                shares = effective_shares([_tenant(watched, place) for watched, place in tenants])
                for (watched, place), share in zip(tenants, shares, strict=True):
                    if _mode(watched, place) == "work-conserving":
                        watched.say(partial(Control.set_effective, device=place, milli=share))

    def _correct(self, live: Sequence[Watched], measured: Mapping[str, Usage], seconds: float) -> None:
        """Compare each device's utilisation with what was charged, where everybody on it is charged."""
        for device_id, tenants in _by_device(live).items():
            usage = measured.get(device_id)
            if usage is None or not all(_limit(watched, place) for watched, place in tenants) or self._others(device_id, tenants):
                continue
            charged = sum(watched.recent_ns[place] for watched, place in tenants) / (seconds * NS_PER_SECOND) * 100
            before = self._corrections.get(device_id, Correction())
            after = self._corrections[device_id] = corrected(before, usage.core_busy_percent, charged)
            if after != before:
                for watched, place in tenants:
                    watched.say(partial(Control.set_gain, device=place, gain=after.gain))

    def _others(self, device_id: str, tenants: Sequence[tuple[Watched, int]]) -> bool:
        """Whether somebody without a library (or not looked at) has a part of the device's time."""
        ours = {watched.key for watched, _ in tenants}
        holders = {
            (record.owner.uid, record.container)
            for record in self._state.records.values()
            if record.live and any(device.device_id == device_id for device in record.devices)
        }
        return not holders <= ours


def _tell(watched: Watched, grant: PodGrant, container: ContainerGrant) -> None:
    """The container's own limits file. It binds nobody, so that what is wrong with it stops nothing."""
    try:
        limits.change(watched.directory.parent, grant, container)
    except (FormatError, OSError) as error:
        log.warning("%s is not told of its new limits: %s", watched.name, error)


def _shape(grant: PodGrant) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """What a change of limits must leave as it is."""
    return [(one.container, [(device.vendor, device.device_id, device.resource) for device in one.devices]) for one in grant.containers]


def _by_device(live: Sequence[Watched]) -> dict[str, list[tuple[Watched, int]]]:
    """Device → its containers, with the index it has in each."""
    found: dict[str, list[tuple[Watched, int]]] = {}
    for watched in live:
        if watched.last is not None and watched.last.usage is not None:
            for place, device_id in enumerate(watched.device_ids):
                found.setdefault(device_id, []).append((watched, place))
    return found


def _mode(watched: Watched, place: int) -> Compute:
    """A container without a compute limit has nothing to lend, and nothing holds it that could be raised."""
    return watched.last.policy.devices[place].compute_mode if watched.last is not None and _limit(watched, place) else "fixed"


def _limit(watched: Watched, place: int) -> int | None:
    return None if watched.last is None else watched.last.policy.devices[place].core_milli


def _tenant(watched: Watched, place: int) -> Tenant:
    assert watched.last is not None
    device = watched.last.policy.devices[place]
    active = watched.recent_ns[place] > 0 or watched.waiting[place]
    return Tenant(guaranteed=device.core_milli or 0, mode=_mode(watched, place), weight=device.weight, priority=device.priority, active=active)
