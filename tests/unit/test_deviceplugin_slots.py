# SPDX-License-Identifier: Apache-2.0
"""Slots: how many, what they are called, and whose turn it is when a device fails."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_framework.deviceplugin import slots
from hami_framework.deviceplugin.slots import Part, Pool
from hami_framework.errors import ConfigError
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as messages
from hami_framework.model import Capacity, Cost, Device, DeviceClass, Health, PartitionProfile, ResourceNames, VendorInfo

SICK = Health(state="unhealthy", reason="Xid 79")
BIG = DeviceClass(
    model="Big",
    vendor="acme",
    types=("B1",),
    capacity=Capacity(memory_bytes=80, shares=10),
    profiles=(PartitionProfile(name="1g", mode="cut", cost=Cost(), max_instances=7), PartitionProfile(name="2g", mode="cut", cost=Cost())),
)
SMALL = DeviceClass(model="Small", vendor="acme", types=("S1",), capacity=Capacity(memory_bytes=8, shares=4))


def device(name: str, device_class: DeviceClass = BIG, health: Health | None = None) -> Device:
    return Device(id=name, name=name, device_class=device_class, health=health or Health())


def vendor(*families: ResourceNames, name: str = "acme") -> VendorInfo:
    return VendorInfo(name=name, resources=families)


@pytest.mark.parametrize(
    ("family", "resource", "total"),
    [
        pytest.param(ResourceNames(count="acme.com/xpu"), "acme.com/xpu", 24, id="all devices of the vendor"),
        pytest.param(ResourceNames(count="acme.com/s1", types=("s1",)), "acme.com/s1", 4, id="only the type named, whatever its case"),
        pytest.param(ResourceNames(count="acme.com/x", profiles={"acme.com/1g": "1g"}), "acme.com/1g", 14, id="a profile: what the devices can be cut into"),
        pytest.param(ResourceNames(count="acme.com/x", profiles={"acme.com/2g": "2g"}), "acme.com/2g", 20, id="a profile without a maximum: shares"),
        pytest.param(ResourceNames(count="acme.com/x"), "hami.io/accelerator", 24, id="the neutral resource stands for everything"),
    ],
)
def test_pools_count_what_the_devices_can_give(family: ResourceNames, resource: str, total: int) -> None:
    found = slots.pools([vendor(family)], {"acme": [device("a"), device("b"), device("c", SMALL)]})

    assert found[resource].total == total


def test_a_node_without_devices_still_offers_the_neutral_resource() -> None:
    assert slots.pools([], {}) == {"hami.io/accelerator": Pool(resource="hami.io/accelerator", vendor="")}


def test_a_name_claimed_by_two_vendors_is_nobodys() -> None:
    vendors = [vendor(ResourceNames(count="x.com/gpu"), name="acme"), vendor(ResourceNames(count="x.com/gpu"), ResourceNames(count="z.com/npu"), name="zeta")]

    assert slots.contested(vendors) == {"x.com/gpu": ("acme", "zeta")}
    assert set(slots.pools(vendors, {})) == {"z.com/npu", "hami.io/accelerator"}


def test_a_vendor_cannot_take_the_neutral_name() -> None:
    assert list(slots.contested([vendor(ResourceNames(count="hami.io/accelerator"))])) == ["hami.io/accelerator"]


@given(st.from_regex(r"[a-z0-9.-]{1,60}/[A-Za-z0-9_.-]{1,63}", fullmatch=True), st.integers(0, 99_999))
def test_slot_names_are_dns_labels(resource: str, number: int) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", slots.slot_id(resource, number))


@pytest.mark.parametrize(("one", "other"), [("a.com/gpu", "b.com/gpu"), ("a.com/x-y", "a.com/x.y"), ("a.com/Gpu", "a.com/gpu"), ("a/b-1", "a/b")])
def test_slot_names_tell_resources_apart(one: str, other: str) -> None:
    assert not {slots.slot_id(one, n) for n in range(20)} & {slots.slot_id(other, n) for n in range(20)}


def pool(*parts: Part) -> Pool:
    return Pool(resource="acme.com/xpu", vendor="acme", parts=parts)


def slot(number: int) -> str:
    return slots.slot_id("acme.com/xpu", number)


def unhealthy(listed: tuple[slots.Slot, ...]) -> set[str]:
    return {one.id for one in listed if not one.healthy}


A_BAD = (Part(device_id="a", shares=3, healthy=False), Part(device_id="b", shares=3, healthy=True))


@pytest.mark.parametrize(
    ("occupied", "expected"),
    [
        pytest.param({}, {3, 4, 5}, id="nothing in use: the failed device's share of the free ones, from the end"),
        pytest.param({0: {"a"}}, {0, 4, 5}, id="its own grant first, then free ones"),
        pytest.param({5: {"b"}, 4: {"b"}}, {1, 2, 3}, id="never a slot of a healthy grant"),
        pytest.param({0: {"a", "b"}, 1: {"b"}}, {0, 4, 5}, id="a grant over two devices falls with either"),
        pytest.param({0: {"b"}, 1: {"b"}, 2: {"b"}, 3: set(), 4: set(), 5: {"b"}}, set(), id="in use by nobody known yet: left alone"),
        pytest.param({n: {"a"} for n in range(5)}, {0, 1, 2, 3, 4}, id="every grant that names it, however many"),
    ],
)
def test_a_failed_device_takes_its_own_slots_down_and_no_others(occupied: dict[int, set[str]], expected: set[int]) -> None:
    held = {slot(number): frozenset(devices) for number, devices in occupied.items()}

    assert unhealthy(slots.slots(pool(*A_BAD), held)) == {slot(number) for number in expected}


def test_a_recovered_device_brings_all_slots_back() -> None:
    well = pool(Part(device_id="a", shares=3, healthy=True), Part(device_id="b", shares=3, healthy=True))

    assert unhealthy(slots.slots(well, {slot(0): frozenset({"a"})})) == set()


def test_a_slot_in_use_stays_listed_when_the_node_shrinks() -> None:
    listed = slots.slots(pool(Part(device_id="b", shares=2, healthy=True)), {slot(5): frozenset({"a"}), slot(4): frozenset({"b"})})

    assert [one.id for one in listed] == [slot(0), slot(1), slot(4), slot(5)]
    assert unhealthy(listed) == {slot(5), slot(1)}


def test_slots_of_another_resource_do_not_count() -> None:
    assert len(slots.slots(pool(*A_BAD), {slots.slot_id("other.com/xpu", 3): frozenset({"a"})})) == 6


@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=6),
    st.dictionaries(st.integers(0, 40), st.frozensets(st.sampled_from("0123456")), max_size=20),
)
def test_health_of_slots_holds_its_three_promises(parts: list[tuple[int, bool]], occupied: dict[int, frozenset[str]]) -> None:
    some = pool(*(Part(device_id=str(n), shares=shares, healthy=healthy) for n, (shares, healthy) in enumerate(parts)))
    held = {slot(number): devices for number, devices in occupied.items()}
    sound = {part.device_id for part in some.parts if part.healthy}

    listed = slots.slots(some, held)
    bad = unhealthy(listed)

    assert len({one.id for one in listed}) == len(listed)
    assert held.keys() <= {one.id for one in listed}
    assert {one for one, devices in held.items() if not devices <= sound} == bad & held.keys()
    free_and_well = [one for one in listed if one.healthy and one.id not in held]
    assert not free_and_well or len(listed) - len(bad) <= some.well


def test_slots_are_remembered_while_a_vendor_starts_and_sick_when_it_came_back_broken() -> None:
    offered = [("acme.com/xpu", "acme", 8), ("hami.io/accelerator", "", 8)]

    starting = slots.with_memory(slots.pools([], {}), offered, {"acme": "starting"})
    assert {name: one.well for name, one in starting.items()} == {"acme.com/xpu": 8, "hami.io/accelerator": 8}
    assert unhealthy(slots.slots(starting["acme.com/xpu"], {slot(2): frozenset({"a"})})) == set()

    broken = slots.with_memory(slots.pools([], {}), offered, {"acme": "quarantined"})
    assert (broken["acme.com/xpu"].total, broken["acme.com/xpu"].well) == (8, 0)

    assert "acme.com/xpu" not in slots.with_memory(slots.pools([], {}), offered, {}), "a vendor that was uninstalled"


def test_the_size_guard_is_an_upper_bound_of_the_real_message() -> None:
    listed = slots.slots(pool(Part(device_id="a", shares=500, healthy=True)), {})
    message = messages.ListAndWatchResponse(devices=[messages.Device(ID=one.id, health="Unhealthy") for one in listed])

    assert message.ByteSize() <= slots.message_bytes(listed) <= 2 * message.ByteSize()


def test_more_slots_than_kubelet_can_receive_are_refused_by_name() -> None:
    huge = pool(Part(device_id="a", shares=120_000, healthy=True))

    with pytest.raises(ConfigError, match=r"acme\.com/xpu: 120000 slots"):
        slots.check_size(huge, slots.slots(huge, {}))
