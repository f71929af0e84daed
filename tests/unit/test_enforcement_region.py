# SPDX-License-Identifier: Apache-2.0
"""The state file: read without trust, its dead found and taken out, its scribbles named. Tenants are real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hami_framework.enforcement import layout, processes, region
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.enforcement.region import Region
from hami_framework.errors import FormatError, Unavailable
from hami_framework.testing.tenant import Tenant

GIB = 2**30
POLICY = Policy(container="u/main", devices=(DevicePolicy(vendor="acme", identities=(("uuid", "X"),), memory_bytes=GIB, capacity_bytes=8 * GIB),))

Start = Callable[..., Tenant]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    region.create(tmp_path / region.FILE)
    return tmp_path / region.FILE


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    running: list[Tenant] = []

    def begin(slot: int = 0, held: int = 1000, lock: bool = True) -> Tenant:
        running.append(Tenant(path, slot=slot, held=held, lock=lock))
        return running[-1]

    yield begin
    for tenant in running:
        tenant.stop()


def change(path: Path, edit: Callable[[layout.StateFile], None]) -> None:
    """Scribble as a tenant can."""
    image = layout.StateFile.from_buffer_copy(path.read_bytes())
    edit(image)
    with path.open("r+b") as file:
        file.write(bytes(image))


def test_an_empty_region_holds_nothing(path: Path) -> None:
    usage = Region(path).usage(1)
    assert (usage.processes, usage.devices[0].used_bytes) == ((), 0)
    assert Region(path).check(POLICY) == ()
    assert path.stat().st_mode & 0o777 == 0o666
    assert path.stat().st_blocks * 512 >= region.SIZE
    assert Region(path).reclaim_dead() == 0


def test_a_living_process_is_counted(path: Path, start: Start) -> None:
    tenant = start(slot=7, held=4096)
    (process,) = Region(path).usage(1).processes
    assert (process.slot, process.pid, process.alive, process.devices[0].held_bytes) == (7, tenant.pid, True, 4096)
    assert Region(path).usage(1).devices[0].used_bytes == 4096
    assert Region(path).reclaim_dead() == 0
    assert Region(path).check(POLICY) == ()


@pytest.mark.parametrize("lock", [True, False], ids=["by its lock", "by its start time"])
def test_the_dead_are_taken_out_and_the_living_stay(path: Path, start: Start, lock: bool) -> None:
    start(slot=0, held=500)
    dying = start(slot=1, held=4096, lock=lock)
    dying.stop()
    assert [process.slot for process in Region(path).usage(1).dead] == [1]
    assert Region(path).reclaim_dead() == 1
    usage = Region(path).usage(1)
    assert ([process.slot for process in usage.processes], usage.devices[0].used_bytes, usage.epoch) == ([0], 500, 1)
    assert Region(path).check(POLICY) == ()


def test_a_process_without_its_lock_is_alive_while_it_runs(path: Path, start: Start) -> None:
    start(lock=False)
    assert Region(path).usage(1).dead == ()


def test_a_program_that_was_replaced_holds_nothing_although_its_pid_lives(path: Path, start: Start) -> None:
    tenant = start(lock=False)
    tenant.tell("exec")
    until = time.monotonic() + 20
    while not Region(path).usage(1).dead and time.monotonic() < until:
        time.sleep(0.02)
    assert [process.pid for process in Region(path).usage(1).dead] == [tenant.pid]
    assert tenant.process.poll() is None
    assert Region(path).reclaim_dead() == 1


def test_a_pid_that_came_back_is_another_process(path: Path, start: Start) -> None:
    tenant = start(lock=False)
    change(path, lambda image: setattr(image.slots[0], "start_ticks", image.slots[0].start_ticks - 1))
    assert [process.pid for process in Region(path).usage(1).dead] == [tenant.pid]


def test_an_owner_that_died_with_the_mutex_is_survived(path: Path, start: Start) -> None:
    start(slot=0, held=500)
    dying = start(slot=1, held=4096)
    dying.tell("lock")
    change(path, lambda image: setattr(image.devices[0], "used_bytes", 1))  # it died in the middle of a sum
    dying.stop()
    assert Region(path).reclaim_dead() == 1
    assert Region(path).usage(1).devices[0].used_bytes == 500
    start(slot=2).stop()
    assert Region(path).reclaim_dead() == 1, "the mutex was left consistent"


def test_a_mutex_that_is_kept_is_not_waited_for(path: Path, start: Start) -> None:
    keeper = start(slot=0)
    keeper.tell("lock")
    start(slot=1).stop()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="mutex was not to be had"):
        Region(path).reclaim_dead(timeout_seconds=0.2)
    assert time.monotonic() - began < 10
    keeper.tell("unlock")
    assert Region(path).reclaim_dead() == 1


def test_a_slot_that_was_taken_again_meanwhile_is_left_alone(path: Path, start: Start) -> None:
    from hami_framework.enforcement import reclaim

    start(slot=1).stop()
    (dead,) = Region(path).usage(1).dead
    change(path, lambda image: setattr(image.slots[1], "state", (2 << 32) | layout.SlotState.LIVE))
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert reclaim.reclaim(descriptor, {dead.slot: dead.state}, 1.0) == 0
    finally:
        os.close(descriptor)


def test_the_helper_needs_nothing_but_the_standard_library(path: Path, start: Start) -> None:
    """`-I -S`: neither the package nor anything that is installed can be found."""
    from hami_framework.enforcement import reclaim

    start(slot=3).stop()
    (dead,) = Region(path).usage(1).dead
    path.chmod(0o666)
    command = [sys.executable, "-I", "-S", reclaim.__file__, "1.0", f"{dead.slot}:{dead.state}"]
    with path.open("r+b") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False, env={})
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert Region(path).usage(1).processes == ()


def scribbled_sum(image: layout.StateFile) -> None:
    image.devices[0].used_bytes = 17


def scribbled_tat(image: layout.StateFile) -> None:
    image.devices[0].tat_ns = 2**62


def scribbled_mutex(image: layout.StateFile) -> None:
    image.ready = 1
    image.mutex[16] = 0xFF


def scribbled_capacity(image: layout.StateFile) -> None:
    image.slots[3].state = layout.SlotState.LIVE
    image.slots[3].devices[0].held_bytes = image.devices[0].used_bytes = 9 * GIB


def scribbled_slot(image: layout.StateFile) -> None:
    image.slots[7].state = 77


def scribbled_owner(image: layout.StateFile) -> None:
    image.mutex[0:4] = [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("edit", "kind", "words"),
    [
        (scribbled_slot, "slot", "slot 7 is in state 77"),
        (scribbled_owner, "mutex", "kept by thread 1"),
        (scribbled_sum, "sum", "say 17 bytes"),
        (scribbled_tat, "tat", "held back for"),
        (scribbled_mutex, "mutex", "kind is 0xff"),
        (scribbled_capacity, "capacity", "on a device that has 8589934592"),
    ],
)
def test_scribbles_are_named(path: Path, edit: Callable[[layout.StateFile], None], kind: str, words: str) -> None:
    change(path, edit)
    (finding,) = Region(path).check(POLICY)
    assert finding.kind == kind
    assert words in finding.message


def test_a_sum_that_is_being_changed_is_not_judged(path: Path, start: Start) -> None:
    tenant = start()
    tenant.tell("lock")
    change(path, scribbled_sum)
    assert [finding.kind for finding in Region(path).check(POLICY)] == ["mutex"], "kept for longer than the library ever does"


def cut(path: Path) -> None:
    os.truncate(path, 100)


def grow(path: Path) -> None:
    os.truncate(path, 10 * region.SIZE)


def other_layout(path: Path) -> None:
    change(path, lambda image: setattr(image, "layout_version", 2))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("damage", "kind"), [(cut, "layout"), (grow, "size"), (other_layout, "layout"), (pipe, "layout"), (link, "layout"), (os.unlink, "missing")]
)
def test_a_replaced_file_is_a_finding_and_harms_nobody(path: Path, damage: Callable[[Path], None], kind: str) -> None:
    damage(path)
    (finding,) = Region(path).check(POLICY)
    assert finding.kind == kind


@pytest.mark.parametrize("damage", [cut, other_layout, pipe, link])
def test_a_damaged_file_is_not_read_as_usage(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    with pytest.raises(FormatError, match=region.FILE):
        Region(path).usage()


def test_living_processes_are_found_by_both_their_numbers() -> None:
    own = (os.getpid(), processes.start_ticks(Path("/proc/self")))
    assert own[1] is not None
    identity = (own[0], own[1])
    assert processes.host_pids([identity, (own[0], 1)]) == {identity: os.getpid()}
