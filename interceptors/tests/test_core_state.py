# SPDX-License-Identifier: Apache-2.0
"""The state file: made ready once, refused when it is not ours, full or read-only, and never a reason to end the program."""

from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core_rig import LIMIT, OK, OVER_LIMIT, REFUSED, STATE_SIZE, Container, player
from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset as place_of

STATE = layout.StateFile
ROOT = os.geteuid() == 0


@pytest.fixture
def container(tmp_path: Path, built: Path) -> Iterator[Container]:
    with Container(tmp_path / "container", player(built)) as one:
        yield one


def _word(offset: int, value: int, ready: int = 1) -> Callable[[Container], None]:
    def change(container: Container) -> None:
        container.change_state(0, struct.pack("<QIII", layout.STATE_MAGIC, layout.LAYOUT_VERSION, STATE_SIZE, ready))
        container.change_state(offset, struct.pack("<I", value))

    return change


def _size(length: int) -> Callable[[Container], None]:
    return lambda container: os.truncate(container.state_path, length)


def _folder(container: Container) -> None:
    container.state_path.unlink()
    container.state_path.mkdir()


def _link(container: Container) -> None:
    container.state_path.rename(container.folder / "elsewhere")
    container.state_path.symlink_to(container.folder / "elsewhere")


BAD: dict[str, tuple[Callable[[Container], None], str]] = {
    "missing": (lambda container: container.state_path.unlink(), "not there"),
    "magic, ready": (_word(0, 0x11111111), "another layout, or damaged"),
    "magic, not ready": (_word(0, 0x11111111, ready=0), "another layout, or damaged"),
    "version": (_word(place_of(STATE, "layout_version"), 2), "another layout, or damaged"),
    "version, not ready": (_word(place_of(STATE, "layout_version"), 2, ready=0), "another layout, or damaged"),
    "size field": (_word(place_of(STATE, "size"), 12), "another layout, or damaged"),
    "ready is no boolean": (_word(place_of(STATE, "ready"), 7), "another layout, or damaged"),
    "mutex written over": (_word(place_of(STATE, "ready"), 1), "its lock was written over"),
    "shorter": (_size(STATE_SIZE - 1), "another layout"),
    "longer": (_size(STATE_SIZE + 4096), "another layout"),
    "a folder": (_folder, "folder"),
    "a link": (_link, "symbolic link"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_state_file_is_refused_in_one_line(container: Container, name: str) -> None:
    change, sentence = BAD[name]
    change(container)
    one = container.play()
    assert one.verdict("reserve 0 1") == REFUSED
    assert one.verdict("reserve 0 1") == REFUSED
    assert one.numbers("view 0") == (LIMIT, 0, LIMIT, 1)  # what a query shows is the slice all the same
    lines = [line for line in one.stderr().splitlines() if "DEVELOPMENT" not in line]
    assert len(lines) == 1, lines
    assert sentence in lines[0]
    assert "state.bin" in lines[0]


@pytest.mark.parametrize(
    "begin",
    [b"", bytes(STATE_SIZE), struct.pack("<QII", layout.STATE_MAGIC, 1, STATE_SIZE).ljust(STATE_SIZE, b"\0")],
    ids=["empty", "zeroes", "agent's header"],
)
def test_the_first_process_makes_it_ready(container: Container, begin: bytes) -> None:
    container.state_path.write_bytes(begin)
    one = container.play()
    assert one.verdict("reserve 0 100") == OK
    state = container.state()
    assert (state.magic, state.layout_version, state.size, state.ready) == (layout.STATE_MAGIC, layout.LAYOUT_VERSION, STATE_SIZE, 1)
    assert container.state_path.stat().st_blocks * 512 >= STATE_SIZE
    slot = container.taken()[0]
    assert (slot.pid, slot.state >> 32, slot.state & 0xFFFFFFFF) == (one.pid, 1, layout.SlotState.LIVE)
    assert slot.start_ticks == int(Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_many_begin_at_once(container: Container) -> None:
    players = [container.play() for _ in range(12)]
    for one in players:
        one.tell("reserve 0 100")
    assert {one.answer().split()[0] for one in players} == {"0"}
    assert len(container.taken()) == 12
    assert container.used() == 1200
    container.assert_books()


def test_a_file_that_may_grow_no_larger_is_an_error_and_not_a_signal(container: Container, tmp_path: Path) -> None:
    container.state_path.write_bytes(b"")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        one = container.play()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert one.verdict("reserve 0 1") == REFUSED
    assert "RLIMIT_FSIZE" in one.stderr()


@pytest.fixture
def small_disk(container: Container) -> Iterator[Path]:
    if not ROOT or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    folder = container.state_path.parent
    container.state_path.unlink()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        for one in container.started:
            one.kill()
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_and_not_a_signal(container: Container, small_disk: Path) -> None:
    container.state_path.touch()
    os.truncate(container.state_path, STATE_SIZE)  # sparse: its blocks are not there
    one = container.play()
    assert one.verdict("reserve 0 1") == REFUSED
    assert "full" in one.stderr()


def test_a_read_only_file_system_is_refused(container: Container, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    one = container.play()
    assert one.verdict("reserve 0 1") == REFUSED
    assert "not there" in one.stderr()


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_a_user_without_write_access_is_refused(container: Container, built: Path) -> None:
    program = container.folder.parent / "play"
    shutil.copy(player(built), program)
    for place in (container.folder, *container.folder.parents):
        if place == Path("/tmp"):
            break
        place.chmod(place.stat().st_mode | 0o055)
    container.state_path.chmod(0o644)
    run = ["setpriv", "--reuid=65534", "--clear-groups", str(program)]
    env = {**os.environ, "HAMI_DEVELOPMENT_POLICY": str(container.folder)}
    done = subprocess.run(run, input="reserve 0 1\n", capture_output=True, text=True, env=env, check=False)
    if "setpriv" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout.split()[0] == str(REFUSED)
    assert "may not open it" in done.stderr
    container.state_path.chmod(0o666)
    done = subprocess.run(run, input="reserve 0 1\n", capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split()[0] == str(OK)


def test_a_scribbled_lock_refuses_and_ends_nobody(container: Container) -> None:
    one = container.play()
    assert one.verdict("reserve 0 1") == OK
    container.change_state(place_of(STATE, "mutex"), b"\xff" * 64)
    assert one.verdict("reserve 0 1") == REFUSED
    assert one.ask("give 0") == "0"
    assert "written over" in one.stderr()


def test_scribbled_slots_end_nobody(container: Container) -> None:
    one = container.play()
    assert one.verdict("reserve 0 1") == OK
    container.change_state(place_of(STATE, "slots"), os.urandom(STATE_SIZE - place_of(STATE, "slots")))
    assert one.verdict("reserve 0 1") in (OK, OVER_LIMIT, REFUSED)
    assert one.verdict(f"reserve 0 {LIMIT}") in (OVER_LIMIT, REFUSED)


def test_nobody_reads_the_policy_from_the_state_file(container: Container) -> None:
    """Whatever a tenant writes there, the limit stays the policy's."""
    one = container.play()
    one.ask("reserve 0 1")
    container.change_state(place_of(STATE, "devices"), struct.pack("<QQ", 0, 2**63))
    assert one.verdict(f"reserve 0 {LIMIT + 1}") == OVER_LIMIT
