# SPDX-License-Identifier: Apache-2.0
"""Births, deaths and changes of program: each process is counted once, its parent is undisturbed, and the dead hold nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_rig import LIMIT, OK, OVER_LIMIT, REFUSED, STATE_SIZE, Container, player
from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset as place_of

STATE = layout.StateFile
SLOT = 576


@pytest.fixture
def container(tmp_path: Path, built: Path) -> Iterator[Container]:
    with Container(tmp_path / "container", player(built)) as one:
        yield one


@pytest.mark.parametrize("old_kernel", [False, True], ids=["wiped page", "fork handler"])
@pytest.mark.parametrize("how", ["fork", "clone", "vfork", "spawn", "exec"])
def test_a_child_is_a_process_of_its_own(container: Container, how: str, old_kernel: bool) -> None:
    if old_kernel and how == "clone":
        pytest.skip("a bare clone runs no fork handler: Linux before 4.14 cannot see such a child")
    one = container.play()
    if old_kernel:
        one.ask("oldkernel")
    assert one.verdict("reserve 0 100") == OK
    child = int(one.ask(f"start {how}"))
    assert len(container.taken()) == 1  # it has done nothing yet
    assert one.numbers("child reserve 0 30")[0] == OK
    assert {(slot.pid, slot.devices[0].held_bytes) for slot in container.taken()} == {(one.pid, 100), (child, 30)}
    assert container.used() == 130
    assert one.verdict("reserve 0 5") == OK
    if how in ("fork", "clone"):
        assert one.ask("child give 0") == "0"  # its parent's hold: nothing of the child's
        assert container.used() == 135
    assert one.ask("child give 0" if how in ("vfork", "spawn", "exec") else "child give 1") == "0"
    assert container.used() == 105
    assert one.ask("child reserve 0 40").split()[0] == "0"
    one.ask("end")
    assert one.numbers(f"reserve 0 {LIMIT - 105}")[0] == OK  # the dead child's 40 are taken back
    assert len(container.taken()) == 1
    container.assert_books()


def test_forks_in_the_middle_of_everything(container: Container) -> None:
    """Other threads hold every lock there is when their process forks."""
    one = container.play()
    assert one.ask("forkrace 60") == "60"
    assert (container.used(0), container.used(1)) == (0, 0)
    container.assert_books()


def test_grandchildren(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 1")
    one.ask("start fork")
    one.ask("child reserve 0 10")
    assert int(one.ask("child start fork")) > 0
    one.ask("child child reserve 0 100")
    assert sorted(slot.devices[0].held_bytes for slot in container.taken()) == [1, 10, 100]
    one.ask("child end")
    one.ask("end")
    assert one.verdict(f"reserve 0 {LIMIT - 1}") == OK


def test_a_parent_that_dies_holds_nothing_although_its_silent_child_lives(container: Container) -> None:
    """An OFD lock would live on in the child's copy of the descriptor."""
    one, two = container.play(), container.play()
    one.ask("reserve 0 9000")
    child = int(one.ask("start fork"))
    one.kill()
    try:
        assert two.verdict("reserve 0 5000") == OK
    finally:
        os.kill(child, 9)


def test_what_a_program_held_before_exec_is_taken_back(container: Container) -> None:
    one, two = container.play(), container.play()
    two.ask("reserve 0 1")
    one.ask("reserve 0 9000")
    one.tell("exec")  # the same program again, under the same PID
    assert one.verdict("reserve 0 9999") == OK
    assert len(container.taken()) == 2
    one.tell("become")  # a program that never asks us
    while Path(f"/proc/{one.pid}/comm").read_text().strip() != "cat":
        time.sleep(0.01)
    assert two.verdict("reserve 0 9999") == OK
    assert len(container.taken()) == 1
    container.assert_books()


def test_a_daemon_that_closes_every_descriptor_lives(container: Container) -> None:
    one, two = container.play(), container.play()
    one.ask("reserve 0 9000")
    one.ask("closeall")
    assert two.verdict("reserve 0 2000") == OVER_LIMIT
    assert {slot.pid: slot.devices[0].held_bytes for slot in container.taken()} == {one.pid: 9000, two.pid: 0}
    assert one.verdict("reserve 0 2000") == OVER_LIMIT  # it looks for the dead, and so finds its descriptor gone and takes another
    assert one.ask("give 0") == "0"
    one.kill()
    assert two.verdict(f"reserve 0 {LIMIT}") == OK


def _forge(container: Container, index: int, pid: int, start_ticks: int, held: int, kind: int = layout.SlotState.LIVE) -> None:
    """A slot as a process would have left it."""
    at = place_of(STATE, "slots") + index * SLOT
    slot = layout.Slot.from_buffer_copy(container.state_path.read_bytes()[at : at + SLOT])
    slot.state, slot.pid, slot.start_ticks = 5 << 32 | kind, pid, start_ticks
    slot.devices[0].held_bytes = held
    container.change_state(at, bytes(slot))
    books = container.used() + held
    container.change_state(place_of(STATE, "devices"), books.to_bytes(8, "little"))


def _start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_reused_pid_is_not_the_process_that_had_it(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 1")
    _forge(container, 7, os.getpid(), _start_ticks(os.getpid()) - 1, 9000)
    assert one.verdict("reserve 0 9000") == OK
    assert len(container.taken()) == 1


@pytest.mark.parametrize("kind", [layout.SlotState.CLAIMING, layout.SlotState.LIVE])
def test_a_pid_that_nobody_has(container: Container, kind: int) -> None:
    one = container.play()
    one.ask("reserve 0 1")
    _forge(container, 7, 2**22 + 1, 1, 9000, kind)
    assert one.verdict("reserve 0 9000") == OK
    assert len(container.taken()) == 1
    assert container.state().slots[7].state == 5 << 32  # its number stays, so that the next claim has another word


def test_a_zombie_holds_nothing(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 1")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    ticks = _start_ticks(dead.pid)
    while Path(f"/proc/{dead.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    _forge(container, 7, dead.pid, ticks, 9000)
    assert one.verdict("reserve 0 9000") == OK
    dead.wait()


def test_a_slot_that_is_taken_by_mistake_is_counted_again(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 700")
    one.ask("reserve 1 70")
    container.change_state(place_of(STATE, "slots"), bytes(SLOT))  # "he is dead"
    container.change_state(place_of(STATE, "devices"), bytes(2 * 128))
    assert one.verdict("reserve 0 1") == OK
    assert (container.used(0), container.used(1)) == (701, 70)
    assert one.ask("give 0") == "0"
    assert container.used(0) == 1
    container.assert_books()
    assert "taken from it" in one.stderr()


def test_a_full_table_refuses_with_a_clear_line_and_has_room_again(container: Container) -> None:
    holder = container.play()
    holder.ask("reserve 0 1")
    mine = _start_ticks(os.getpid())
    whole = bytearray(container.state_path.read_bytes())
    for index in range(1, layout.MAX_SLOTS):
        slot = layout.Slot(state=1 << 32 | layout.SlotState.LIVE, pid=os.getpid(), start_ticks=mine)
        at = place_of(STATE, "slots") + index * SLOT
        whole[at : at + SLOT] = bytes(slot)
    assert len(whole) == STATE_SIZE
    with _locked_slots(container):
        container.change_state(place_of(STATE, "slots") + SLOT, bytes(whole[place_of(STATE, "slots") + SLOT :]))
        late = container.play()
        assert late.verdict("reserve 0 1") == REFUSED
        assert late.verdict("reserve 0 1") == REFUSED
        assert late.numbers("view 0")[1] == 1
        assert late.stderr().count("all 1024 places") == 1
    container.change_state(place_of(STATE, "slots") + SLOT, bytes(STATE_SIZE - place_of(STATE, "slots") - SLOT))
    assert container.play().verdict("reserve 0 1") == OK


class _locked_slots:  # noqa: N801 - reads as a phrase
    """Somebody alive holds every slot but the first: one process can stand for all."""

    def __init__(self, container: Container) -> None:
        code = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1023, (1 << 40) + 1); print(flush=True); sys.stdin.read()"
        self._process = subprocess.Popen([sys.executable, "-c", code, container.state_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline()

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_processes(container: Container) -> None:
    """1,024 live processes fill the table, the next is refused, and a death makes room for one more."""
    players = []
    for number in range(layout.MAX_SLOTS):
        players.append(container.play())
        assert players[-1].verdict("reserve 1 1") == OK, number
    assert len(container.taken()) == layout.MAX_SLOTS
    assert container.used(1) == layout.MAX_SLOTS
    late = container.play()
    assert late.verdict("reserve 0 1") == REFUSED
    players[500].kill()
    time.sleep(1.1)  # a refused process asks again after a second
    assert late.verdict("reserve 0 1") == OK
    container.assert_books()


def test_the_agents_question_sees_our_lock(container: Container) -> None:
    from hami_framework.enforcement.region import slot_locked

    one = container.play()
    one.ask("reserve 0 1")
    descriptor = os.open(container.state_path, os.O_RDWR)
    try:
        assert slot_locked(descriptor, 0)
        one.kill()
        assert not slot_locked(descriptor, 0)
    finally:
        os.close(descriptor)


def test_the_agent_reads_and_repairs_what_the_library_writes(container: Container) -> None:
    """The Python reader and the C writer mean the same by every word, and by the mutex."""
    from hami_framework.enforcement.region import Region

    one, two = container.play(), container.play()
    one.ask("reserve 0 300")
    two.ask("reserve 0 4000")
    region = Region(container.state_path)
    usage = region.usage()
    assert usage.devices[0].used_bytes == 4300
    assert region.reclaim_dead() == 0
    two.kill()
    assert region.reclaim_dead() == 1
    assert container.used() == 300
    container.assert_books()
    assert one.verdict(f"reserve 0 {LIMIT - 300}") == OK
