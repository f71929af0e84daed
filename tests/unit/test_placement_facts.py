# SPDX-License-Identifier: Apache-2.0
"""Facts about real devices that the engine must get right (research: vendors.md §1b, §2e, §6d)."""

from __future__ import annotations

import pytest

from hami_framework.model import (
    Capacity,
    ContainerGrant,
    ContainerRequest,
    Cost,
    Device,
    DeviceClass,
    DeviceGrant,
    DeviceRequest,
    GroupRule,
    Interval,
    Inventory,
    Limit,
    Link,
    Membership,
    Mode,
    Offer,
    Owner,
    PodGrant,
    PodRequest,
    Reason,
    Rejection,
    ResourceRequest,
    Selector,
    whole,
)
from hami_framework.placement.engine import Engine

GIB = 1 << 30
MIG_PLACES = {"1g": (1, (0, 1, 2, 3, 4, 5, 6)), "2g": (2, (0, 2, 4)), "3g": (4, (0, 4)), "4g": (4, (0,)), "7g": (8, (0,))}
MIG_CLASS = DeviceClass(model="A100", vendor="v", capacity=Capacity(memory_bytes=40 * GIB, shares=7, line=8), modes=(Mode(name="mig"),))
RING_CLASS = DeviceClass(model="910A", vendor="v", capacity=Capacity(memory_bytes=32 * GIB), group_rule=GroupRule(allowed_counts=(1, 2, 4, 8), same=("ring",)))
DIE_CLASS = DeviceClass(model="910C", vendor="v", capacity=Capacity(memory_bytes=64 * GIB), group_rule=GroupRule(whole=("module",)))
MASK_CLASS = DeviceClass(model="K100", vendor="v", capacity=Capacity(memory_bytes=64 * GIB, units=120, shares=20), modes=(Mode(name="vdcu"),))


def partition(device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
    capacity = device_class.capacity
    if request.profile is not None:
        size, starts = MIG_PLACES[request.profile]
        return (Offer(mode="mig", profile=request.profile, cost=Cost(interval=Interval(size=size, starts=starts))),)
    if request.core_percent is not None:
        units = request.core_percent * capacity.units // 100
        return (Offer(mode="vdcu", cost=Cost(units=units, core_percent=request.core_percent), limit=Limit(core_percent=request.core_percent)),)
    return (whole(capacity.memory_bytes),)


def engine_with(device_class: DeviceClass, count: int, group: str | None = None, size: int = 1) -> Engine:
    devices = tuple(
        Device(id=f"d{i}", name=f"d{i}", index=i, device_class=device_class, groups=(Membership(kind=group, name=str(i // size)),) if group else ())
        for i in range(count)
    )
    engine = Engine(partition)
    engine.set_inventory(Inventory(node="n", devices=devices))
    return engine


def pod(uid: str, count: int = 1, *, device: str | None = None, profile: str | None = None, cores: int | None = None) -> PodRequest:
    selector = Selector(use_ids=(device,)) if device else Selector()
    wanted = ResourceRequest(resource="v/x", request=DeviceRequest(count=count, profile=profile, core_percent=cores), selector=selector)
    return PodRequest(uid=uid, namespace="default", name=uid, containers=(ContainerRequest(name="c", requests=(wanted,)),))


def bind(engine: Engine, request: PodRequest) -> PodGrant:
    verdict = engine.filter(request, None)
    assert verdict.feasible == ["n"]
    grant = engine.reserve(request, "n")
    assert isinstance(grant, PodGrant)
    return grant


def ids(grant: PodGrant) -> set[str]:
    return {device.device_id for container in grant.containers for device in container.devices}


class TestRingsOfFour:
    def engine(self, taken: str) -> Engine:
        engine = engine_with(RING_CLASS, 8, "ring", 4)
        for number in taken:
            bind(engine, pod(f"old{number}", device=f"d{number}"))
        return engine

    @pytest.mark.parametrize(
        ("taken", "count", "expected"),
        [
            pytest.param("23", 4, {"d4", "d5", "d6", "d7"}, id="four-need-the-ring-with-four-free"),
            pytest.param("23", 2, {"d0", "d1"}, id="two-prefer-the-ring-with-exactly-two-free"),
            pytest.param("0", 2, {"d4", "d5"}, id="two-prefer-four-free-to-three-free"),
            pytest.param("0124", 1, {"d3"}, id="one-prefers-one-free-to-three-free"),
            pytest.param("045", 1, {"d1"}, id="one-prefers-three-free-to-two-free"),
            pytest.param("", 8, {f"d{i}" for i in range(8)}, id="eight-take-both-rings"),
        ],
    )
    def test_published_preference(self, taken: str, count: int, expected: set[str]) -> None:
        assert ids(bind(self.engine(taken), pod("new", count))) == expected

    def test_four_do_not_straddle_rings(self) -> None:
        verdict = self.engine("0145").filter(pod("new", 4), None)
        assert verdict.feasible == []
        assert verdict.code("n") is Reason.GROUP

    def test_three_are_refused_everywhere_with_what_is_allowed(self) -> None:
        verdict = self.engine("").filter(pod("new", 3), ["n", "unknown"])
        assert {verdict.code("n"), verdict.code("unknown")} == {Reason.COUNT_NOT_ALLOWED}
        assert "1, 2, 4, 8" in (verdict.rejections["n"][0].hint or "")


class TestModulesOfTwoDies:
    def test_two_dies_come_from_one_module(self) -> None:
        engine = engine_with(DIE_CLASS, 6, "module", 2)
        assert ids(bind(engine, pod("a", 2))) == {"d0", "d1"}
        assert ids(bind(engine, pod("b", 4))) == {"d2", "d3", "d4", "d5"}

    def test_a_module_with_one_free_die_serves_nobody(self) -> None:
        sick = engine_with(DIE_CLASS, 2, "module", 2)
        verdict = sick.filter(pod("a", 1), None)
        assert verdict.feasible == []
        assert verdict.code("n") is Reason.GROUP


class TestPlacedIntervals:
    @staticmethod
    def fits(engine: Engine, profile: str) -> list[int]:
        """All starts at which the profile can be placed now, found by filling the device with it."""
        starts = []
        for number in range(8):
            request = pod(f"try-{profile}-{number}", profile=profile)
            if not engine.filter(request, None).feasible:
                break
            grant = engine.reserve(request, "n")
            assert isinstance(grant, PodGrant)
            starts.append(grant.containers[0].devices[0].start)
        for number in range(8):
            engine.rollback(f"try-{profile}-{number}")
        return [start for start in starts if start is not None]

    def test_after_3g_at_4(self) -> None:
        engine = engine_with(MIG_CLASS, 1)
        offer = Offer(mode="mig", profile="3g", cost=Cost(interval=Interval(size=4, starts=(4,))))
        engine.observe(_seen("old", offer, 4))
        assert {profile: self.fits(engine, profile) for profile in MIG_PLACES} == {"1g": [0, 1, 2, 3], "2g": [0, 2], "3g": [0], "4g": [0], "7g": []}

    def test_after_1g_at_1(self) -> None:
        engine = engine_with(MIG_CLASS, 1)
        engine.observe(_seen("old", Offer(mode="mig", profile="1g", cost=Cost(interval=Interval(size=1, starts=(1,)))), 1))
        assert self.fits(engine, "2g") == [2, 4]

    def test_a_refusal_names_the_placement(self) -> None:
        engine = engine_with(MIG_CLASS, 1)
        bind(engine, pod("a", profile="1g"))
        verdict = engine.filter(pod("b", profile="7g"), None)
        assert verdict.code("n") is Reason.PLACEMENT
        assert (verdict.rejections["n"][0].device, verdict.rejections["n"][0].wanted) == ("d0", 8)


def _seen(uid: str, offer: Offer, start: int) -> PodGrant:
    device = DeviceGrant(device_id="d0", device_name="d0", vendor="v", resource="v/x", offer=offer, start=start)
    return PodGrant(owner=Owner(kind="pod", uid=uid), node="n", containers=(ContainerGrant(container="c", devices=(device,)),))


class TestUnitBitmaps:
    def test_a_quarter_of_120_units_is_the_low_thirty_bits(self) -> None:
        engine = engine_with(MASK_CLASS, 1)
        grants = [bind(engine, pod(f"p{i}", cores=25)).containers[0].devices[0].units for i in range(4)]
        assert grants[0] == "0x3fffffff"
        assert sum(int(units or "0", 16) for units in grants) == (1 << 120) - 1

    def test_a_hole_is_used_again_and_the_full_device_refuses(self) -> None:
        engine = engine_with(MASK_CLASS, 1)
        for i in range(4):
            bind(engine, pod(f"p{i}", cores=25))
        verdict = engine.filter(pod("late", cores=25), None)
        assert verdict.code("n") is Reason.CORES
        engine.forget("p1")
        units = bind(engine, pod("late", cores=25)).containers[0].devices[0].units
        assert int(units or "0", 16) == ((1 << 30) - 1) << 30


def test_linked_devices_are_chosen_together_by_topology() -> None:
    plain = DeviceClass(model="G", vendor="v", capacity=Capacity(memory_bytes=GIB))
    peers = {0: 2, 2: 0, 1: 3, 3: 1}
    devices = tuple(Device(id=f"d{i}", device_class=plain, links=(Link(peer=f"d{peers[i]}", kind="nvlink", lanes=4),)) for i in range(4))
    engine = Engine(partition, device_policy="topology")
    engine.set_inventory(Inventory(node="n", devices=devices))
    assert ids(bind(engine, pod("a", 2))) == {"d0", "d2"}
