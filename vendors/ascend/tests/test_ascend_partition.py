# SPDX-License-Identifier: Apache-2.0
"""The rounding table of vNPU templates and soft shares, and the names that lead there."""

from __future__ import annotations

import itertools

import pytest
from hami_ascend import discovery, names, partition
from hami_ascend.driver import Address, Chip

from hami_framework import MIB, DeviceClass, DeviceRequest, Offer, Reason, Rejection


def device_class(name: str = "910B3", memory_mib: int = 65536, aicores: int = 20, aicpus: int | None = 7) -> DeviceClass:
    chip = Chip(Address(0, 0), name, aicores, aicpus, "A-B-C-D-E", 0, 0, memory_mib, None, None, None)
    return discovery.device_class(chip, interceptor=False)


def only(known: DeviceClass, memory_mib: int | None = None, **asked: object) -> Offer | Rejection:
    request = DeviceRequest(memory_bytes=None if memory_mib is None else memory_mib * MIB, **asked)  # type: ignore[arg-type]
    (answer,) = partition.offers(known, request)
    return answer


@pytest.mark.parametrize(
    ("memory_mib", "template"),
    [(1, "vir05_1c_16g"), (16384, "vir05_1c_16g"), (16385, "vir10_3c_32g"), (17000, "vir10_3c_32g"), (32768, "vir10_3c_32g"), (33000, None), (65536, None)],
)
def test_910b3_memory_is_rounded_to_the_smallest_template_or_a_whole_chip(memory_mib: int, template: str | None) -> None:
    offer = only(device_class(), memory_mib)
    assert isinstance(offer, Offer)
    assert (offer.profile, offer.exclusive, offer.mode) == (template, template is None, "vnpu" if template else "whole")


def test_more_than_the_chip_has_is_refused() -> None:
    answer = only(device_class(), 65537)
    assert isinstance(answer, Rejection)
    assert (answer.wanted, answer.free) == (65537 * MIB, 65536 * MIB)


def test_two_vnpus_for_one_container_are_refused_with_the_way_out() -> None:
    answer = only(device_class(), 16384, count=2)
    assert isinstance(answer, Rejection)
    assert answer.reason is Reason.SHARE_COUNT_FORBIDDEN
    assert "huawei.com/vnpu-mode: hami-core" in (answer.hint or "")


def test_two_that_round_up_to_whole_chips_are_whole_chips() -> None:
    assert only(device_class(), 40000, count=2) == only(device_class(), count=2)


def test_soft_shares_are_exact_and_may_be_several() -> None:
    offer = only(device_class(), 17000, count=2, core_percent=30, mode="share")
    assert isinstance(offer, Offer)
    assert (offer.mode, offer.cost.memory_bytes, offer.limit.core_percent, offer.profile) == ("share", 17000 * MIB, 30, None)


def test_a_whole_chip_in_soft_mode_is_exclusive() -> None:
    offer = only(device_class(), mode="share")
    assert isinstance(offer, Offer)
    assert (offer.mode, offer.exclusive, offer.cost.core_percent) == ("share", True, 100)


def test_cores_ask_for_a_template_with_enough_of_them() -> None:
    assert [offer.profile for offer in (only(device_class(), 8000, core_percent=percent) for percent in (25, 26, 50, 51)) if isinstance(offer, Offer)] == [
        "vir05_1c_16g",
        "vir10_3c_32g",
        "vir10_3c_32g",
        None,
    ]


@pytest.mark.parametrize(
    ("chip", "memory_mib", "aicores", "aicpus", "most"),
    [
        ("910B3", 65536, 20, 7, {"vir05_1c_16g": 4, "vir10_3c_32g": 2}),
        ("910B2", 65536, 24, 6, {"vir03_1c_8g": 6, "vir06_1c_16g": 4, "vir12_3c_32g": 2}),  # 8 by memory, but 6 AI CPUs
        ("910B4", 32768, 20, 7, {"vir05_1c_8g": 4, "vir10_3c_16g": 2}),
        ("310P3", 21527, 8, 7, {"vir01": 7, "vir02": 3, "vir04": 1}),
        ("Ascend910", 65536, 20, 7, {"vir05_1c_16g": 4, "vir10_3c_32g": 2}),
        ("Ascend910", 65536, 24, 7, {"vir06_1c_16g": 4, "vir12_3c_32g": 2}),  # the dies of training machines
        ("910A", 32768, 30, None, {"vir02": 15, "vir04": 7, "vir08": 3, "vir16": 1}),
    ],
)
def test_how_many_vnpus_the_totals_allow(chip: str, memory_mib: int, aicores: int, aicpus: int | None, most: dict[str, int]) -> None:
    known = device_class(chip, memory_mib, aicores, aicpus)
    totals = {"memory": known.capacity.memory_bytes, **{counter.name: counter.amount for counter in known.capacity.counters}}
    for profile in known.profiles:
        needs = {"memory": profile.cost.memory_bytes, **{counter.name: counter.amount for counter in profile.cost.counters}}
        assert min(totals[name] // amount for name, amount in needs.items()) == most[profile.name]


def test_a_named_template_and_one_that_is_not_there() -> None:
    named = only(device_class(), profile="vir10_3c_32g")
    assert isinstance(named, Offer)
    assert named.profile == "vir10_3c_32g"
    unknown = only(device_class(), profile="vir99")
    assert isinstance(unknown, Rejection)
    assert unknown.reason is Reason.PROFILE_UNKNOWN


def test_a_chip_without_known_templates_is_shared_softly() -> None:
    known = device_class("310B4", 7578, 1, None)
    offer = only(known, 2000)
    assert isinstance(offer, Offer)
    assert offer.mode == "share"
    refused = only(known, 2000, mode="vnpu")
    assert isinstance(refused, Rejection)
    assert refused.reason is Reason.MODE_UNSUPPORTED


@pytest.mark.parametrize(
    ("chip", "family"),
    [
        ("910A", "huawei.com/Ascend910A"),
        ("910ProB", "huawei.com/Ascend910A"),
        ("910B2", "huawei.com/Ascend910B2"),
        ("910B3", "huawei.com/Ascend910B3"),
        ("910B4", "huawei.com/Ascend910B4"),
        ("910B4-1", "huawei.com/Ascend910B4-1"),
        ("310P3", "huawei.com/Ascend310P"),
        ("Ascend910", "huawei.com/Ascend910"),
        ("910_9391", "huawei.com/Ascend910"),
        ("310B4", None),
    ],
)
def test_every_chip_belongs_to_exactly_the_family_it_is_named_for(chip: str, family: str | None) -> None:
    known = device_class(chip)
    families = [own.count for own in names.RESOURCES if any(known.answers_to(name) for name in own.types)]
    assert families == ([] if family is None else [family])


def test_names_are_claimed_once() -> None:
    claimed = itertools.chain.from_iterable((own.count, own.memory, own.cores, *own.aliases) for own in names.RESOURCES)
    assert len(list(claimed)) == len(names.RESOURCES) * 3 + 3


def test_a_910c_comes_in_modules() -> None:
    family = names.RESOURCES[-1]
    assert family.minimum_count == 2
    assert family.aliases["huawei.com/Ascend910C"] == "huawei.com/Ascend910"
