# SPDX-License-Identifier: Apache-2.0
"""Refusals in words: who, what, where, how much, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.codec.words import MEANING, sentence, summary
from hami_framework.errors import InvalidRequest
from hami_framework.model import GIB, MIB, Reason, Rejection, decode

ROOT = Path(__file__).parents[2]
FAMILIES = decode((ROOT / "tests" / "data" / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog((family.vendor, family.names) for family in FAMILIES)


def test_every_code_has_words_and_documentation() -> None:
    assert set(MEANING) == set(Reason)
    documented = (ROOT / "docs" / "reasons.md").read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in documented] == []


MEMORY = Rejection(reason=Reason.MEMORY, device="gpu-3", dimension="memory_bytes", wanted=20 * GIB, free=12 * GIB)

SENTENCES = [
    pytest.param(MEMORY, "device gpu-3: not enough memory is free (wanted 20.0 GiB, free 12.0 GiB)", id="figures with their unit"),
    pytest.param(
        Rejection(reason=Reason.CORES, device="gpu-0", dimension="core_percent", wanted=60, free=0),
        "device gpu-0: not enough compute is free (wanted 60 %, free 0 %)",
        id="nothing left",
    ),
    pytest.param(
        Rejection(reason=Reason.COUNTER, device="npu-1", dimension="aicpu", wanted=3, free=1),
        "device npu-1: not enough of a counted resource is free (wanted 3 aicpu, free 1 aicpu)",
        id="a vendor's counter",
    ),
    pytest.param(
        Rejection(reason=Reason.HEALTH, device="gpu-2", message="the device is unhealthy: Xid 79", hint="wait for it to recover"),
        "device gpu-2: the device is unhealthy: Xid 79; wait for it to recover",
        id="the vendor's own words",
    ),
    pytest.param(Rejection(reason=Reason.NO_INVENTORY), "the node has published no devices", id="nowhere in particular"),
    pytest.param(
        Rejection(reason=Reason.COUNT_TOO_LARGE, container="main", resource="acme.com/xpu", wanted=16, free=8, hint="write at most 8"),
        "container main, acme.com/xpu: no node has that many devices (wanted 16, at most 8); write at most 8",
        id="figures without a dimension",
    ),
    pytest.param(
        Rejection(reason=Reason.COUNT_TOO_LARGE, dimension="count", wanted=16, free=8),
        "no node has that many devices (wanted 16, at most 8)",
        id="a count needs no unit",
    ),
    pytest.param(
        Rejection(reason=Reason.TYPE, device="gpu-0", wanted="A100", free="V100"),
        "device gpu-0: the device is not of a type that the pod accepts (wanted A100, here V100)",
        id="names instead of amounts",
    ),
]


@pytest.mark.parametrize(("rejection", "expected"), SENTENCES)
def test_sentence(rejection: Rejection, expected: str) -> None:
    assert sentence(rejection) == expected


def refusal(limits: dict[str, Any], **annotations: str) -> str:
    pod = {"metadata": {"name": "p", "annotations": annotations}, "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}}
    with pytest.raises(InvalidRequest) as caught:
        read_pod(pod, CATALOG)
    return sentence(caught.value.rejections[0])


BAD_PODS = [
    pytest.param(
        {"hami.io/memory-mib": 3000},
        {},
        "container main, hami.io/memory-mib: it says how much of a device, but not how many: hami.io/accelerator is missing; add hami.io/accelerator: 1",
        id="count missing",
    ),
    pytest.param(
        {"nvidia.com/gpu": 1, "nvidia.com/gpumem": "500m"},
        {},
        "container main, nvidia.com/gpumem: '500m' is not a whole number; "
        "write a whole number of the resource's units, or bytes as Mi or Gi; leave it out to have all memory",
        id="half a MiB",
    ),
    pytest.param(
        {"nvidia.com/gpu": 1, "nvidia.com/gpucores": 150},
        {},
        "container main, nvidia.com/gpucores: 150 is not a percentage from 1 to 100; "
        "write a whole percentage from 1 to 100, or leave it out to have no compute limit",
        id="percentage",
    ),
    pytest.param(
        {"nvidia.com/gpu": 1},
        {"hami.io/node-scheduler-policy": "binpak"},
        "hami.io/node-scheduler-policy: no policy is called 'binpak'; write one of binpack, mutex, numa, spread, topology (did you mean binpack?)",
        id="policy",
    ),
]


@pytest.mark.parametrize(("limits", "annotations", "expected"), BAD_PODS)
def test_a_wrong_pod_in_words(limits: dict[str, Any], annotations: dict[str, str], expected: str) -> None:
    assert refusal(limits, **annotations) == expected


def test_summary_groups_and_shows_the_nearest_miss() -> None:
    rejections = [
        Rejection(reason=Reason.HEALTH, device="gpu-9", message="the device is unhealthy: Xid 79"),
        Rejection(reason=Reason.MEMORY, device="gpu-1", dimension="memory_bytes", wanted=4000 * MIB, free=1000 * MIB),
        Rejection(reason=Reason.MEMORY, device="gpu-2", dimension="memory_bytes", wanted=4000 * MIB, free=3500 * MIB),
        Rejection(reason=Reason.EXCLUSIVE, device="gpu-3"),
        Rejection(reason=Reason.EXCLUSIVE, device="gpu-4"),
        Rejection(reason=Reason.MEMORY, device="gpu-5", dimension="memory_bytes", wanted=4000 * MIB, free=0),
    ]
    assert summary(rejections) == (
        "3× not enough memory is free, nearest on gpu-2 (wanted 4000 MiB, free 3500 MiB); "
        "2× the device is not idle, or is held exclusively; "
        "1× device gpu-9: the device is unhealthy: Xid 79"
    )


def test_summary_of_one_is_its_sentence_and_of_nothing_is_nothing() -> None:
    assert summary([MEMORY]) == sentence(MEMORY)
    assert summary([]) == ""
