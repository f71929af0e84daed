# SPDX-License-Identifier: Apache-2.0
"""Books against a dictionary, small blocks against a ledger of chunks, and both under threads and sanitizers."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import compute_rig as rig

HERE = Path(__file__).parent
MIB = 1 << 20
HOW = rig.Linear(granule=2 * MIB, small_below=MIB, chunk=2 * MIB)
_bases = itertools.count(1)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> rig.Core:
    library = rig.compiled(tmp_path_factory.mktemp("books") / "libbooks.so", "-O2", "-shared", *rig.sources())
    return rig.Core(library)


@pytest.fixture
def fresh(core: rig.Core) -> rig.Core:
    """The library with an empty ledger and empty books."""
    core.begin()
    everything = rig.Match(lambda entry, context: True)
    for book in range(9):
        core.call("hami_book_sweep", book, everything, None)
    core.begin()
    return core


def keep(core: rig.Core, book: int, key: int, size: int, actual: int, tag: int = 0) -> int:
    hold = rig.Hold()
    assert core.call("hami_reserve", 0, size, hold) == rig.OK
    verdict = core.call("hami_book_keep", book, key, hold, actual, tag)
    if verdict != rig.OK:
        core.call("hami_give_back", hold)
    return int(verdict)


KEYS = st.integers(0, 40).map(lambda n: n * 512) | st.sampled_from([0, 1, 2**64 - 1, 2**63]) | st.integers(0, 2**64 - 1)
STEPS = st.lists(st.tuples(st.sampled_from(["keep", "take", "find", "return", "refer+", "refer-"]), KEYS, st.integers(1, 2**40)), max_size=120)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_a_book_is_a_dictionary_and_the_ledger_is_its_sum(fresh: rig.Core, steps: list[tuple[str, int, int]]) -> None:
    core, model, book = fresh, dict[int, tuple[int, int]](), 1
    everything = rig.Match(lambda entry, context: True)
    core.call("hami_book_sweep", book, everything, None)
    entry = rig.Entry()
    for step, key, size in steps:
        if step == "keep":
            assert keep(core, book, key, size + 7, size, key & 0xFFFF) == rig.OK
            model[key] = (size, 1)
        elif step == "take":
            assert core.call("hami_book_take", book, key, entry) == (key in model)
            if key in model:
                assert (entry.key, entry.hold.bytes, entry.tag) == (key, model.pop(key)[0], key & 0xFFFF)
                core.call("hami_give_back", entry.hold)
        elif step == "return":
            if core.call("hami_book_take", book, key, entry):
                core.call("hami_book_return", book, entry)
        elif step == "find":
            assert core.call("hami_book_find", book, key, entry) == (key in model)
            assert key not in model or (entry.hold.bytes, entry.references) == model[key]
        elif key in model:
            bytes_, references = model[key]
            left = references + (1 if step == "refer+" else -1)
            assert core.call("hami_book_refer", book, key, 1 if step == "refer+" else -1, entry) == left
            if left == 0:
                del model[key]
                core.call("hami_give_back", entry.hold)
            else:
                model[key] = (bytes_, left)
        else:
            assert core.call("hami_book_refer", book, key, 1, entry) == -1
        assert core.read("held") == sum(size for size, _ in model.values())
    odd = rig.Match(lambda entry, context: bool(entry.contents.key & 512))
    assert core.call("hami_book_sweep", book, odd, None) == sum(1 for key in model if key & 512)
    assert core.read("held") == sum(size for key, (size, _) in model.items() if not key & 512)
    assert core.call("hami_book_sweep", book, everything, None) == sum(1 for key in model if not key & 512)
    assert core.read("held") == 0


def test_a_hundred_thousand_entries_are_all_found_and_leave_nothing(fresh: rig.Core) -> None:
    count, base = 100_000, 0x7F00_0000_0000
    for number in range(count):
        assert keep(fresh, rig.POINTER, base + number * 512, 512, 512) == rig.OK
    assert fresh.read("held") == count * 512
    entry = rig.Entry()
    assert all(fresh.call("hami_book_find", rig.POINTER, base + number * 512, entry) for number in range(0, count, 7))
    for number in range(0, count, 2):
        assert fresh.call("hami_book_take", rig.POINTER, base + number * 512, entry)
        fresh.call("hami_give_back", entry.hold)
    assert not fresh.call("hami_book_find", rig.POINTER, base, entry)
    assert all(fresh.call("hami_book_find", rig.POINTER, base + number * 512, entry) for number in range(1, count, 14))
    assert fresh.call("hami_book_sweep", rig.POINTER, rig.Match(lambda entry, context: True), None) == count // 2
    assert fresh.read("held") == 0


def test_keeping_more_than_was_reserved_beyond_the_limit_leaves_the_hold_with_the_caller(fresh: rig.Core) -> None:
    fresh.stub.stub_memory_limit(1000)
    hold = rig.Hold()
    assert fresh.call("hami_reserve", 0, 900, hold) == rig.OK
    assert fresh.call("hami_book_keep", rig.POINTER, 5, hold, 1001, 0) == rig.OVER_LIMIT
    assert hold.bytes == 900
    fresh.call("hami_give_back", hold)
    assert not fresh.call("hami_book_find", rig.POINTER, 5, rig.Entry())
    assert fresh.read("held") == 0


def allocate(core: rig.Core, pointer: int, size: int) -> int:
    hold = rig.Hold()
    verdict = core.call("hami_linear_reserve", HOW, 0, size, hold)
    if verdict == rig.OK:
        verdict = core.call("hami_linear_keep", HOW, pointer, size, hold)
        if verdict == rig.OK:
            assert hold.bytes == 0
        else:
            core.call("hami_give_back", hold)
    return int(verdict)


def release(core: rig.Core, pointer: int) -> None:
    entry = rig.Entry()
    assert core.call("hami_linear_take", HOW, pointer, entry)
    core.call("hami_linear_freed", HOW, entry)


def chunks_of(blocks: dict[int, int]) -> int:
    small = {index for at, size in blocks.items() if size < MIB for index in range(at // (2 * MIB), (at + size - 1) // (2 * MIB) + 1)}
    large = sum(-(-size // (2 * MIB)) for size in blocks.values() if size >= MIB)
    return (len(small) + large) * 2 * MIB


SIZES = st.integers(1, MIB - 1) | st.sampled_from([1, 512, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1]) | st.integers(1, 64 * MIB)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 63), SIZES), max_size=80))
def test_linear_memory_is_charged_by_whole_chunks_exactly(fresh: rig.Core, steps: list[tuple[bool, int, int]]) -> None:
    core, blocks = fresh, dict[int, int]()
    base = next(_bases) << 40
    for fresh_block, place, size in steps:
        pointer = base + place * 333 * 1024
        if fresh_block:
            assert allocate(core, pointer, size) == rig.OK
            blocks[pointer] = size
        elif pointer in blocks:
            release(core, pointer)
            del blocks[pointer]
        assert core.read("held") == chunks_of(blocks)
    everything = rig.Match(lambda entry, context: True)
    assert core.call("hami_linear_sweep", HOW, everything, None) == len(blocks)
    assert core.read("held") == 0
    assert core.call("hami_book_sweep", rig.CHUNK, everything, None) == 0


def test_a_small_block_is_refused_where_a_new_chunk_would_not_fit(fresh: rig.Core) -> None:
    fresh.stub.stub_memory_limit(3 * MIB)
    base = next(_bases) << 40
    assert allocate(fresh, base, 512) == rig.OK
    assert allocate(fresh, base + 512, 512) == rig.OVER_LIMIT  # an open chunk may have room, but who knows beforehand
    assert fresh.read("high_water") == 2 * MIB
    release(fresh, base)
    assert fresh.read("held") == 0


def test_a_free_that_the_driver_refused_changes_nothing(fresh: rig.Core) -> None:
    base = next(_bases) << 40
    assert allocate(fresh, base, 512) == rig.OK
    entry = rig.Entry()
    assert fresh.call("hami_linear_take", HOW, base, entry)
    fresh.call("hami_linear_return", HOW, entry)
    assert fresh.read("held") == 2 * MIB
    release(fresh, base)
    assert fresh.read("held") == 0


def test_sizes_near_the_end_of_the_number_line_do_not_wrap(fresh: rig.Core) -> None:
    fresh.stub.stub_memory_limit(10 * MIB)
    for size in (2**64 - 1, 2**64 - 2 * MIB, 2**63):
        assert allocate(fresh, 4096, size) == rig.OVER_LIMIT
    assert fresh.read("held") == 0
    assert ctypes.sizeof(rig.Entry) == 48


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_threads_race_without_a_word_from_the_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    program = rig.compiled(tmp_path / "race", "-O1", f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer", *rig.sources(), str(HERE / "books" / "race.c"))
    done = subprocess.run(
        [program, "4", "4000"], capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert (done.returncode, done.stdout.strip()) == (0, "held 0"), done.stderr
