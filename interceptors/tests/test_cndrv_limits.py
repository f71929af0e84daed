# SPDX-License-Identifier: Apache-2.0
"""libhami_cambricon.so before a fake CNDrv: real processes, real preloading, and the card as the oracle of what was really taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from preloaded import FAKES, Running, run

from hami_framework.enforcement.policy import DevicePolicy

MIB = 1 << 20
LIMIT = 100 * MIB
OUT_OF_MEMORY, NOT_PERMITTED = 100100, 100051
UUID = "20220119-0000-0000-0000-000000000001"

ALLOCATORS = (
    "cnMalloc",
    "small",
    "cnMallocSecurity",
    "cnZmalloc",
    "cnMallocConstant",
    "cnMallocPeerAble",
    "cnMallocNode",
    "cnZmallocNode",
    "cnMallocNodeConstant",
    "cnMallocFrameBuffer",
    "cnMemAllocAsync",
    "cnMemAllocFromPoolAsync",
    "cnMemCreate",
    "mapped",
    "resolved",
)


class Start(Protocol):
    def __call__(self, case: str, *, identity: tuple[str, str] = ("", ""), core_milli: int | None = None, **environment: str) -> Running: ...


@pytest.fixture
def start(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Iterator[Start]:
    running: list[Running] = []
    driver, library = fake_driver("cndrv", include=[FAKES]), interceptor("cndrv")

    def make(case: str, *, identity: tuple[str, str] = ("uuid", f"MLU-{UUID}"), core_milli: int | None = None, **environment: str) -> Running:
        device = DevicePolicy(vendor="cambricon", identities=(identity,), memory_bytes=LIMIT, core_milli=core_milli)
        machine = ("HAMI_FAKE_CAMBRICON", "[machine]\n[device 0]\nuuid = 20220119-0000-0000-0000-000000000001\npci = 0000:0a:00.0\nmemory_mib = 4096\n")
        running.append(run(tmp_path, "cndrv_program.py", case, library=library, driver=driver, machine=machine, device=device, environment=environment))
        return running[-1]

    yield make
    for one in running:
        one.stop()


@pytest.mark.parametrize("case", ALLOCATORS)
def test_every_allocation_ends_at_the_limit_and_what_is_freed_is_gone(start: Start, case: str) -> None:
    running = start(case)
    full = running.says()
    assert full["code"] == OUT_OF_MEMORY
    assert full["blocks"] >= 1
    assert full["total"] == LIMIT
    assert 50 * MIB < running.held().high_water <= LIMIT
    assert running.goes_on() == {"codes": [0] * full["blocks"], "free": LIMIT, "total": LIMIT}
    assert running.held().used == 0


@pytest.mark.parametrize("identity", [("uuid", UUID), ("pci", "0000:0A:00.0")], ids=["uuid without its prefix", "pci"])
def test_a_device_is_found_by_any_of_its_names(start: Start, identity: tuple[str, str]) -> None:
    assert start("queries", identity=identity).says() == {"info": [LIMIT, LIMIT], "node": [LIMIT, LIMIT], "device": LIMIT}


def test_a_device_that_the_policy_does_not_name_is_refused(start: Start) -> None:
    running = start("cnMalloc", identity=("uuid", "MLU-another"))
    assert running.says()["code"] == NOT_PERMITTED
    assert running.held().high_water == 0


def test_the_last_context_takes_its_memory_with_it(start: Start) -> None:
    running = start("destroyed")
    assert running.says() == {"free": LIMIT}
    assert running.held().used == 0


@pytest.mark.parametrize("case", ["cnInvokeKernel", "cnInvokeKernelEx", "cnTaskTopoEntityInvoke"])
def test_launches_take_no_more_than_their_share_of_the_time(start: Start, case: str) -> None:
    """50 kernels of 4 ms at a quarter of the device: 0.8 s; what runs before the first is known is free. A loaded machine only takes longer."""
    launched = start(f"launch {case}", core_milli=25_000, HAMI_FAKE_KERNEL_NS="4000000").says()
    assert launched["codes"] == [0]
    assert launched["seconds"] > 0.4
