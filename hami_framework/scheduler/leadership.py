# SPDX-License-Identifier: Apache-2.0
"""Which of several extenders answers: the holder of the Lease, once nothing of its predecessor can come to light any more.

Two times keep two extenders from promising the same room. A leader sends a Binding only while its lease has more than
`FENCE_SECONDS` left, and the API server gives the request up `SERVER_SECONDS` after it has read it. A new leader waits
until the old lease has run out and `HAND_OVER_SECONDS` more, then brings its picture up to that moment, and only then
answers. So a Binding has FENCE + HAND_OVER = 7 s to be carried out; sending (3 s at most, see `BIND_TIMEOUT_SECONDS`)
and carrying out (3 s) take 6. A leader that ended in good order has freed the Lease after its last Binding: then only
the picture has to be brought up. What a process does that was stopped between its last look at the clock and the
system call, nobody can fence by time; the node agent refuses a grant that exceeds a device.

In numbers: killed right after a renewal, a leader is followed after 0.3 (look) + 6.3 (lease, drift) + 4 s + one list.
A renewal that comes 2 s late (6 - 1 - FENCE) costs nothing; later than that, bindings wait for the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from hami_framework.kube.errors import KubeError
from hami_framework.kube.lease import Election
from hami_framework.scheduler.binding import SERVER_SECONDS, SETTLE_SECONDS, Binder, NotLeading
from hami_framework.scheduler.metrics import Metrics

LEASE_NAME = "hami-scheduler"
LEASE_SECONDS = 6.0
RENEW_SECONDS = 1.0
LOOK_AT_LEASE_SECONDS = 0.3
"""A follower counts from when it sees a renewal. One not yet seen when the API server goes away costs a whole lease from its return."""

FENCE_SECONDS = float(SERVER_SECONDS)
BIND_TIMEOUT_SECONDS = float(SERVER_SECONDS)
"""Socket deadline of the client that binds: a Binding that was not taken off our hands by then is torn down."""
HAND_OVER_SECONDS = SETTLE_SECONDS

DRAIN_SECONDS = 8.0
"""How long bindings under way may take when we make room; what is unknown after that, a successor has to wait for."""

LOOK_SECONDS = 0.1

_log = logging.getLogger(__name__)


class Answering(Protocol):
    """What is switched on and off: the verbs."""

    ready: bool
    why_not: str
    leads_when_asked: bool


class Leadership:
    """Switches the verbs on while this extender leads. `asked` and `fence` are for those who answer and bind."""

    def __init__(
        self,
        election: Election,
        extender: Answering,
        binder: Binder,
        metrics: Metrics,
        *,
        refresh: Callable[[], Awaitable[None]],
        fence_seconds: float = FENCE_SECONDS,
        hand_over_seconds: float = HAND_OVER_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        """`refresh` returns once all that was written before it was called is in the engine; raises KubeError."""
        self._election, self._extender, self._binder, self._metrics, self._refresh = election, extender, binder, metrics, refresh
        self._fence_seconds, self._hand_over_seconds, self._drain_seconds = fence_seconds, hand_over_seconds, drain_seconds
        self._stopping = False

    def fence(self) -> None:
        """Called right before a Binding is sent, in any thread. Raises NotLeading when it could land after our lease."""
        if (left := self._election.remaining) <= self._fence_seconds:
            raise NotLeading(f"not sent: the lease of this extender has {left:.1f} s left, and a binding may take {self._fence_seconds:.0f} s")

    def asked(self) -> None:
        """A kube-scheduler asked while we do not answer: one that asks only us has nobody else to turn to."""
        if not self._stopping:
            self._election.stand()

    async def run(self) -> None:
        """Until cancelled or stopped. Begin when the first picture is complete."""
        while not self._stopping:
            self._close("another extender leads; this one follows")
            await self._election.wait_until(True)
            if not await self._take_over():
                continue
            self._open()
            await self._until_lost_or_wanted()
            if self._election.wanted_by and not self._stopping:
                await self._make_room()
        self._close("this extender is ending")

    async def stop(self) -> None:
        """Answer no more and let bindings under way end. The Lease is freed by the election's own end, if nothing is left unknown."""
        self._stopping = True
        self._extender.leads_when_asked = False
        self._close("this extender is ending")
        self._election.may_release = self._election.may_release and await self._binder.drain(self._drain_seconds)

    # -- inside -------------------------------------------------------------------------------------------------

    async def _take_over(self) -> bool:
        """True once nothing of the predecessor's can come any more and the picture shows all that came."""
        election = self._election
        # Until we have waited ourselves, our end says nothing about our predecessor's bindings.
        election.may_release = False
        while (since := election.seconds_since_predecessor) < self._hand_over_seconds:
            self._close(f"leading since a moment; bindings of {election.previous_holder} may still land for {self._hand_over_seconds - since:.1f} s")
            await asyncio.sleep(min(LOOK_SECONDS, self._hand_over_seconds - since))
            if not election.leading:
                return False
        self._close("leading since a moment; reading what the predecessor bound")
        while election.leading:
            try:
                await self._refresh()
                break
            except KubeError as error:
                _log.warning("cannot bring the picture up to date yet: %s", error)
                await asyncio.sleep(LOOK_SECONDS * 5)
        election.may_release = True
        return election.leading and not self._stopping

    async def _until_lost_or_wanted(self) -> None:
        while self._election.leading and not self._election.wanted_by and not self._stopping:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._election.wait_until(False)
            except TimeoutError:
                pass

    async def _make_room(self) -> None:
        self._close(f"making room for {self._election.wanted_by}")
        if await self._binder.drain(self._drain_seconds):
            self._election.make_room()
        else:
            _log.warning("a binding of unknown outcome is left: the lease runs out by itself, and the next leader waits for it")
            self._election.retire()
        await self._election.wait_until(False)

    def _open(self) -> None:
        self._extender.ready, self._extender.why_not = True, ""
        self._metrics.leading.set(1)
        _log.info("this extender answers now (previous leader: %s)", self._election.previous_holder or "none")

    def _close(self, why: str) -> None:
        if self._extender.ready:
            _log.warning("this extender answers no more: %s", why)
        self._extender.ready, self._extender.why_not = False, why
        self._metrics.leading.set(0)
