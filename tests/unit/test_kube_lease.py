# SPDX-License-Identifier: Apache-2.0
"""Election by a Lease: the decisions alone, thousands of random lives of several candidates, and the object over real HTTP."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hami_framework.kube.candidate import DRIFT, NEVER, Candidate, Free, Read, Record, Wait, Wish, Write

LEASE, RENEW = 10.0, 2.0


def candidate(me: str = "me") -> Candidate:
    return Candidate(me, LEASE, RENEW)


def held(by: str = "other", version: str = "1", **changes: object) -> Record:
    return Record(holder=by, seconds=LEASE, version=version, renewed=version, **changes)  # type: ignore[arg-type]


def test_it_looks_before_it_does_anything() -> None:
    assert candidate().next(0) == Read()


def test_a_free_lease_is_taken_at_once_and_nothing_has_to_be_waited_for() -> None:
    it = candidate()
    it.saw(held(""), 0)
    assert it.next(0) == Write("1", 1)
    assert it.foreign_until == NEVER


def test_a_living_holder_is_left_alone_and_looked_at_again() -> None:
    it = candidate()
    it.saw(held(), 100)
    assert it.next(100) == Wait(RENEW)
    assert it.next(102) == Read()
    it.saw(held(version="2"), 102)
    assert it.next(111) == Wait(102 + LEASE * DRIFT - 111)  # runs from the renewal seen last


def test_a_holder_is_dead_when_nothing_changed_for_the_lease_on_our_own_clock() -> None:
    it = candidate()
    it.saw(held(), 100)
    assert it.next(100 + LEASE * DRIFT) == Write("1", 1)
    assert it.foreign_until == 100 + LEASE * DRIFT
    assert it.previous_holder == "other"


def test_a_wish_on_the_lease_is_no_sign_of_life_of_its_holder() -> None:
    it = candidate()
    it.saw(held(), 100)
    it.saw(replace(held(), version="2", wanted_by="third"), 105)
    assert it.next(100 + LEASE * DRIFT) == Write("2", 1)


def test_one_that_makes_a_missing_lease_waits_for_whoever_held_the_deleted_one() -> None:
    it = candidate()
    it.saw(None, 100)
    assert it.next(100) == Write(None, 0)
    it.wrote(held("me", "2"), 100, 100)
    assert it.remaining(100) == 0
    it.wrote(held("me", "3"), 108, 108)
    assert it.remaining(110) == 0
    assert it.remaining(100 + LEASE * DRIFT) > 0
    assert it.foreign_until == 100 + LEASE * DRIFT


def test_a_leader_whose_lease_was_deleted_writes_it_again_at_once() -> None:
    it = candidate()
    it.saw(held(""), 0)
    it.wrote(held("me", "2"), 0, 0)
    it.failed()
    it.saw(None, 3)
    assert it.next(3) == Write(None, 0)


def test_leading_runs_from_the_sending_of_the_renewal() -> None:
    it = candidate()
    it.saw(held(""), 0)
    it.wrote(held("me", "2"), sent_at=1, now=4)
    assert it.remaining(4) == LEASE - 3
    assert it.remaining(1 + LEASE) == 0


def test_a_write_whose_answer_was_lost_makes_us_holder_but_not_leader() -> None:
    it = candidate()
    it.saw(held(""), 0)
    it.failed()
    it.saw(held("me", "2"), 5)
    assert it.remaining(5) == 0
    assert it.next(5) == Write("2", 0)
    it.wrote(held("me", "3"), 5, 5)
    assert it.remaining(6) == 0  # the lost write may have made a Lease that somebody had deleted under its holder
    assert it.remaining(5 + LEASE * DRIFT - 0.01) == 0


def test_somebody_else_in_the_lease_ends_our_leading_at_once() -> None:
    it = candidate()
    it.saw(held(""), 0)
    it.wrote(held("me", "2"), 0, 0)
    it.failed()
    it.saw(held("other", "3"), 1)
    assert it.remaining(1) == 0


def test_one_that_stands_when_asked_waits_to_be_asked_and_then_asks_for_room() -> None:
    it = candidate()
    it.keen, it.impatient = False, True
    it.saw(held(""), 0)
    assert isinstance(it.next(0), Wait)
    it.keen = True
    it.saw(held("other", "2"), 1)
    assert it.next(1) == Wish("2")
    it.saw(replace(held("other", "2"), version="3", wanted_by="me"), 1)
    assert isinstance(it.next(1), Wait)


def test_a_holder_that_is_not_keen_any_more_frees_the_lease_unless_something_is_unknown() -> None:
    it = candidate()
    it.saw(held(""), 0)
    it.wrote(held("me", "2"), 0, 0)
    it.keen = False
    assert it.next(0) == Free("2", 0)
    it.clean = False
    assert isinstance(it.next(0), Wait)


# -- random lives ------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """One Lease with optimistic locking; writes are carried out when they arrive, answers come later or never."""

    record: Record | None = None
    version: int = 0

    def write(self, action: Write | Free | Wish, me: str, stamp: str) -> Record | None:
        """The new record, or None for a conflict."""
        current = None if self.record is None else self.record.version
        if action.version is not None:
            if current != action.version:
                return None
        elif current is not None:
            return None
        self.version += 1
        if isinstance(action, Wish):
            assert self.record is not None
            self.record = replace(self.record, version=str(self.version), wanted_by=me)
        else:
            holder = me if isinstance(action, Write) else ""
            seconds = LEASE if isinstance(action, Write) else 1.0
            self.record = Record(holder=holder, seconds=seconds, version=str(self.version), transitions=action.transitions, renewed=stamp)
        return self.record


@dataclass
class Life:
    """A process that stands for election, with a clock of its own (offset and speed), in true time."""

    name: str
    offset: float
    speed: float
    it: Candidate = field(init=False)
    dead: bool = False
    asleep_until: float = 0.0
    waiting: float | None = None
    """When the request was sent whose answer it waits for."""

    def __post_init__(self) -> None:
        self.it = Candidate(self.name, LEASE, RENEW)

    def clock(self, true: float) -> float:
        return self.offset + true * self.speed


def lives(seed: int) -> Iterator[tuple[float, list[str]]]:
    """True time and who believes to lead, at every event of a random history of 300 s."""
    rng = random.Random(seed)
    server = Server()
    crew = [Life(f"c{n}", rng.uniform(-1e6, 1e6), rng.uniform(0.98, 1.02)) for n in range(rng.randint(2, 4))]
    for each in crew:
        each.it.impatient = rng.random() < 0.3
    queue: list[tuple[float, int, Any]] = []
    count = 0

    def at(true: float, what: tuple[Any, ...]) -> None:
        nonlocal count
        count += 1
        heapq.heappush(queue, (true, count, what))

    def delay() -> float:
        return rng.choice([0.001, 0.01, 0.3, rng.uniform(0, 4), rng.uniform(0, 30) if rng.random() < 0.1 else 0.05])

    for each in crew:
        at(rng.uniform(0, 5), ("step", each))
    while queue:
        true, _, what = heapq.heappop(queue)
        if true > 300:
            return
        kind, rest = what[0], what[2:]
        life: Life = what[1]
        if kind != "arrive" and true < life.asleep_until:
            at(life.asleep_until, what)  # stopped: whatever it was about to do, it does on waking
            continue
        if kind == "step" and not life.dead:
            if rng.random() < 0.01:
                life.asleep_until = true + rng.uniform(1, 40)
            elif rng.random() < 0.003 and sum(not other.dead for other in crew) > 1:
                life.dead = True
                continue
            if rng.random() < 0.01 and server.record is not None:
                server.record = None  # somebody deletes the Lease
            now = life.clock(true)
            if rng.random() < 0.01:
                life.it.keen = not life.it.keen
                if not life.it.keen:
                    life.it.stop_leading()
            action = life.it.next(now)
            if isinstance(action, Wait):
                at(true + max(action.seconds, 0.001) / life.speed, ("step", life))
            else:
                at(true + delay(), ("arrive", life, action, now, true))
                at(true + LEASE / 3 / life.speed, ("late", life, now))
                life.waiting = now
        elif kind == "arrive":
            action, sent_at, _ = rest
            if isinstance(action, Read):
                answer: Any = server.record
                lost = rng.random() < 0.05
            else:
                refused = rng.random() < 0.05
                answer = "conflict" if refused or (got := server.write(action, life.name, f"{life.name}{true}")) is None else got
                lost = rng.random() < 0.05
            if not lost:
                at(true + delay(), ("answer", life, action, sent_at, answer))
        elif kind == "answer" and not life.dead and life.waiting == rest[1]:
            action, sent_at, answer = rest
            life.waiting = None
            now = life.clock(true)
            if answer == "conflict":
                life.it.failed()
            elif isinstance(action, Write):
                life.it.wrote(answer, sent_at, now)
            else:
                life.it.saw(answer, now)
            at(true, ("step", life))
        elif kind == "late" and not life.dead and life.waiting == rest[0]:
            life.waiting = None
            life.it.failed()
            at(true + rng.uniform(0.1, 1), ("step", life))
        yield true, [other.name for other in crew if not other.dead and other.it.remaining(other.clock(true)) > 0]


@pytest.mark.parametrize("first", [0, 100, 200, 300])
def test_never_two_leaders_whatever_clocks_and_answers_do(first: int) -> None:
    led = 0
    for seed in range(first, first + 100):
        for true, leaders in lives(seed):
            assert len(leaders) <= 1, f"seed {seed}, {true:.3f} s: {leaders}"
            led += len(leaders)
    assert led > 1000, "the simulation must have leaders to be worth anything"
