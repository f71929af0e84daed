# SPDX-License-Identifier: Apache-2.0
"""libhami_hygon.so before a fake HIP: real processes, real preloading, and the card as the oracle of what was really taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from preloaded import FAKES, Running, run

from hami_framework.enforcement.policy import DevicePolicy

MIB = 1 << 20
LIMIT = 100 * MIB
OUT_OF_MEMORY, NOT_SUPPORTED = 2, 801

ALLOCATORS = (
    "hipMalloc",
    "small",
    "hipExtMallocWithFlags",
    "hipMallocManaged",
    "hipMallocPitch",
    "hipMemAllocPitch",
    "hipMalloc3D",
    "hipMallocArray",
    "hipMalloc3DArray",
    "hipArrayCreate",
    "hipArray3DCreate",
    "hipMallocMipmappedArray",
    "hipMipmappedArrayCreate",
    "hipMallocAsync",
    "hipMallocFromPoolAsync",
    "hipMemCreate",
    "mapped",
    "resolved",
)


class Start(Protocol):
    def __call__(self, case: str, *, identity: tuple[str, str] = ("", ""), core_milli: int | None = None, **environment: str) -> Running: ...


@pytest.fixture
def start(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Iterator[Start]:
    running: list[Running] = []
    driver, library = fake_driver("hip", include=[FAKES]), interceptor("hip")

    def make(case: str, *, identity: tuple[str, str] = ("pci", "0000:07:00.0"), core_milli: int | None = None, **environment: str) -> Running:
        device = DevicePolicy(vendor="hygon", identities=(identity,), memory_bytes=LIMIT, core_milli=core_milli)
        machine = ("HAMI_FAKE_HYGON", "[machine]\n[device 0]\npci = 0000:07:00.0\nmemory_mib = 4096\n")
        running.append(run(tmp_path, "hip_program.py", case, library=library, driver=driver, machine=machine, device=device, environment=environment))
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
    freed = running.goes_on()
    assert freed == {"codes": [0] * full["blocks"], "free": LIMIT, "total": LIMIT}
    assert running.held().used == 0


def test_a_mapping_keeps_its_memory_after_its_handle_is_released(start: Start) -> None:
    running = start("released")
    assert running.says() == {"free": LIMIT - 40 * MIB}
    assert running.goes_on() == {"free": LIMIT}
    assert running.held().used == 0


def test_queries_show_the_slice(start: Start) -> None:
    assert start("queries").says() == {"info": [LIMIT, LIMIT], "device": LIMIT, "R0000": LIMIT, "R0600": LIMIT}


def test_a_device_that_the_policy_does_not_name_is_refused(start: Start) -> None:
    running = start("hipMalloc", identity=("pci", "0000:99:00.0"))
    assert running.says()["code"] == NOT_SUPPORTED
    assert running.held().high_water == 0


def test_a_device_that_is_reset_holds_nothing(start: Start) -> None:
    running = start("reset")
    assert running.says() == {"free": LIMIT}
    assert running.held().used == 0


@pytest.mark.parametrize(
    "case", ["hipLaunchKernel", "hipExtLaunchKernel", "hipModuleLaunchKernel", "hipLaunchKernel_spt", "hipLaunchKernelExC", "hipGraphLaunch"]
)
def test_launches_take_no_more_than_their_share_of_the_time(start: Start, case: str) -> None:
    """50 kernels of 4 ms at a quarter of the device: 0.8 s; what runs before the first is known is free. A loaded machine only takes longer."""
    launched = start(f"launch {case}", core_milli=25_000, HAMI_FAKE_KERNEL_NS="4000000").says()
    assert launched["codes"] == [0]
    assert launched["seconds"] > 0.4
