# SPDX-License-Identifier: Apache-2.0
"""Which policy is in effect: every damaged one is refused with one clear line, a changed one is seen at once, nothing else counts."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core_rig import LIMIT, OK, OVER_LIMIT, REFUSED, Container, device, player
from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset as place_of
from hami_framework.enforcement.policy import fnv1a

USABLE, LIMITED, ADVISORY, SUSPENDED = 1, 2, 4, 8
HEADER = layout.PolicyHeader


@pytest.fixture
def container(tmp_path: Path, built: Path) -> Iterator[Container]:
    with Container(tmp_path / "container", player(built)) as one:
        yield one


def _patched(offset: int, data: bytes, *, sign: bool = True) -> Callable[[Path], None]:
    """Bytes changed, and (a liar would) the checksum made right again."""

    def change(folder: Path) -> None:
        path = folder / "policy" / "policy.bin"
        whole = bytearray(path.read_bytes())
        whole[offset : offset + len(data)] = data
        if sign:
            place = slice(place_of(HEADER, "checksum"), place_of(HEADER, "checksum") + 8)
            whole[place] = bytes(8)
            whole[place] = fnv1a(whole).to_bytes(8, "little")
        path.write_bytes(whole)

    return change


def _resized(length: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "policy" / "policy.bin"
        path.write_bytes(path.read_bytes().ljust(length, b"\0")[:length])

    return change


def _linked(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "policy" / name
        path.rename(folder / name)
        path.symlink_to(folder / name)

    return change


def _replaced_by_folder(folder: Path) -> None:
    (folder / "policy" / "policy.bin").unlink()
    (folder / "policy" / "policy.bin").mkdir()


def _fifo(folder: Path) -> None:
    (folder / "policy" / "policy.bin").unlink()
    os.mkfifo(folder / "policy" / "policy.bin")


def _control(data: bytes, offset: int = 0) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "policy" / "control.bin"
        whole = bytearray(path.read_bytes())
        whole[offset : offset + len(data)] = data
        path.unlink()
        path.write_bytes(whole)

    return change


WORD = struct.Struct("<I")
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "magic": (_patched(0, b"NOTHAMI!"), "not a policy file"),
    "version": (_patched(place_of(HEADER, "layout_version"), WORD.pack(2)), "layout version is 2"),
    "header size": (_patched(place_of(HEADER, "header_size"), WORD.pack(128)), "header of 128"),
    "record size": (_patched(place_of(HEADER, "record_size"), WORD.pack(900)), "records of 900"),
    "too many devices": (_patched(place_of(HEADER, "device_count"), WORD.pack(17)), "17 devices"),
    "very many devices": (_patched(place_of(HEADER, "device_count"), WORD.pack(2**32 - 1)), "4294967295 devices"),
    "fewer devices than records": (_patched(place_of(HEADER, "device_count"), WORD.pack(1)), "do not fit 1 devices"),
    "checksum": (_patched(300, b"\x55", sign=False), "checksum is wrong"),
    "limit changed by hand": (_patched(256 + place_of(layout.PolicyDevice, "memory_bytes"), struct.pack("<Q", 2**40), sign=False), "checksum is wrong"),
    "empty": (_resized(0), "0 bytes"),
    "cut in the header": (_resized(200), "200 bytes"),
    "cut in a record": (_resized(256 + 904 + 1), "do not fit 2 devices"),
    "longer than any policy": (_resized(1 << 20), "1048576 bytes"),
    "missing": (lambda folder: (folder / "policy" / "policy.bin").unlink(), "not there"),
    "a link": (_linked("policy.bin"), "symbolic link"),
    "a folder": (_replaced_by_folder, "not a regular file"),
    "a pipe": (_fifo, "not a regular file"),
    "no control file": (lambda folder: (folder / "policy" / "control.bin").unlink(), "not there"),
    "a link to a control file": (_linked("control.bin"), "symbolic link"),
    "control magic": (_control(b"NOTHAMI!"), "not a control file"),
    "control version": (_control(WORD.pack(9), place_of(layout.ControlFile, "layout_version")), "not a control file"),
    "control size": (_control(WORD.pack(9), place_of(layout.ControlFile, "size")), "not a control file"),
    "short control file": (lambda folder: os.truncate(folder / "policy" / "control.bin", 100), "too few"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_policy_fails_closed_in_one_line(container: Container, name: str) -> None:
    change, sentence = BAD[name]
    change(container.folder)
    one = container.play()
    assert one.numbers("reserve 0 1") == (REFUSED, 0, 0)
    assert one.numbers("info") == (0, 0, 0, LIMITED)
    assert one.ask("find uuid GPU-a") == "-1"
    assert one.ask("view 0") == "0 0 0 0"
    lines = [line for line in one.stderr().splitlines() if "DEVELOPMENT" not in line]
    assert len(lines) == 1, lines
    assert sentence in lines[0]
    assert "every device is refused" in lines[0]
    assert str(container.folder) in lines[0]


def test_no_policy_at_all(container: Container) -> None:
    one = container.play(env={"HAMI_DEVELOPMENT_POLICY": ""})
    assert one.verdict("reserve 0 1") == REFUSED
    assert one.stderr().count("\n") == 1
    assert "no policy in /run/hami/policy" in one.said  # type: ignore[operator]


def test_a_development_policy_says_so_once(container: Container) -> None:
    one = container.play()
    for _ in range(3):
        assert one.verdict("reserve 0 1") == OK
    assert one.stderr().count("DEVELOPMENT POLICY") == 1


def test_in_production_the_environment_is_ignored(tmp_path: Path, built: Path) -> None:
    """The node's folder is there: nothing that a program says in its environment counts."""
    program = player(built, flags=[f'-DHAMI_DIRECTORY="{tmp_path / "node"}"'])
    with Container(tmp_path / "node", program, device(memory_bytes=1000)) as node, Container(tmp_path / "own", program, device(memory_bytes=3 * LIMIT)) as own:
        one = node.play(env={"HAMI_DEVELOPMENT_POLICY": str(own.folder)})
        assert one.verdict("reserve 0 1001") == OVER_LIMIT
        assert one.stderr() == ""
        node.policy_path.unlink()  # the folder is there, the policy is not: damaged, not "development"
        assert own.play().verdict("reserve 0 1") == REFUSED


def test_a_folder_that_may_not_be_read_is_not_a_missing_one(tmp_path: Path, built: Path) -> None:
    (tmp_path / "node").write_text("")  # ENOTDIR, not ENOENT
    program = player(built, flags=[f'-DHAMI_DIRECTORY="{tmp_path / "node"}"'])
    with Container(tmp_path / "own", program) as own:
        assert own.play().verdict("reserve 0 1") == REFUSED


@pytest.mark.parametrize(
    ("kind", "value", "index"),
    [
        ("uuid", "GPU-a", 0),
        ("UUID", "gpu-A", 0),
        ("uuid", "GPU-b", 1),
        ("pci", "0000:07:00.0", 2),
        ("PCI", "0000:07:00.0", 2),
        ("uuid", "GPU-", -1),
        ("uuid", "GPU-aa", -1),
        ("uuid", "", -1),
        ("pci", "GPU-a", -1),
        ("ordinal", "0", -1),
        ("long", "v" * 80, 2),
        ("long", "V" * 80, 2),
        ("long", "v" * 79, -1),
        ("long", "v" * 81, -1),
        ("k" * 16, "full", 2),
        ("k" * 17, "full", -1),
    ],
)
def test_identities(tmp_path: Path, built: Path, kind: str, value: str, index: int) -> None:
    names = (("pci", "0000:07:00.0"), ("long", "x"), ("k", "full"))
    with Container(tmp_path / "c", player(built), device("GPU-a"), device("GPU-b"), device(identities=names)) as container:
        # fields that fill their room without a NUL: the encoder makes none, but the layout allows them
        record = 256 + 2 * 904 + place_of(layout.PolicyDevice, "identities")
        _patched(record + 96 + 16, b"v" * 80)(container.folder)
        _patched(record + 2 * 96, b"k" * 16)(container.folder)
        assert container.play().ask(f"find {kind} {value}") == str(index)


def test_a_new_policy_is_seen_at_once_and_moves_no_record(container: Container) -> None:
    one = container.play()
    assert one.numbers("info") == (1, 1, 2, USABLE)
    container.change(2, device(memory_bytes=50, core_milli=30_000), container.devices[1], device("GPU-c"))
    assert one.numbers("info") == (1, 2, 3, USABLE | LIMITED)
    assert one.verdict("reserve 0 51") == OVER_LIMIT
    assert one.ask("find uuid GPU-c") == "2"
    container.change(3, device(), container.devices[1], device("GPU-c"))
    assert one.numbers("info") == (1, 3, 3, USABLE)


def test_suspending_moves_the_gate_and_keeps_the_policy(container: Container) -> None:
    one = container.play()
    assert one.numbers("info") == (1, 1, 2, USABLE)
    container.control.suspend()
    assert one.numbers("info") == (1, 2, 2, USABLE | LIMITED | SUSPENDED)
    assert one.verdict(f"reserve 0 {LIMIT}") == OK  # memory goes on
    container.control.resume()
    assert one.numbers("info") == (1, 3, 2, USABLE)
    assert [line for line in one.stderr().splitlines() if "DEVELOPMENT" not in line] == []


@pytest.mark.parametrize("damage", ["magic", "checksum", "cut in a record", "missing"])
def test_a_policy_that_is_damaged_later_leaves_the_one_before_it(container: Container, damage: str) -> None:
    one = container.play()
    assert one.verdict("reserve 0 100") == OK
    for generation in (2, 3):
        container.put(generation, device(memory_bytes=3 * LIMIT), container.devices[1])
        BAD[damage][0](container.folder)
        container.control.set_generation(generation)
        assert one.verdict(f"reserve 0 {LIMIT}") == OVER_LIMIT
        assert one.numbers("info") == (1, generation, 2, USABLE)
    container.change(4, device(memory_bytes=3 * LIMIT), container.devices[1])
    assert one.verdict(f"reserve 0 {LIMIT}") == OK
    assert one.stderr().count("the policy before it stays in effect") == 1


def test_a_policy_that_is_bad_at_first_may_become_good(container: Container) -> None:
    good = container.policy_path.read_bytes()
    container.policy_path.write_bytes(b"")
    one = container.play()
    assert one.verdict("reserve 0 1") == REFUSED
    container.policy_path.write_bytes(good)
    assert one.verdict("reserve 0 1") == REFUSED  # nobody has said that there is news
    container.control.set_generation(2)
    assert one.verdict("reserve 0 1") == OK


def test_generations_may_wrap(container: Container) -> None:
    one = container.play()
    container.change(2**32, *container.devices)
    assert one.numbers("info")[:2] == (1, 2**32 - 1)  # 0 would say that there is no policy


def test_the_layouts_agree() -> None:
    assert (ctypes.sizeof(layout.PolicyHeader), ctypes.sizeof(layout.PolicyDevice), ctypes.sizeof(layout.ControlFile)) == (256, 904, 1152)


def test_advisory_is_in_the_gate(tmp_path: Path, built: Path) -> None:
    with Container(tmp_path / "c", player(built), advisory=True) as container:
        assert container.play().numbers("info")[3] == USABLE | ADVISORY
