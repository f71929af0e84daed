# SPDX-License-Identifier: Apache-2.0
"""libhami_hygon.so before a fake HIP: real processes, real preloading, and the card as the oracle of what was really taken.

Every row of the table that is hooked is driven by a test that fails without its hook; `tests/tested/hip.txt` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preloaded import LIMIT, MIB, Start, check_a_launch, launch_rows, shape, starting
from rigs import HIP, Libraries

from hami_interceptor import coverage, spec

OUT_OF_MEMORY, NOT_SUPPORTED = 2, 801

FILLED = [
    ("hipMalloc", "hipFree"),
    ("small", "hipFree"),
    ("hipExtMallocWithFlags", "hipFree"),
    ("hipMallocManaged", "hipFree"),
    ("hipMallocPitch", "hipFree"),
    ("hipMemAllocPitch", "hipFree"),
    ("hipMalloc3D", "hipFree"),
    ("hipMallocArray", "hipFreeArray"),
    ("hipMalloc3DArray", "hipFreeArray"),
    ("hipArrayCreate", "hipArrayDestroy"),
    ("hipArray3DCreate", "hipArrayDestroy"),
    ("hipMallocMipmappedArray", "hipFreeMipmappedArray"),
    ("hipMipmappedArrayCreate", "hipMipmappedArrayDestroy"),
    ("hipMallocAsync", "hipFreeAsync"),
    ("hipMallocFromPoolAsync", "hipFree"),
    ("hipMemCreate", "hipMemRelease"),
    ("hipMemMap", "hipMemUnmap"),
]
"""Ways to take memory, each with the way to give it back. "small": blocks that share pages."""

MAPPING = ("hipMemCreate", "hipMemMap", "hipMemRetainAllocationHandle", "hipMemUnmap", "hipMemRelease")
POOL = ("hipMallocFromPoolAsync", "hipFreeAsync", "hipMemPoolTrimTo", "hipMemPoolDestroy")
QUERIES = ("hipMemGetInfo", "hipDeviceTotalMem", "hipGetDeviceProperties", "hipGetDevicePropertiesR0000", "hipGetDevicePropertiesR0600")
RESOLVERS = ("hipGetProcAddress", "hipGetDriverEntryPoint", "hipGetDriverEntryPoint_spt")
RESETS = [("hipDeviceReset",), ("hipDevicePrimaryCtxReset", "0")]
SHARED = {
    "ipc": ("hipIpcGetMemHandle", "hipIpcOpenMemHandle", "hipIpcCloseMemHandle"),
    "shareable": ("hipMemExportToShareableHandle", "hipMemImportFromShareableHandle"),
    "external": ("hipImportExternalMemory", "hipDestroyExternalMemory"),
}
GRAPHS = [
    ("hipGraphAddMemAllocNode", "hipGraphInstantiate", "hipGraphLaunch"),
    ("hipGraphAddNode", "hipGraphInstantiateWithFlags", "hipGraphLaunch_spt"),
    ("hipGraphAddChildGraphNode", "hipGraphInstantiateWithParams", "hipGraphUpload"),
    ("child", "hipGraphInstantiate", "hipGraphLaunch"),
    ("hipGraphClone", "hipGraphInstantiate", "hipGraphLaunch"),
    ("hipGraphAddMemAllocNode", "hipGraphExecUpdate", "hipGraphLaunch"),
    ("hipMallocAsync", "hipGraphInstantiate", "hipGraphLaunch"),
    ("hipMallocFromPoolAsync", "hipGraphInstantiate", "hipGraphLaunch"),
]
FORGOTTEN = ("hipGraphDestroy", "hipGraphExecDestroy", "hipDeviceGraphMemTrim")
LAUNCHES = launch_rows(spec.load("hip"))
LETTERS = {
    "hipLaunchConfig_t": "z",
    "HIP_LAUNCH_CONFIG": "z",
    "hipLaunchParams": "z",
    "hipFunctionLaunchParams": "z",
    "hipGraphExec_t": "g",
    "dim3": "d",
    "hipStream_t": "n",
    "hipEvent_t": "n",
    "hipFunction_t": "p",
}


@pytest.fixture
def start(tmp_path: Path, interceptor: Libraries, fake_driver: Libraries) -> Iterator[Start]:
    with starting(HIP.rig(tmp_path, interceptor, fake_driver)) as start:
        yield start


def test_every_hooked_row_is_driven() -> None:
    tables = [*FILLED, MAPPING, POOL, QUERIES, RESOLVERS, *RESETS, *SHARED.values(), *GRAPHS, FORGOTTEN, [row.symbol for row in LAUNCHES]]
    driven = {name for table in tables for name in table} - {"small", "child", "0"}
    assert driven == {row.symbol for row in spec.load("hip").rows if row.must_hook}
    assert driven == set(coverage.manifest("hip"))


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


@pytest.mark.parametrize("query", QUERIES)
def test_queries_show_the_slice(start: Start, query: str) -> None:
    assert start("queries").says()[query] == ([LIMIT, LIMIT] if query == "hipMemGetInfo" else LIMIT)


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_what_a_resolver_hands_out_is_held_to_the_limit(start: Start, resolver: str) -> None:
    running = start("resolved", resolver)
    assert running.says() == {"code": 0, "refused": OUT_OF_MEMORY, "taken": 0}
    assert running.charged_and_held() == (8, 8)


def test_a_device_that_the_policy_does_not_name_is_refused(start: Start) -> None:
    running = start("fill", "hipMalloc", "hipFree", identities=(("pci", "0000:99:00.0"),))
    assert running.says()["code"] == NOT_SUPPORTED
    assert running.held().high_water == 0


@pytest.mark.parametrize("reset", RESETS, ids=lambda reset: reset[0])
def test_a_device_that_is_reset_holds_nothing(start: Start, reset: tuple[str, ...]) -> None:
    running = start("reset", *reset)
    assert running.says() == {"free": LIMIT}
    assert running.charged_and_held() == (0, 0)


def test_what_a_context_costs_is_charged_with_the_first_use(start: Start) -> None:
    running = start("queries", context_bytes=20 * MIB)
    assert running.says()["hipMemGetInfo"] == [LIMIT - 20 * MIB, LIMIT]
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


@pytest.mark.parametrize(
    ("way", "instantiating", "launching", "early"),
    [(*graph, False) for graph in GRAPHS] + [(*graph, True) for graph in GRAPHS if graph[0] in ("hipGraphAddNode", "hipMallocAsync")],
)
def test_memory_of_graphs_is_held_to_the_limit(start: Start, way: str, instantiating: str, launching: str, early: bool) -> None:
    """Whether the driver takes it with the launch or, `early`, with the node."""
    running = start("graph", way, instantiating, launching, environment={"HAMI_FAKE_HIP_EARLY": "1"} if early else {})
    assert running.says() == {"code": OUT_OF_MEMORY}
    assert running.goes_on() == {"codes": [0] * 4}
    assert running.held().high_water <= LIMIT
    assert running.charged_and_held() == (24, 24)
    again = running.goes_on()
    assert set(again["codes"]) == {0}, "launched again, it takes nothing new"
    assert running.charged_and_held() == (24, 24)
    assert set(running.goes_on()["codes"]) == {0}
    assert running.charged_and_held() == (0, 0)


def test_a_destroyed_graph_asks_for_nothing_any_more(start: Start) -> None:
    running = start("forgotten")
    assert set(running.says()["codes"]) == {0}
    assert running.goes_on() == {"codes": [0]}
    assert running.charged_and_held() == (16, 16)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, interceptor: Libraries, fake_driver: Libraries) -> Any:
    """One program that launches in every way, one after the other."""
    shapes = [shape(row, LETTERS) for row in LAUNCHES]
    with starting(HIP.rig(tmp_path_factory.mktemp("launched"), interceptor, fake_driver)) as start:
        running = start("launches", *shapes, core_milli=25_000, environment={"HAMI_FAKE_KERNEL_NS": "4000000"})
        return {**running.says(), "launches": running.books().launches}


@pytest.mark.parametrize("row", LAUNCHES, ids=lambda row: row.symbol)
def test_a_launch_takes_no_more_than_its_share_of_the_time(launched: Any, row: Any) -> None:
    check_a_launch(launched, row.symbol)
