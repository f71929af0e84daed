# SPDX-License-Identifier: Apache-2.0
"""The decisions of one candidate for a Lease: when to read, when to write, and until when it leads. No I/O, no clock of its own.

Clocks of different machines are never compared. Another holder's time runs from the moment *we* first saw its last
renewal, on our clock, which is later than the renewal itself; our own time runs from the moment we *sent* our last
renewal that was taken, which is earlier than anybody can have seen it. So two candidates never lead at once, as long
as their clocks run equally fast within `DRIFT`. The API server's resourceVersion decides between writers.

Protocol: coordination.k8s.io/v1 Lease, used as client-go's tools/leaderelection uses it (an empty holder means "free";
`leaseTransitions` counts changes of holder). Stricter in two things: one that makes a missing Lease leads only after a
whole lease, for whoever held the deleted one may still be at work, and can renew it no more; and a process never takes
its predecessor's record for its own (see `Election`).
"""

from __future__ import annotations

from dataclasses import dataclass

NEVER = float("-inf")

DRIFT = 1.05
"""A follower waits this many times the lease: two clocks may differ in speed by 5 %."""


@dataclass(frozen=True)
class Record:
    """What stands in the Lease."""

    holder: str
    """Who holds it; empty: it is free."""
    seconds: float
    """For how long after each renewal."""
    version: str
    """metadata.resourceVersion."""
    transitions: int = 0
    renewed: str = ""
    """The holder's own word for its last renewal; only that it differs from the one before matters."""
    wanted_by: str = ""
    """Who asks the holder to make room."""

    def same_renewal(self, other: Record) -> bool:
        """False when the holder has written in between; somebody's wish alone is no sign of its life."""
        return (self.holder, self.seconds, self.transitions, self.renewed) == (other.holder, other.seconds, other.transitions, other.renewed)


@dataclass(frozen=True)
class Read:
    """Look at the Lease."""


@dataclass(frozen=True)
class Write:
    """Write ourselves into the Lease: into this version of it, or as a new one (None)."""

    version: str | None
    transitions: int


@dataclass(frozen=True)
class Free:
    """Empty the holder: we make room."""

    version: str
    transitions: int


@dataclass(frozen=True)
class Wish:
    """Ask the holder to make room."""

    version: str


@dataclass(frozen=True)
class Wait:
    """Nothing to do for so many seconds."""

    seconds: float


Action = Read | Write | Free | Wish | Wait


class Candidate:
    """One candidate. Ask `next`, do it, tell the outcome (`saw`, `wrote`, `failed`). All times are seconds of one monotonic clock."""

    def __init__(self, me: str, lease_seconds: float, renew_seconds: float, look_seconds: float | None = None) -> None:
        """`look_seconds`: how often a follower looks (default: as often as a leader renews). A renewal counts from when it is seen."""
        self.me = me
        self.keen = True
        """Whether we want to lead at all. A holder that does not want to any more frees the Lease."""
        self.clean = True
        """Whether a Lease that we do not want any more may be freed; else it is left to run out."""
        self.impatient = False
        """Whether we ask a living holder to make room."""
        self.previous_holder: str | None = None
        """Who held the Lease before us, as far as we have seen; None when nobody did."""
        self.foreign_until = NEVER
        """No other holder can believe to lead after this time. NEVER: the last one gave the Lease up in good order."""
        self.record: Record | None = None
        self._lease_seconds, self._renew_seconds = lease_seconds, renew_seconds
        self._look_seconds = renew_seconds if look_seconds is None else look_seconds
        self._held_until = NEVER
        self._renewed_at = NEVER
        self._seen_at = NEVER
        self._leads_from = NEVER
        self._look = True

    def remaining(self, now: float) -> float:
        """Seconds for which we still lead; 0 when we do not."""
        return max(self._held_until - now, 0.0) if now >= self._leads_from else 0.0

    def next(self, now: float) -> Action:
        """What to do now."""
        if self._look:
            return Read()
        if self.record is None:
            return Write(None, 0) if self.keen else self._watch(now, NEVER)
        version, transitions = self.record.version, self.record.transitions
        if self.record.holder == self.me:
            due = self._renewed_at + self._renew_seconds
            if not self.keen:
                return Free(version, transitions) if self.clean else self._watch(now, NEVER)
            return Wait(due - now) if now < due else Write(version, transitions)
        # What we know of it may be older than its last renewal: then the version no longer matches and the write is refused.
        take = Write(version, transitions + 1)
        if not self.record.holder:
            return take if self.keen else self._watch(now, NEVER)
        expires = self._seen_at + self.record.seconds * DRIFT
        if now >= expires:
            return take if self.keen else self._watch(now, NEVER)
        if self.keen and self.impatient and self.record.wanted_by != self.me:
            return Wish(version)
        return self._watch(now, expires)

    def saw(self, record: Record | None, now: float) -> None:
        """The Lease as it stands; None when there is none."""
        self._look = False
        if record is None:
            self.record = None
            return
        known, self.record = self.record, record
        if known is not None and known.same_renewal(record):
            return
        self._seen_at = now
        if record.holder == self.me:
            # An earlier write of ours whose answer never came. Only one that we see taken makes us lead; and it may have been a creation.
            if known is None or known.holder != self.me:
                self._wait_for_all_others(now)
            return
        self._held_until = NEVER
        self.foreign_until = now + record.seconds * DRIFT if record.holder else NEVER
        self.previous_holder = record.holder or self.previous_holder

    def wrote(self, record: Record, sent_at: float, now: float) -> None:
        """Our write was taken; it left us at `sent_at`."""
        self._look = False
        if self.record is None and not self.remaining(now):
            self._wait_for_all_others(now)
        elif self.record is not None and self.record.holder != self.me:
            self._leads_from = NEVER
        self.record, self._seen_at, self._renewed_at = record, now, sent_at
        self._held_until = sent_at + self._lease_seconds

    def failed(self) -> None:
        """A read or write was refused, or its outcome is unknown: look before the next write."""
        self._look = True

    def stop_leading(self) -> None:
        """From now on we do not lead, whatever stands in the Lease, until a later write of ours is taken."""
        self._held_until = NEVER

    def _wait_for_all_others(self, now: float) -> None:
        """From now on nobody else can renew, so after a lease nobody else leads."""
        self._leads_from = self.foreign_until = now + self._lease_seconds * DRIFT

    def _watch(self, now: float, until: float) -> Wait:
        """Look again after a while, or act as soon as the time has run out."""
        if now < until <= now + self._look_seconds:
            return Wait(until - now)
        self._look = True
        return Wait(self._look_seconds)
