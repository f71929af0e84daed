# SPDX-License-Identifier: Apache-2.0
"""libhami_ascend.so before a fake of CANN's runtime: real processes, real preloading, and the card as the oracle of what was really taken.

Every row of the table that is hooked is driven by a test that fails without its hook; `tests/tested/ascend.txt` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preloaded import LIMIT, MIB, Start, check_a_launch, launch_rows, shape, starting
from rigs import ASCEND, Libraries

from hami_framework.enforcement import layout
from hami_interceptor import coverage, spec

OUT_OF_MEMORY, NO_PERMISSION = 207001, 207006

FILLED = [
    ("rtMalloc", "rtFree"),
    ("small", "rtFree"),
    ("rtMallocCached", "rtFreeWithDevSync"),
    ("rtsMalloc", "rtsFree"),
    ("rtMemAlloc", "rtsFree"),
    ("rtMemAllocManaged", "rtMemFreeManaged"),
    ("rtDvppMalloc", "rtDvppFree"),
    ("rtDvppMallocWithFlag", "rtDvppFree"),
    ("rtMallocPhysical", "rtFreePhysical"),
    ("rtsMemMallocPhysical", "rtsMemFreePhysical"),
    ("rtMemPoolMallocAsync", "rtMemPoolFreeAsync"),
    ("rtMapMem", "rtUnmapMem"),
    ("rtsMemMap", "rtsMemUnmap"),
]
"""Ways to take memory, each with the way to give it back. "small": blocks that share pages."""

MAPPINGS = [("rtMapMem", "rtUnmapMem", "rtFreePhysical"), ("rtsMemMap", "rtsMemUnmap", "rtsMemFreePhysical")]
RETAINED = ("rtMemRetainAllocationHandle",)
POOL = ("rtMemPoolMallocAsync", "rtMemPoolFreeAsync", "rtMemPoolTrimTo", "rtMemPoolDestroy")
QUERIES = ("rtMemGetInfo", "rtMemGetInfoEx", "rtsMemGetInfo")
RESETS = [
    ("rtSetDevice", "rtDeviceReset"),
    ("rtSetDeviceEx", "rtDeviceResetEx"),
    ("rtSetDeviceWithoutTsd", "rtDeviceResetWithoutTsd"),
    ("rtSetDeviceWithFlags", "rtDeviceReset"),
    ("rtsSetDevice", "rtDeviceReset"),
    ("rtSetDevice", "rtDeviceResetForce"),
    ("rtsSetDevice", "rtsDeviceResetForce"),
]
SHARED = [
    ("rtMemExportToShareableHandle", "rtMemImportFromShareableHandle"),
    ("rtsMemExportToShareableHandle", "rtsMemImportFromShareableHandle"),
]
LAUNCHES = launch_rows(spec.load("ascend"))
LETTERS = {"rtStream_t": "n"}


@pytest.fixture
def start(tmp_path: Path, interceptor: Libraries, fake_driver: Libraries) -> Iterator[Start]:
    with starting(ASCEND.rig(tmp_path, interceptor, fake_driver)) as start:
        yield start


def test_every_hooked_row_is_driven() -> None:
    tables = [*FILLED, *MAPPINGS, RETAINED, POOL, QUERIES, *RESETS, *SHARED, [row.symbol for row in LAUNCHES]]
    driven = {name for table in tables for name in table} - {"small"}
    assert driven == {row.symbol for row in spec.load("ascend").rows if row.must_hook}
    assert driven == set(coverage.manifest("ascend"))


@pytest.mark.parametrize(("taking", "giving"), FILLED)
def test_every_allocation_ends_at_the_limit_and_what_is_freed_is_gone(start: Start, taking: str, giving: str) -> None:
    running = start("fill", taking, giving)
    full = running.says()
    assert full["code"] == OUT_OF_MEMORY
    assert full["blocks"] >= 1
    assert full["total"] == LIMIT
    assert 50 * MIB < running.held().high_water <= LIMIT
    freed = running.goes_on()
    assert freed.pop("more") == pytest.approx(0, abs=32), "what is given back can be taken again; small blocks share pages"
    assert freed == {"codes": [0], "again": OUT_OF_MEMORY, "free": LIMIT, "total": LIMIT}
    assert running.held().high_water <= LIMIT
    assert running.charged_and_held() == (0, 0)


def test_memory_of_the_host_is_not_charged(start: Start) -> None:
    running = start("host")
    assert running.says() == {"code": 0}
    assert running.charged_and_held() == (0, 0)


@pytest.mark.parametrize("names", MAPPINGS, ids=lambda names: names[0])
def test_physical_memory_is_charged_as_long_as_anything_keeps_it(start: Start, names: tuple[str, ...]) -> None:
    running = start("mapping", *names)
    assert (running.says(), running.charged_and_held()) == ({"codes": [0, 0, 0]}, (40, 40)), "the mapping keeps it"
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0, 0]}, (40, 40)), "the handle that was got back keeps it"
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0]}, (0, 0))


def test_a_pool_is_charged_for_what_it_keeps(start: Start) -> None:
    running = start("pool")
    assert (running.says(), running.charged_and_held()) == ({"codes": [0] * 3}, (24, 24))
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0] * 3}, (24, 24)), "what is freed stays in the pool"
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0]}, (0, 0)), "trimmed"
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0] * 6}, (24, 24))
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0]}, (0, 0)), "destroyed"


@pytest.mark.parametrize("identity", [("physical", "5"), ("logical", "0")], ids=["physical", "logical"])
@pytest.mark.parametrize("query", QUERIES)
def test_queries_show_the_slice_of_a_device_by_any_of_its_numbers(start: Start, query: str, identity: tuple[str, str]) -> None:
    assert start("queries", identities=(identity,)).says()[query] == [LIMIT, LIMIT]


def test_a_device_that_the_policy_does_not_name_is_refused(start: Start) -> None:
    running = start("fill", "rtMalloc", "rtFree", identities=(("physical", "6"),))
    assert running.says()["code"] == NO_PERMISSION
    assert running.held().high_water == 0


@pytest.mark.parametrize(("setting", "resetting"), RESETS)
def test_the_last_reset_of_a_device_takes_its_memory_with_it(start: Start, setting: str, resetting: str) -> None:
    running = start("reset", setting, resetting)
    held = (0, 0) if "Force" in resetting else (18, 18)
    assert (running.says(), running.charged_and_held()) == ({"codes": [0] * 6}, held), "set twice, reset once"
    running.goes_on()
    assert running.charged_and_held() == (0, 0)


def test_what_a_context_costs_is_charged_with_the_first_use(start: Start) -> None:
    running = start("queries", context_bytes=20 * MIB)
    assert running.says()["rtMemGetInfo"] == [LIMIT - 20 * MIB, LIMIT]
    assert running.books().used_bytes == 20 * MIB


def test_a_forked_child_gives_back_nothing_of_its_parents(start: Start) -> None:
    running = start("fork")
    assert (running.says(), running.charged_and_held()) == ({"code": 0}, (8, 8))
    assert (running.goes_on(), running.charged_and_held()) == ({"code": 0}, (0, 0))


@pytest.mark.parametrize(("exporting", "importing"), SHARED)
def test_shared_memory_is_its_exporters(start: Start, tmp_path: Path, exporting: str, importing: str) -> None:
    """The runtime does not say how large what is imported is: it goes on being charged where it was made, and the export is noted."""
    running = start("shared", exporting, importing)
    assert (running.says(), running.charged_and_held()) == ({"codes": [0] * 3}, (8, 8))
    state = layout.StateFile.from_buffer_copy((tmp_path / "container" / "state" / "state.bin").read_bytes())
    assert [export.bytes for export in state.exports if export.handle_hash] == [8 * MIB]
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0]}, (8, 8))


@pytest.mark.parametrize("importing", [importing for _, importing in SHARED])
def test_nothing_is_imported_to_a_device_that_the_policy_does_not_name(start: Start, importing: str) -> None:
    assert start("imported", importing, identities=(("physical", "6"),)).says() == {"code": NO_PERMISSION}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, interceptor: Libraries, fake_driver: Libraries) -> Any:
    """One program that launches in every way, one after the other."""
    shapes = [shape(row, LETTERS) for row in LAUNCHES]
    with starting(ASCEND.rig(tmp_path_factory.mktemp("launched"), interceptor, fake_driver)) as start:
        return start("launches", *shapes, core_milli=25_000, environment={"HAMI_FAKE_KERNEL_NS": "4000000"}).says()


@pytest.mark.parametrize("row", LAUNCHES, ids=lambda row: row.symbol)
def test_a_launch_takes_no_more_than_its_share_of_the_time(launched: Any, row: Any) -> None:
    check_a_launch(launched, row.symbol)
