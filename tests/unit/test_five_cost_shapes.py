# SPDX-License-Identifier: Apache-2.0
"""The cost model holds: one vendor with every shape goes all the way through the product's own parts.

The hooks, `Registry.partition`, the engine and its ledger, the grant as it travels in the annotation, the vendor's worker
process, and back: nothing here knows a shape by name but the vendor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hami_framework.codec.grants import decode_grant, encode_grant
from hami_framework.model import (
    GIB,
    MIB,
    ContainerRequest,
    DeviceRequest,
    Grant,
    Host,
    Inventory,
    PodGrant,
    PodRequest,
    Reason,
    Rejection,
    ResourceRequest,
    Selector,
)
from hami_framework.placement.engine import Engine
from hami_framework.plugins import load_registry
from hami_framework.worker import WorkerPool

PLUGIN = Path(__file__).parents[1] / "data" / "plugins" / "shapes.py"
RESOURCE = "shapes.example/card"


class Bench:
    """A node with one card of each kind, the engine that places on it and the worker that prepares it."""

    def __init__(self, pool: WorkerPool, hardware: Path) -> None:
        self.pool, self.hardware = pool, hardware
        self.engine = Engine(load_registry((), [PLUGIN]).partition)
        self.engine.set_inventory(Inventory(node="n", devices=pool.devices("shapes")))

    def place(self, kind: str, uid: str, **asked: object) -> PodGrant | tuple[Rejection, ...]:
        """Reserve for a new pod, with the grant as it comes out of the annotation."""
        request = ResourceRequest(resource=RESOURCE, request=DeviceRequest(**asked), selector=Selector(use_types=(kind,)))  # type: ignore[arg-type]
        pod = PodRequest(uid=uid, namespace="d", name=uid, containers=(ContainerRequest(name="main", requests=(request,)),))
        self.engine.filter(pod, ["n"])
        chosen = self.engine.reserve(pod, "n")
        return decode_grant(encode_grant(chosen)) if isinstance(chosen, PodGrant) else chosen

    def granted(self, kind: str, uid: str, **asked: object) -> Grant:
        """The part of the pod's grant that the worker is given. Fails the test when there is no room."""
        grant = self.place(kind, uid, **asked)
        assert isinstance(grant, PodGrant), grant
        return Grant(owner=grant.owner, node=grant.node, container="main", devices=grant.containers[0].devices)

    def refused(self, kind: str, **asked: object) -> set[Reason]:
        """Why there is no room for one more on this kind of card."""
        answer = self.place(kind, "one-more", **asked)
        assert not isinstance(answer, PodGrant), answer
        return {rejection.reason for rejection in answer} - {Reason.TYPE}  # which is what the other cards say

    async def env(self, grant: Grant) -> dict[str, str]:
        """What the container is told."""
        return (await self.pool.allocate("shapes", grant)).env

    async def end(self, grant: Grant) -> None:
        """The pod is gone: the node undoes what was made, then the ledger forgets it."""
        await self.pool.release("shapes", grant)
        self.engine.forget(grant.owner.uid)

    def partitions(self) -> dict[str, str]:
        """What stands in the hardware: device/instance → profile and place."""
        return {f"{file.parent.name}/{file.name}": file.read_text() for file in sorted(self.hardware.glob("*/*"))}


@pytest.fixture
async def bench(short_directory: Path) -> AsyncIterator[Bench]:
    hardware = short_directory / "hardware"
    environments = {"shapes": {"SHAPES_PARTITIONS": str(hardware)}}
    pool = WorkerPool(short_directory / "w", Host(node="n"), environments, allow=(), plugin_files=[PLUGIN])
    await pool.start(wait_seconds=15)
    yield Bench(pool, hardware)
    await pool.stop()


async def test_a_soft_share_is_a_sum(bench: Bench) -> None:
    grants = [bench.granted("Soft", f"p{number}", memory_bytes=20 * GIB, core_percent=30) for number in range(3)]
    assert bench.refused("Soft", memory_bytes=20 * GIB) == {Reason.MEMORY}
    assert bench.refused("Soft", memory_bytes=GIB, core_percent=20) == {Reason.CORES}
    bench.granted("Soft", "last", memory_bytes=GIB, core_percent=10)
    assert bench.refused("Soft", memory_bytes=GIB) == {Reason.SHARES}
    assert await bench.env(grants[0]) == {"SHAPES_DEVICES": "soft-0"}
    await bench.end(grants[0])
    bench.granted("Soft", "next", memory_bytes=20 * GIB)


async def test_a_template_is_limited_by_whichever_counter_runs_out(bench: Bench) -> None:
    """2 x 3 helpers would be 6 of 4, though memory and cores would do; a quarter still has its one."""
    half = bench.granted("Template", "half", memory_bytes=20 * GIB)
    assert half.devices[0].offer.cost.memory_bytes == 32 * GIB
    assert bench.refused("Template", memory_bytes=32 * GIB) == {Reason.COUNTER}
    quarter = bench.granted("Template", "quarter", memory_bytes=1)
    assert (await bench.env(quarter))["SHAPES_PROFILE"] == "quarter"
    await bench.env(half)
    assert bench.partitions() == {"template-0/half.main": "half at None", "template-0/quarter.main": "quarter at None"}


async def test_an_interval_has_a_place_and_keeps_it(bench: Bench) -> None:
    """A line of 8: one slice at 6, so four neighbours fit at 0 only; what is taken in between is refused by place, not by sum."""
    small = bench.granted("Interval", "small", memory_bytes=GIB)
    large = bench.granted("Interval", "large", memory_bytes=20 * GIB)
    assert (small.devices[0].start, large.devices[0].start) == (6, 0)
    assert (await bench.env(large))["SHAPES_START"] == "0"
    await bench.end(large)
    middle = [bench.granted("Interval", f"m{number}", memory_bytes=GIB) for number in range(3)]
    assert [grant.devices[0].start for grant in middle] == [5, 4, 3]
    assert bench.refused("Interval", memory_bytes=20 * GIB) == {Reason.PLACEMENT}
    await bench.end(middle[2])
    assert bench.granted("Interval", "large", memory_bytes=20 * GIB).devices[0].start == 0


async def test_a_quota_is_in_steps_and_its_profiles_are_few(bench: Bench) -> None:
    """1000 MiB is four steps of 256; a third *different* pair of compute and memory is one too many."""
    first = bench.granted("Quota", "a", memory_bytes=1000 * MIB, core_percent=10)
    assert first.devices[0].offer.cost.memory_bytes == 1024 * MIB
    assert (await bench.env(first))["SHAPES_PROFILE"] == "10_4"
    bench.granted("Quota", "b", memory_bytes=2048 * MIB, core_percent=10)
    assert bench.refused("Quota", memory_bytes=3072 * MIB, core_percent=10) == {Reason.PROFILES}
    bench.granted("Quota", "c", memory_bytes=900 * MIB, core_percent=10)
    await bench.end(first)
    assert bench.refused("Quota", memory_bytes=3072 * MIB, core_percent=10) == {Reason.PROFILES}  # c still has a's pair
    bench.engine.forget("c")
    bench.granted("Quota", "d", memory_bytes=3072 * MIB, core_percent=10)


async def test_a_bitmap_hands_out_units_that_nobody_shares(bench: Bench) -> None:
    grants = [bench.granted("Bitmap", f"p{number}", memory_bytes=GIB, core_percent=25) for number in range(3)]
    told = [int((await bench.env(grant))["SHAPES_UNITS"], 16) for grant in grants]
    assert [mask.bit_count() for mask in told] == [30, 30, 30]
    assert told[0] | told[1] | told[2] == (1 << 90) - 1
    assert bench.refused("Bitmap", memory_bytes=GIB, core_percent=26) & {Reason.UNITS, Reason.CORES}
    await bench.end(grants[1])
    again = bench.granted("Bitmap", "next", memory_bytes=GIB, core_percent=50)
    assert int(again.devices[0].units or "0", 16) == ((1 << 120) - 1) & ~(told[0] | told[2])


@pytest.mark.parametrize(("kind", "other"), [("Template", "share"), ("Interval", "share"), ("Quota", "whole"), ("Bitmap", "whole"), ("Soft", "whole")])
async def test_modes_exclude_each_other_until_the_last_grant_is_gone(bench: Bench, kind: str, other: str) -> None:
    grants = [bench.granted(kind, f"p{number}", memory_bytes=GIB, core_percent=10) for number in range(2)]
    for grant in grants:
        assert bench.refused(kind, memory_bytes=None if other == "whole" else GIB, mode=other) & {Reason.MODE_TAKEN, Reason.EXCLUSIVE}
        await bench.end(grant)
    taken = bench.granted(kind, "other", memory_bytes=None if other == "whole" else GIB, mode=other)
    assert taken.devices[0].offer.mode == other
    assert bench.refused(kind, memory_bytes=GIB, core_percent=10) & {Reason.MODE_TAKEN, Reason.EXCLUSIVE}


@pytest.mark.parametrize("kind", ["Template", "Interval", "Quota"])
async def test_partitions_are_made_once_and_undone_for_good(bench: Bench, kind: str) -> None:
    """Allocate is asked again after every restart, release until it succeeds; a neighbour's partition stays."""
    own, neighbour = (bench.granted(kind, uid, memory_bytes=GIB) for uid in ("own", "neighbour"))
    await bench.env(neighbour)
    assert await bench.env(own) == await bench.env(own)
    assert len(bench.partitions()) == 2
    assert (bench.hardware / "made").read_text().split() == [f"{kind.lower()}-0"] * 2
    for _ in range(2):
        await bench.pool.release("shapes", own)
    assert list(bench.partitions()) == [f"{kind.lower()}-0/neighbour.main"]
    await bench.env(own)
    assert len(bench.partitions()) == 2
