# SPDX-License-Identifier: Apache-2.0
"""libhami_cambricon.so before a fake CNDrv: real processes, real preloading, and the card as the oracle of what was really taken.

Every row of the table that is hooked is driven by a test that fails without its hook; `tests/tested/cndrv.txt` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preloaded import LIMIT, MIB, Start, check_a_launch, launch_rows, shape, starting
from rigs import CNDRV, UUID, Libraries

from hami_interceptor import coverage, spec

OUT_OF_MEMORY, NOT_PERMITTED = 100100, 100051

FILLED = [
    ("cnMalloc", "cnFree"),
    ("small", "cnFree"),
    ("cnMallocSecurity", "cnFree"),
    ("cnZmalloc", "cnFree"),
    ("cnMallocConstant", "cnFree"),
    ("cnMallocPeerAble", "cnFree"),
    ("cnMallocNode", "cnFree"),
    ("cnZmallocNode", "cnFree"),
    ("cnMallocNodeConstant", "cnFree"),
    ("cnMallocFrameBuffer", "cnFree"),
    ("cnMemAllocAsync", "cnMemFreeAsync"),
    ("cnMemAllocFromPoolAsync", "cnFree"),
    ("cnMemCreate", "cnMemRelease"),
    ("cnMemMap", "cnMemUnmap"),
]
"""Ways to take memory, each with the way to give it back. "small": blocks that share pages."""

MAPPING = ("cnMemCreate", "cnMemMap", "cnMemRetainAllocationHandle", "cnMemUnmap", "cnMemRelease")
POOL = ("cnMemAllocFromPoolAsync", "cnMemFreeAsync", "cnMemPoolTrimTo", "cnMemPoolDestroy")
QUERIES = ("cnMemGetInfo", "cnMemGetNodeInfo", "cnDeviceTotalMem")
RESOLVERS = ("cnGetExportFunction",)
CONTEXTS = ("cnCtxCreate", "cnCtxDestroy", "cnSharedContextAcquire")
SHARED_ENDINGS = ("cnSharedContextRelease", "cnSharedContextReset")
SHARED = {
    "ipc": ("cnIpcGetMemHandle", "cnIpcOpenMemHandle", "cnIpcCloseMemHandle"),
    "shareable": ("cnMemExportToShareableHandle", "cnMemImportFromShareableHandle"),
}
LAUNCHES = launch_rows(spec.load("cndrv"))
LETTERS = {"CNinvokeConfig": "z", "CNqueue": "n", "CNkernel": "p", "CNtaskTopoEntity": "p"}


@pytest.fixture
def start(tmp_path: Path, interceptor: Libraries, fake_driver: Libraries) -> Iterator[Start]:
    with starting(CNDRV.rig(tmp_path, interceptor, fake_driver)) as start:
        yield start


def test_every_hooked_row_is_driven() -> None:
    tables = [*FILLED, MAPPING, POOL, QUERIES, RESOLVERS, CONTEXTS, SHARED_ENDINGS, *SHARED.values(), [row.symbol for row in LAUNCHES]]
    driven = {name for table in tables for name in table} - {"small"}
    assert driven == {row.symbol for row in spec.load("cndrv").rows if row.must_hook}
    assert driven == set(coverage.manifest("cndrv"))


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


def test_physical_memory_is_charged_as_long_as_anything_keeps_it(start: Start) -> None:
    running = start("mapping")
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


@pytest.mark.parametrize("identity", [("uuid", UUID), ("pci", "0000:0A:00.0")], ids=["uuid without its prefix", "pci"])
@pytest.mark.parametrize("query", QUERIES)
def test_queries_show_the_slice_of_a_device_by_any_of_its_names(start: Start, query: str, identity: tuple[str, str]) -> None:
    assert start("queries", identities=(identity,)).says()[query] == (LIMIT if query == "cnDeviceTotalMem" else [LIMIT, LIMIT])


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_what_a_resolver_hands_out_is_held_to_the_limit(start: Start, resolver: str) -> None:
    running = start("resolved", resolver)
    assert running.says() == {"code": 0, "refused": OUT_OF_MEMORY, "taken": 0}
    assert running.charged_and_held() == (8, 8)


def test_a_device_that_the_policy_does_not_name_is_refused(start: Start) -> None:
    running = start("fill", "cnMalloc", "cnFree", identities=(("uuid", "MLU-another"),))
    assert running.says()["code"] == NOT_PERMITTED
    assert running.held().high_water == 0


def test_the_last_context_takes_its_memory_with_it(start: Start) -> None:
    running = start("destroyed")
    assert (running.says(), running.charged_and_held()) == ({"codes": [0] * 6}, (18, 18)), "made twice, destroyed once"
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0]}, (0, 0))


@pytest.mark.parametrize("ending", SHARED_ENDINGS)
def test_the_shared_context_takes_its_memory_with_it(start: Start, ending: str) -> None:
    running = start("shared_context", ending)
    assert (running.says(), running.charged_and_held()) == ({"codes": [0] * 5}, (18, 18))
    assert (running.goes_on(), running.charged_and_held()) == ({"codes": [0]}, (0, 0))


def test_what_a_context_costs_is_charged_with_the_first_use(start: Start) -> None:
    running = start("queries", context_bytes=20 * MIB)
    assert running.says()["cnMemGetInfo"] == [LIMIT - 20 * MIB, LIMIT]
    assert running.books().used_bytes == 20 * MIB


def test_a_forked_child_gives_back_nothing_of_its_parents(start: Start) -> None:
    running = start("fork")
    assert (running.says(), running.charged_and_held()) == ({"code": 0}, (8, 8))
    assert (running.goes_on(), running.charged_and_held()) == ({"code": 0}, (0, 0))


@pytest.mark.parametrize("way", SHARED)
def test_memory_of_this_container_is_charged_once_and_anothers_when_it_is_imported(start: Start, way: str) -> None:
    running = start("shared", way, charge_imports=True)
    assert (running.says(), running.books().used_bytes) == ({"codes": [0]}, 8 * MIB)
    codes = {"codes": [0, 0, 0]}
    assert (running.goes_on(), running.books().used_bytes) == (codes, (8 + 3 * 24) * MIB)
    assert running.goes_on() == {"codes": [OUT_OF_MEMORY]}
    assert (running.goes_on(), running.books().used_bytes) == ({"codes": [0] * 4}, 8 * MIB)


@pytest.mark.parametrize("way", SHARED)
def test_imports_are_the_exporters_where_the_policy_says_so(start: Start, way: str) -> None:
    running = start("shared", way)
    running.says()
    running.goes_on()
    assert running.books().used_bytes == 8 * MIB


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, interceptor: Libraries, fake_driver: Libraries) -> Any:
    """One program that launches in every way, one after the other."""
    shapes = [shape(row, LETTERS) for row in LAUNCHES]
    with starting(CNDRV.rig(tmp_path_factory.mktemp("launched"), interceptor, fake_driver)) as start:
        return start("launches", *shapes, core_milli=25_000, environment={"HAMI_FAKE_KERNEL_NS": "4000000"}).says()


@pytest.mark.parametrize("row", LAUNCHES, ids=lambda row: row.symbol)
def test_a_launch_takes_no_more_than_its_share_of_the_time(launched: Any, row: Any) -> None:
    check_a_launch(launched, row.symbol)
