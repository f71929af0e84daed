# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every numbered write point: survivors go on, and afterwards the books are right."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_rig import LIMIT, OK, OVER_LIMIT, POINTS, REFUSED, Container, Player, player
from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset as place_of

WORK = ("reserve 0 200", "settle 0 150", "note handle", "measure 1 77", "begin", f"reserve 0 {LIMIT}", "reserve 1 10", "give 0", "give 1")


@pytest.fixture
def container(tmp_path: Path, built: Path) -> Iterator[Container]:
    with Container(tmp_path / "container", player(built)) as one:
        yield one


def _corpse(container: Container, point: str | None, *commands: str) -> None:
    """A dead process: killed where it stood, or at a write point of its last command."""
    one = container.play()
    for command in commands[:-1]:
        one.ask(command)
    if point is None:
        one.ask(commands[-1])
        one.kill()
        return
    one.ask(f"die {POINTS[point]} 1")
    assert one.dies(commands[-1]), f"{point} was not reached by {commands[-1]!r}"


def _prepare(container: Container, point: str) -> Player | None:
    """Whatever makes a process that comes next pass `point`; answers the survivor, which holds 100 of device 0 and 50 of device 1."""
    if point.startswith("INITIALISE"):
        return None
    survivor = container.play()
    assert survivor.verdict("reserve 0 100") == OK
    assert survivor.verdict("reserve 1 50") == OK
    if point.startswith("RECLAIM"):
        _corpse(container, None, "reserve 0 300", "reserve 1 30")
    elif point == "RECOUNT_FINISHED_RECLAIM":
        # The survivor has joined and does not look for the dead on its own; who comes next does, and dies over it.
        _corpse(container, None, "reserve 0 300")
        _corpse(container, "RECLAIM_USED", f"reserve 0 {LIMIT}")
    elif point.startswith("RECOUNT"):
        _corpse(container, "RESERVE_SLOT", "reserve 0 300")
    return survivor


def _rob(container: Container, victim: Player) -> None:
    """Its slot is taken from it while it lives: it takes another, and counts what it holds again."""
    victim.ask("reserve 0 400")
    index = next(number for number, slot in enumerate(container.state().slots) if slot.pid == victim.pid)
    container.change_state(place_of(layout.StateFile, "slots") + index * ctypes.sizeof(layout.Slot), bytes(ctypes.sizeof(layout.Slot)))
    container.change_state(place_of(layout.StateFile, "devices"), (100).to_bytes(8, "little"))


def _settled(container: Container, survivor: Player) -> None:
    """The survivor can have everything that the dead held, no more, and the books say so."""
    assert survivor.verdict(f"reserve 0 {LIMIT - 100}") == OK
    assert survivor.verdict("reserve 0 1") == OVER_LIMIT
    assert survivor.verdict(f"reserve 1 {2 * LIMIT - 50}") == OK
    container.assert_books()
    assert (container.used(0), container.used(1)) == (LIMIT, 2 * LIMIT)
    assert len(container.taken()) == 1
    after = container.play()
    assert after.verdict("reserve 0 1") == OVER_LIMIT
    assert after.ask("measure 1 77") == "measured"
    survivor.ask("give 2")
    assert after.verdict(f"reserve 0 {LIMIT - 100}") == OK
    container.assert_books()


@pytest.mark.parametrize("point", POINTS)
def test_death_at(container: Container, point: str) -> None:
    survivor = _prepare(container, point)
    victim = container.play()
    if point.startswith("AGAIN"):
        _rob(container, victim)
    assert victim.ask(f"die {POINTS[point]} 1") == "armed"
    assert victim.dies(*WORK), f"{point} was not reached: the loop would prove nothing"
    if survivor is None:
        survivor = container.play()
        assert survivor.verdict("reserve 0 100") == OK
        assert survivor.verdict("reserve 1 50") == OK
    _settled(container, survivor)


@pytest.mark.parametrize("visit", [2, 9, 16, 17, 31])
@pytest.mark.parametrize("point", ["RECLAIM_USED", "RECLAIM_SLOT"])
def test_death_in_the_middle_of_the_devices(container: Container, point: str, visit: int) -> None:
    survivor = container.play()
    survivor.ask("reserve 0 100")
    survivor.ask("reserve 1 50")
    for _ in range(2):
        one, two = container.play(), container.play()
        for each in (one, two):
            each.ask("reserve 0 300")
            each.ask("reserve 1 20")
        one.kill()
        two.kill()
        victim = container.play()
        victim.ask(f"die {POINTS[point]} {visit}")
        assert victim.dies(f"reserve 0 {LIMIT}")
    _settled(container, survivor)


def test_a_recount_that_dies_is_done_again_by_the_next(container: Container) -> None:
    survivor = container.play()
    survivor.ask("reserve 0 100")
    survivor.ask("reserve 1 50")
    _corpse(container, "RESERVE_SLOT", "reserve 0 300")
    for point in ("RECOUNT_BEGUN", "RECOUNT_USED", "RECOUNT_EPOCH"):
        _corpse(container, point, "reserve 0 10")
    before = container.state().epoch
    _settled(container, survivor)
    assert container.state().epoch > before


def test_every_point_of_the_sources_is_in_the_table() -> None:
    """And every point of the table is in the sources: a write without its death is not proved."""
    from core_rig import SOURCES

    text = "".join(path.read_text() for path in SOURCES)
    assert {name for name in POINTS if f"hami_write_point(HAMI_POINT_{name})" not in text} == set()
    assert text.count("hami_write_point(HAMI_POINT_") >= len(POINTS)


def test_the_mutex_is_gone_over_when_its_owner_dies_in_it(container: Container) -> None:
    """The dead owner's slot keeps what it had begun to hold until it is known to be dead: never less than the truth."""
    survivor = container.play()
    survivor.ask("reserve 0 100")
    _corpse(container, "RESERVE_SLOT", "reserve 0 300")
    assert container.used() == 100
    assert survivor.verdict("reserve 0 1") == OK
    assert container.used() == 401
    kinds = [slot.state & 0xFFFFFFFF for slot in container.taken()]
    assert kinds == [layout.SlotState.LIVE, layout.SlotState.LIVE]


def _stopped_in_the_mutex(container: Container) -> Player:
    """Lives, holds the mutex, and does not run."""
    stopped = container.play()
    stopped.ask("reserve 0 1")
    stopped.ask("stop")
    stopped.ask(f"die {POINTS['RESERVE_SLOT']} 1")
    stopped.tell("reserve 0 200")
    while Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        pass
    return stopped


def test_a_lost_wake_up_is_made_up_for(container: Container) -> None:
    """Who was woken and killed before it had the mutex takes the wake-up with it: the owner then knows of nobody that waits."""
    one = container.play()
    one.ask("reserve 0 100")
    stopped = _stopped_in_the_mutex(container)
    one.tell("reserve 0 1")
    place, awaited = place_of(layout.StateFile, "mutex"), 0x80000000  # FUTEX_WAITERS, futex(2)
    while not (word := int.from_bytes(container.state_path.read_bytes()[place : place + 4], "little")) & awaited:
        pass
    container.change_state(place, (word & ~awaited).to_bytes(4, "little"))
    begun = time.monotonic()
    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.answer() == "0 1 200"
    assert one.answer().split()[0] == str(OK)
    assert time.monotonic() - begun < 5, "it slept until its patience of 10 s was over"
    container.assert_books()


@pytest.mark.slow
def test_a_stopped_owner_of_the_mutex_makes_nobody_wait_for_ever(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 100")
    stopped = _stopped_in_the_mutex(container)
    assert one.verdict("reserve 0 1") == REFUSED  # after 10 s
    assert one.ask("give 0") == "0"  # as long; it is taken off later
    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.answer() == "0 1 200"
    assert one.verdict("reserve 0 1") == OK
    assert container.used() == 1 + 200 + 1
    container.assert_books()
    assert "held for 10 s" in one.stderr()
