# SPDX-License-Identifier: Apache-2.0
"""The rounding of sMLU quotas, and the names that lead there."""

from __future__ import annotations

import pytest
from hami_cambricon import discovery, enforce, names, partition

from hami_framework import GIB, MIB, Capacity, DeviceClass, DeviceRequest, Mode, Offer, Reason, Rejection

X8 = DeviceClass(model="MLU370-X8", capacity=Capacity(memory_bytes=24576 * MIB), modes=(Mode(name="whole"), Mode(name="smlu", isolation=enforce.SMLU)))


def only(request: DeviceRequest, known: DeviceClass = X8) -> Offer | Rejection:
    (answer,) = partition.offers(known, request)
    return answer


@pytest.mark.parametrize(("memory_mib", "given_mib"), [(1, 256), (256, 256), (257, 512), (3000, 3072), (12800, 12800), (24575, 24576), (24576, 24576)])
def test_memory_comes_in_steps_of_256_mib(memory_mib: int, given_mib: int) -> None:
    offer = only(DeviceRequest(memory_bytes=memory_mib * MIB, core_percent=30))
    assert isinstance(offer, Offer)
    assert (offer.mode, offer.cost.memory_bytes, offer.cost.core_percent, offer.profile) == ("smlu", given_mib * MIB, 30, f"30_{given_mib}")


def test_fifty_vmemory_are_12800_mib() -> None:
    assert 50 * names.RESOURCES[0].memory_unit_bytes == 12800 * MIB


def test_memory_without_cores_promises_and_limits_no_compute() -> None:
    offer = only(DeviceRequest(memory_bytes=GIB))
    assert isinstance(offer, Offer)
    assert (offer.cost.core_percent, offer.limit.core_percent, offer.profile, offer.exclusive) == (0, None, "100_1024", False)


def test_cores_without_memory_take_all_memory() -> None:
    offer = only(DeviceRequest(core_percent=50))
    assert isinstance(offer, Offer)
    assert (offer.mode, offer.cost.memory_bytes, offer.cost.core_percent) == ("smlu", 24576 * MIB, 50)


def test_memory_that_only_the_odd_rest_could_hold_is_a_whole_card() -> None:
    odd = DeviceClass(model="odd", capacity=Capacity(memory_bytes=1000 * MIB), modes=X8.modes)
    offer = only(DeviceRequest(memory_bytes=900 * MIB), odd)
    assert isinstance(offer, Offer)
    assert (offer.mode, offer.exclusive) == ("whole", True)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (DeviceRequest(count=2, memory_bytes=GIB), Reason.SHARE_COUNT_FORBIDDEN),
        (DeviceRequest(count=2, core_percent=30), Reason.SHARE_COUNT_FORBIDDEN),
        (DeviceRequest(memory_bytes=25 * GIB), Reason.NOT_OFFERED),
        (DeviceRequest(mode="share"), Reason.MODE_UNSUPPORTED),
    ],
    ids=["two-instances", "two-by-cores", "too-large", "no-such-mode"],
)
def test_refusals_say_what_to_write_instead(request_: DeviceRequest, reason: Reason) -> None:
    answer = only(request_)
    assert isinstance(answer, Rejection)
    assert answer.reason is reason
    assert answer.hint


def test_several_whole_cards_are_fine() -> None:
    offer = only(DeviceRequest(count=4))
    assert isinstance(offer, Offer)
    assert offer.exclusive


def test_the_driver_keeps_sixteen_different_profiles() -> None:
    assert discovery.MAX_PROFILES == 16


@pytest.mark.parametrize(
    "spelling", ["cambricon.com/mlu", "cambricon.com/mlu370", "cambricon.com/mlu370.smlu.vmemory", "cambricon.com/mlu370.smlu.vcore"], ids=str
)
def test_spellings_in_the_wild_are_aliases_of_names_we_have(spelling: str) -> None:
    family = names.RESOURCES[0]
    assert family.aliases[spelling] in (family.count, family.memory, family.cores)


def test_the_older_names_count_mib() -> None:
    assert (names.RESOURCES[1].count, names.RESOURCES[1].memory, names.RESOURCES[1].memory_unit_bytes) == ("cambricon.com/mlunum", "cambricon.com/mlumem", MIB)
