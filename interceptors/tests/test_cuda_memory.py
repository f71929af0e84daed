# SPDX-License-Identifier: Apache-2.0
"""Every way to get CUDA device memory, through a real preload, against the fake driver: the limit holds, and all comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_program_paths import PATHS
from cuda_rig import CONTEXT, FAKE_INCLUDES, LIMIT, MIB, PCI, UUIDS, Container, record

BLOCK = 48 * MIB
POOL_GROWTH = 64 * MIB  # the most that a pool may grow for one BLOCK
MIPMAP = 96 * MIB  # a BLOCK with its smaller levels, and what the bound of each is above its size


@pytest.fixture
def make(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Callable[..., Container]:
    preload = interceptor("cuda", "nvml", variant="testing")
    libraries = [fake_driver("cuda", FAKE_INCLUDES)]
    return lambda *records, **more: Container(tmp_path / "container", preload, libraries, records or (record(0), record(1)), **more)


@pytest.mark.parametrize("path", PATHS)
def test_an_allocating_path_is_held_to_the_limit_and_gives_all_back(make: Callable[..., Container], path: str) -> None:
    container = make()
    said = container.run("exhaust", path, BLOCK)
    free, total = said["start"]
    assert (free, total) == (LIMIT - CONTEXT, LIMIT)
    assert (said["code"], said["code_again"]) == (2, 2), "the driver's own out-of-memory code"
    assert container.high_water() <= LIMIT
    slack = MIPMAP if "Mipmapped" in path else POOL_GROWTH if "Async" in path else BLOCK + 2 * MIB
    assert container.high_water() > LIMIT - slack, "what the limit allows is given"
    assert said["second"] == said["count"]
    assert said["after"] == said["start"]
    assert said["end"] == said["start"]
    assert container.state().devices[0].high_water_bytes <= LIMIT


@pytest.mark.parametrize("path", ["cuMemAlloc_v2", "cuMemAllocAsync", "cuMemMap", "cuGraphAddMemAllocNode"])
def test_threads_racing_for_the_last_bytes_never_pass_the_limit(make: Callable[..., Container], path: str) -> None:
    container = make()
    said = container.run("race", path, 20_000_000, 6, 2)
    assert said["codes"] == [2]
    assert container.high_water() <= LIMIT
    assert said["free"] == LIMIT - CONTEXT


def test_small_blocks_are_charged_by_the_page_that_they_share(make: Callable[..., Container]) -> None:
    container = make()
    said = container.run("exhaust", "cuMemAlloc_v2", 512 * 1024)
    assert said["code"] == 2
    assert LIMIT - 4 * MIB <= container.high_water() <= LIMIT
    assert said["after"] == said["start"]


def test_a_handle_is_charged_until_its_last_reference_or_mapping_goes(make: Callable[..., Container]) -> None:
    assert make().run("references")["charged"] == [64 * MIB, 64 * MIB, 64 * MIB, 0]


def test_managed_memory_may_oversubscribe_where_the_policy_says_so(make: Callable[..., Container]) -> None:
    container = make(record(0, virtual_bytes=2 * LIMIT), devices=1)
    said = container.run("exhaust", "cuMemAllocManaged", BLOCK)
    assert said["count"] == 2 * LIMIT // BLOCK
    assert said["full"] == said["start"], "device memory is not charged for it"
    assert said["code"] == 2


def test_a_neighbour_process_sees_what_the_first_holds_and_shares_its_limit(make: Callable[..., Container]) -> None:
    """core#191: the second process saw the whole slice as free."""
    container = make()
    with container.running("hold", "cuMemAlloc_v2", 256 * MIB) as first:
        assert first.stdout is not None
        assert json.loads(first.stdout.readline()) == {"code": 0, "info": [LIMIT - CONTEXT - 256 * MIB, LIMIT]}
        beside = container.run("exhaust", "cuMemAlloc_v2", 32 * MIB)
        assert beside["start"] == [LIMIT - 2 * CONTEXT - 256 * MIB, LIMIT]
        assert beside["count"] == (LIMIT - 2 * CONTEXT - 256 * MIB) // (32 * MIB)
        assert container.high_water() <= LIMIT
        first.communicate("")
    assert container.run("exhaust", "cuMemAlloc_v2", 512 * MIB)["count"] == 1, "what the first held is free again"


def test_what_a_killed_process_held_is_free_again(make: Callable[..., Container]) -> None:
    container = make()
    with container.running("hold", "cuMemAllocAsync", 512 * MIB) as first:
        assert first.stdout is not None
        assert json.loads(first.stdout.readline())["code"] == 0
        first.kill()
    assert container.run("exhaust", "cuMemAlloc_v2", 512 * MIB)["count"] == 1
    assert container.high_water() <= LIMIT


def test_advisory_counts_and_never_refuses(make: Callable[..., Container]) -> None:
    container = make(record(0), advisory=True, devices=1)
    said = container.run("exhaust", "cuMemAlloc_v2", 512 * MIB)
    assert said["count"] > 10, "as much as the device itself has"
    assert container.high_water() > LIMIT
    assert said["code"] == 2


def test_without_a_policy_nothing_is_permitted(make: Callable[..., Container]) -> None:
    container = make()
    (container.folder / "policy" / "policy.bin").unlink()
    assert container.run("view")["refused"] == 800
    assert container.high_water() == 0


def test_a_device_without_a_record_is_visible_and_refused(make: Callable[..., Container]) -> None:
    container = make(record(1))
    assert container.run("view", 0)["refused"] == 800
    assert container.run("view", 1)["info"] == [LIMIT - CONTEXT, LIMIT]


@pytest.mark.parametrize("visible", [f"{UUIDS[1]},{UUIDS[0]}", "1,0", "1"], ids=["by UUID", "by number", "one hidden"])
def test_reordered_and_hidden_devices_keep_their_own_limits(make: Callable[..., Container], visible: str) -> None:
    """core#104, core#225: limits by ordinal hold the wrong card."""
    container = make(record(0), record(1, memory_bytes=2 * LIMIT))
    assert container.run("view", 0, CUDA_VISIBLE_DEVICES=visible)["total"] == 2 * LIMIT
    container.run("exhaust", "cuMemAlloc_v2", 512 * MIB, CUDA_VISIBLE_DEVICES=visible)
    assert LIMIT < container.high_water(1) <= 2 * LIMIT
    assert container.high_water(0) == 0


def test_1181_no_underflow(make: Callable[..., Container]) -> None:
    """#1181: a free that was counted twice showed 17 TB."""
    said = make().run("odd_frees")
    assert said["end"] == said["start"]
    assert said["codes"][0] == 0
    assert 0 not in said["codes"][1:], "the driver's own errors"


def test_306_what_a_pool_keeps_idle_is_charged_until_it_is_needed(make: Callable[..., Container]) -> None:
    """core#306, core#310, core#257: what a pool once had stayed charged for ever."""
    container = make()
    said = container.run("idle_pool")
    assert said["kept"][0] == said["start"][0] - 512 * MIB
    assert said["end"][0] == said["start"][0] - 512 * MIB
    assert container.high_water() <= LIMIT


MIG = "MIG-00000000-1111-2222-3333-000000000001"
OTHER_MIG = "MIG-99999999-1111-2222-3333-000000000001"


def test_a_slice_is_held_by_its_own_identity(make: Callable[..., Container]) -> None:
    container = make(record(1, identities=(("mig-uuid", MIG), ("pci", PCI[1]))))
    assert container.run("view", 0, CUDA_VISIBLE_DEVICES=MIG)["info"] == [LIMIT - CONTEXT, LIMIT]


def test_a_slice_of_no_record_does_not_pass_for_its_neighbour_by_the_cards_address(make: Callable[..., Container]) -> None:
    container = make(record(1, identities=(("mig-uuid", MIG), ("pci", PCI[1]))))
    assert container.run("view", 0, CUDA_VISIBLE_DEVICES=OTHER_MIG)["refused"] == 800
