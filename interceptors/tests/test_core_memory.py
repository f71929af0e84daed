# SPDX-License-Identifier: Apache-2.0
"""Reserve, settle, give back: never over the limit, never below zero, exactly what the header promises."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_rig import LIMIT, OK, OVER_LIMIT, REFUSED, Container, device, library, player
from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset as place_of


@pytest.fixture
def container(tmp_path: Path, built: Path) -> Iterator[Container]:
    with Container(tmp_path / "container", player(built)) as one:
        yield one


def test_a_limit_is_exact(container: Container) -> None:
    one = container.play()
    assert one.numbers(f"reserve 0 {LIMIT}") == (OK, 0, LIMIT)
    assert one.verdict("reserve 0 1") == OVER_LIMIT
    assert one.numbers("view 0") == (LIMIT, LIMIT, 0, 1)
    assert one.ask("give 0") == "0"
    assert one.numbers("view 0") == (LIMIT, 0, LIMIT, 1)
    assert container.state().devices[0].high_water_bytes == LIMIT
    assert container.state().devices[0].refusals == 1
    container.assert_books()


@pytest.mark.parametrize("huge", [2**64 - 1, 2**64 - LIMIT, 2**63, LIMIT + 1], ids=["all bits", "wraps to the limit", "sign bit", "one too many"])
@pytest.mark.parametrize("held", [0, 1, LIMIT])
def test_huge_sizes_do_not_wrap(container: Container, huge: int, held: int) -> None:
    one = container.play()
    one.ask(f"reserve 0 {held}")
    assert one.verdict(f"reserve 0 {huge}") == OVER_LIMIT
    assert one.verdict(f"settle 0 {huge}") == OVER_LIMIT
    assert container.used() == held


def test_without_a_limit_it_is_counted_all_the_same_and_does_not_wrap(tmp_path: Path, built: Path) -> None:
    with Container(tmp_path / "c", player(built), device(memory_bytes=None)) as container:
        one = container.play()
        assert one.verdict(f"reserve 0 {2**63}") == OK
        assert one.verdict(f"reserve 0 {2**63}") == OVER_LIMIT
        assert one.numbers("view 0") == (4 * LIMIT, 2**63, 0, 0)
        container.assert_books()


@pytest.mark.parametrize("number", [-1, 2, 15, 16, 2**31 - 1, -(2**31)])
def test_a_device_that_the_policy_does_not_know_is_refused(container: Container, number: int) -> None:
    one = container.play()
    assert one.numbers(f"reserve {number} 1") == (REFUSED, 0, 0)
    assert one.numbers(f"view {number}") == (0, 0, 0, 0)


def test_settling(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 100")
    assert one.numbers("settle 0 40") == (OK, 40)
    assert container.used() == 40
    assert one.numbers(f"settle 0 {LIMIT}") == (OK, LIMIT)
    assert one.numbers(f"settle 0 {LIMIT + 1}") == (OVER_LIMIT, LIMIT)
    assert container.used() == LIMIT
    assert one.ask("give 0") == "0"
    assert one.ask("give 0") == "0"  # an empty hold is harmless
    assert container.used() == 0


def test_the_rest(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 9000")
    assert one.numbers("rest 0 1001 5000") == (OVER_LIMIT, 1, 0)
    assert one.numbers("rest 0 100 5000") == (OK, 1, 1000)
    assert one.numbers("rest 0 0 5000") == (OK, 2, 0)
    assert one.numbers("rest 1 100 500") == (OK, 3, 500)
    container.assert_books()


def test_a_lowered_limit_refuses_further_and_takes_nothing(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 6000")
    container.change(2, device(memory_bytes=1000), container.devices[1])
    assert one.verdict("reserve 0 1") == OVER_LIMIT
    assert one.numbers("view 0") == (1000, 6000, 0, 1)
    assert one.numbers("settle 0 500") == (OK, 500)
    assert one.verdict("reserve 0 500") == OK
    container.assert_books()


def test_managed_memory_has_books_of_its_own_when_oversubscribed(tmp_path: Path, built: Path) -> None:
    with Container(tmp_path / "c", player(built), device(virtual_bytes=50_000), device("GPU-b")) as container:
        one = container.play()
        assert one.verdict("virtual 0 50000") == OK
        assert one.verdict("virtual 0 1") == OVER_LIMIT
        assert one.verdict(f"reserve 0 {LIMIT}") == OK
        assert one.verdict(f"virtual 1 {LIMIT}") == OK
        assert one.verdict("reserve 1 1") == OVER_LIMIT  # not oversubscribed: memory like any other
        books = container.state().devices
        assert (books[0].used_bytes, books[0].virtual_used_bytes, books[1].used_bytes, books[1].virtual_used_bytes) == (LIMIT, 50_000, LIMIT, 0)
        for hold in range(3):
            one.ask(f"give {hold}")
        assert [(books.used_bytes, books.virtual_used_bytes) for books in container.state().devices][:2] == [(0, 0), (0, 0)]
        container.assert_books()


def test_an_advisory_policy_counts_and_never_refuses(tmp_path: Path, built: Path) -> None:
    with Container(tmp_path / "c", player(built), advisory=True) as container:
        one = container.play()
        assert one.verdict(f"reserve 0 {3 * LIMIT}") == OK
        assert container.used() == 3 * LIMIT
        assert container.state().devices[0].refusals == 1
        assert one.numbers("settle 0 5") == (OK, 5)
        assert one.verdict("reserve 7 1") == OK  # a device it does not know: nothing to count, nothing to refuse
        container.state_path.unlink()
        two = container.play()
        assert two.numbers(f"reserve 0 {3 * LIMIT}") == (OK, 0, 0)
        assert two.ask("give 0") == "0"
        assert "only advises" in one.stderr()


def test_giving_back_more_than_is_on_the_books_stops_at_zero_and_says_so(container: Container) -> None:
    one = container.play()
    one.ask("reserve 0 500")
    container.change_state(place_of(layout.StateFile, "devices"), bytes(8))
    one.ask("give 0")
    assert container.used() == 0
    assert one.verdict(f"reserve 0 {LIMIT}") == OK
    assert one.stderr().count("wrote over its state file") == 1


def test_what_processes_tell_each_other(container: Container) -> None:
    one, two = container.play(), container.play()
    assert two.ask("known handle-1") == "0"
    one.ask("note handle-1")
    assert two.ask("known handle-1") == "1"
    for number in range(layout.MAX_EXPORTS):
        two.ask(f"note other-{number}")
    assert one.ask("known handle-1") == "0"  # the oldest made room
    one.ask("measure 0 700")
    two.ask("measure 0 900")
    assert two.ask("context 0") == "700"
    assert two.ask("nest") == "1 0"


def test_measuring_is_one_at_a_time_and_survives_a_death(container: Container) -> None:
    one, two = container.play(), container.play()
    one.ask("begin")
    two.tell("measure 1 5")
    assert container.state().devices[1].context_bytes == 0
    one.kill()
    assert two.answer() == "measured"
    assert container.state().devices[1].context_bytes == 5


def test_many_processes_and_threads_never_pass_the_limit(container: Container) -> None:
    assert container.play().verdict("reserve 0 7000") == OK  # so little is left that even one thread alone meets the limit
    players = [container.play() for _ in range(16)]
    for one in players:
        one.tell("race 8 300 0 2500")
    refused = sum(int(one.answer()) for one in players)
    books = container.state().devices[0]
    assert refused > 0
    assert 7000 < books.high_water_bytes <= LIMIT
    assert books.used_bytes == 7000
    container.assert_books()


def test_the_core_loads_by_dlopen_too(container: Container, built: Path) -> None:
    code = "import ctypes, sys; core = ctypes.CDLL(sys.argv[1]); print(core.hami_enter() & 1, core.hami_enter() & 1, core.hami_device_count())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(library(built))],
        env={**os.environ, "HAMI_DEVELOPMENT_POLICY": str(container.folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "0", "2"]


def test_a_hold_is_plain_data_of_the_size_the_front_ends_expect(container: Container) -> None:
    class Hold(ctypes.Structure):
        _fields_ = (("device", ctypes.c_int), ("bytes", ctypes.c_uint64), ("flags", ctypes.c_uint32))

    assert ctypes.sizeof(Hold) == 24
