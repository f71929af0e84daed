# SPDX-License-Identifier: Apache-2.0
"""One leader among several processes, by a Lease object: the I/O around `candidate.Candidate`.

Permissions needed in the Lease's namespace: `leases` get, create, update.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from hami_framework.kube.candidate import Candidate, Free, Read, Record, Wait, Wish, Write
from hami_framework.kube.client import KubeClient, Object, path
from hami_framework.kube.errors import ApiError, KubeError

T = TypeVar("T")

GROUP = "coordination.k8s.io"

WANTED_BY = "hami.io/wanted-by"
"""Annotation on the Lease: who asks the holder to make room."""

THREADS = 4
"""Of our own: neither a storm of other calls nor an answer that we no longer wait for may hold up a renewal."""

RELEASE_SECONDS = 2.0
"""Giving the Lease up is a courtesy that saves the others the wait; it must not hold up our end for longer."""

_log = logging.getLogger(__name__)


def boot_clock() -> float:
    """Seconds since boot, sleep of the machine included: `time.monotonic()` stands still while a machine sleeps, and a Lease does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Election:
    """Stands for election until `run` is cancelled. Make and use it inside one event loop.

    The Lease names `identity` and a random part made anew for each process: a process that was restarted under its old
    name waits for its predecessor's time to run out like anybody else, for the predecessor's writes may still land.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: float = 10,
        renew_seconds: float = 2,
        look_seconds: float | None = None,
        when_asked: bool = False,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """`lease_seconds` after its last renewal a leader no longer leads; renewals are sent every `renew_seconds`.

        `look_seconds`: how often a follower looks (default: `renew_seconds`); what it sees late, it waits for longer.
        `when_asked`: stand only after `stand()`, and then ask a living holder to make room.
        """
        if not 0 < renew_seconds <= lease_seconds / 3:
            raise ValueError(
                f"renew_seconds {renew_seconds} must be above 0 and at most a third of lease_seconds {lease_seconds}: one lost renewal is no reason to stop"
            )
        self.holder = f"{identity}_{uuid4().hex[:8]}"
        """What we write into the Lease."""
        self.may_release = True
        """Set it False while something that a successor has to wait for may still be under way: then the Lease is left to run out."""
        self.lease_seconds, self.when_asked = lease_seconds, when_asked
        self._client, self._namespace, self._name = client, namespace, name
        self._renew_seconds, self._clock = renew_seconds, clock
        self._call_seconds = lease_seconds / 3
        self._candidate = Candidate(self.holder, lease_seconds, renew_seconds, look_seconds)
        self._candidate.keen, self._candidate.impatient = not when_asked, when_asked
        self._object: Object = {}
        self._hurry = asyncio.Event()
        self._changed = asyncio.Event()
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="lease")
        self._said: str | None = None
        self._led = False

    # -- what others ask ----------------------------------------------------------------------------------------

    @property
    def leading(self) -> bool:
        """True while our own last renewal is younger than the lease. Safe to ask from any thread."""
        return self.remaining > 0

    @property
    def remaining(self) -> float:
        """Seconds for which nobody else can lead; 0 when we do not. Safe to ask from any thread."""
        return self._candidate.remaining(self._clock())

    @property
    def previous_holder(self) -> str | None:
        """Who led before us, as far as we have seen."""
        return self._candidate.previous_holder

    @property
    def seconds_since_predecessor(self) -> float:
        """For how long no other process can have led: infinite when the last one gave the Lease up in good order, negative while one may lead."""
        return self._clock() - self._candidate.foreign_until

    async def wait_until(self, leading: bool) -> None:
        """Return when `self.leading` is as asked. Losing is seen in time whatever the API server does."""
        while self.leading is not leading:
            changed = self._changed
            try:
                async with asyncio.timeout(self.remaining if self.leading else None):
                    await changed.wait()
            except TimeoutError:
                pass  # our time has run out: the condition of the loop says so

    @property
    def wanted_by(self) -> str:
        """Who asks us to make room; empty when nobody does or we are not the holder."""
        record = self._candidate.record
        wanted = record.wanted_by if record is not None and record.holder == self.holder else ""
        return "" if wanted == self.holder else wanted

    def stand(self) -> None:
        """From now on we want to lead."""
        if not self._candidate.keen:
            self._candidate.keen = self._candidate.clean = True
            self._hurry.set()

    def make_room(self) -> None:
        """Stop leading at once, free the Lease, and stand no more until `stand()`."""
        self._candidate.keen = False
        self._candidate.stop_leading()
        self._note()
        self._hurry.set()

    def retire(self) -> None:
        """Stop leading at once and leave the Lease to run out: something of ours may still be under way."""
        self.may_release = False
        self._candidate.keen = self._candidate.clean = False
        self._candidate.stop_leading()
        self._note()

    # -- the work -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stand for election until cancelled; then give the Lease up, if it is ours. Errors of the API server's are logged and tried again."""
        try:
            while True:
                action = self._candidate.next(self._clock())
                if isinstance(action, Wait):
                    await self._sleep(action.seconds)
                    continue
                try:
                    async with asyncio.timeout(self._call_seconds):
                        await self._do(action)
                    self._said = None
                except (KubeError, TimeoutError) as error:
                    self._candidate.failed()
                    self._note()
                    await asyncio.sleep(self._pause(error))
        finally:
            self._candidate.stop_leading()
            self._note()
            if self.may_release:
                await self._release()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _do(self, action: Read | Write | Free | Wish) -> None:
        if isinstance(action, Write):
            sent_at = self._clock()
            record = await self._write(action)
            self._candidate.wrote(record, sent_at, self._clock())
        else:
            seen = await (self._read() if isinstance(action, Read) else self._free(action) if isinstance(action, Free) else self._wish(action))
            self._candidate.saw(seen, self._clock())
        self._note()

    async def _sleep(self, seconds: float) -> None:
        self._hurry.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            pass

    def _pause(self, error: KubeError | TimeoutError) -> float:
        """Seconds until the next try; a conflict means that somebody else wrote, which is no trouble at all."""
        if isinstance(error, ApiError) and error.conflict:
            return self._renew_seconds * 0.05
        words = f"no answer within {self._call_seconds:.1f} s" if isinstance(error, TimeoutError) else str(error)
        if isinstance(error, ApiError) and error.status in (401, 403, 404):
            words += "; the service account needs get, create and update on leases there, and the namespace must exist"
        if words != self._said:
            _log.warning("lease %s/%s: %s; trying again", self._namespace, self._name, words)
            self._said = words
        asked = getattr(error, "retry_after_seconds", None) or 0.0
        return max(min(asked, self.lease_seconds / 3), self._renew_seconds * random.uniform(0.25, 0.5))

    def _note(self) -> None:
        """Wake those who wait, and say when we begin or cease to lead."""
        if self.leading != self._led:
            self._led = self.leading
            _log.info("lease %s/%s: %s %s", self._namespace, self._name, self.holder, "leads" if self._led else "does not lead any more")
            self._changed, changed = asyncio.Event(), self._changed
            changed.set()

    # -- the object ---------------------------------------------------------------------------------------------

    async def _read(self) -> Record | None:
        try:
            self._object = await self._call(self._client.get, self._path(self._name))
        except ApiError as error:
            if not error.not_found:
                raise
            return None
        return _record(self._object, self.lease_seconds)

    async def _write(self, action: Write) -> Record:
        now = _now()
        old = self._object.get("spec") or {} if action.version is not None else {}
        acquired = old.get("acquireTime", now) if old.get("holderIdentity") == self.holder else now
        spec = {
            **old,
            "holderIdentity": self.holder,
            "leaseDurationSeconds": math.ceil(self.lease_seconds),
            "acquireTime": acquired,
            "renewTime": now,
            "leaseTransitions": action.transitions,
        }
        if action.version is not None:
            annotations = self._object["metadata"].get("annotations") or {}
            mine = annotations.get(WANTED_BY) == self.holder
            return await self._replace(action.version, spec, {WANTED_BY: None} if mine else {})
        body = {"apiVersion": f"{GROUP}/v1", "kind": "Lease", "metadata": {"namespace": self._namespace, "name": self._name}, "spec": spec}
        self._object = await self._call(self._client.create, self._path(None), body)
        return _record(self._object, self.lease_seconds)

    async def _free(self, action: Free) -> Record:
        """As client-go releases: no holder, and the shortest duration the API allows."""
        old = {name: value for name, value in self._object["spec"].items() if name != "holderIdentity"}
        spec = {**old, "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now(), "acquireTime": _now()}
        record = await self._replace(action.version, spec, {})
        _log.info("lease %s/%s: given up", self._namespace, self._name)
        return record

    async def _wish(self, action: Wish) -> Record:
        _log.info("lease %s/%s: asking %s to make room", self._namespace, self._name, self._object["spec"]["holderIdentity"])
        return await self._replace(action.version, self._object["spec"], {WANTED_BY: self.holder})

    async def _replace(self, version: str, spec: Object, annotations: dict[str, str | None]) -> Record:
        """PUT over that version alone; an annotation of None goes."""
        metadata = self._object["metadata"]
        kept = {**(metadata.get("annotations") or {}), **annotations}
        metadata = {**metadata, "resourceVersion": version, "annotations": {name: text for name, text in kept.items() if text is not None}}
        self._object = await self._call(self._client.replace, self._path(self._name), {**self._object, "metadata": metadata, "spec": spec})
        return _record(self._object, self.lease_seconds)

    async def _release(self) -> None:
        """Empty the holder, so that the next one need not wait. A renewal under way may land first; then look and try again."""
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                while (record := self._candidate.record) is not None and record.holder == self.holder:
                    try:
                        self._candidate.saw(await self._free(Free(record.version, record.transitions)), self._clock())
                    except ApiError as error:
                        if not error.conflict:
                            raise
                        self._candidate.saw(await self._read(), self._clock())
        except (KubeError, TimeoutError) as error:
            _log.warning("lease %s/%s: not given up (%s); it runs out by itself", self._namespace, self._name, error if str(error) else "no answer")

    def _path(self, name: str | None) -> str:
        return path("leases", group=GROUP, namespace=self._namespace, name=name)

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args))


def _record(lease: Object, default_seconds: float) -> Record:
    """What the decisions need of a Lease; fields that the API allows to be absent mean "free" and our own duration."""
    spec = lease.get("spec") or {}
    return Record(
        holder=spec.get("holderIdentity") or "",
        seconds=float(spec.get("leaseDurationSeconds") or default_seconds),
        version=lease["metadata"]["resourceVersion"],
        transitions=spec.get("leaseTransitions") or 0,
        renewed=spec.get("renewTime") or "",
        wanted_by=(lease["metadata"].get("annotations") or {}).get(WANTED_BY, ""),
    )


def _now() -> str:
    """metav1.MicroTime. For people: nobody compares it with a clock."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
