# SPDX-License-Identifier: Apache-2.0
"""The manifests that HAMi's users have today run unmodified: each published way of asking, through the mutation and the reader.

Where the meaning differs from HAMi's on purpose, `docs/resources.md` says so in a table; every row of it is a test here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hami_framework.codec.mutation import apply_patch, mutate_pod
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.errors import InvalidRequest
from hami_framework.model import GIB, MIB, Capacity, DeviceClass, DeviceRequest, PodRequest, Reason, Selector, decode

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
FAMILIES = decode((DATA / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog((family.vendor, family.names) for family in FAMILIES)


def pods_of(document: dict[str, Any]) -> dict[str, Any]:
    """The pod itself, or the one that a Deployment would make."""
    if document["kind"] == "Pod":
        return document
    template = document["spec"]["template"]
    return {"metadata": {"name": document["metadata"]["name"], **template["metadata"]}, "spec": template["spec"]}


def published() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((DATA / "hami-examples").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield f"{path.stem}: {document['metadata']['name']}", pods_of(document)


def admitted(pod: dict[str, Any]) -> PodRequest:
    return read_pod(apply_patch(pod, mutate_pod(pod, CATALOG)), CATALOG)


@pytest.mark.parametrize("pod", [pytest.param(pod, id=name) for name, pod in published()])
def test_published_example_runs_unmodified(pod: dict[str, Any]) -> None:
    request = admitted(pod)
    assert not request.empty
    assert read_pod(json.loads(json.dumps(apply_patch(pod, mutate_pod(pod, CATALOG)))), CATALOG) == request


EXPECTED = {
    "nvidia: default-use": DeviceRequest(memory_bytes=3000 * MIB, core_percent=30),
    "nvidia: whole-devices": DeviceRequest(count=2),
    "nvidia: dynamic-mig": DeviceRequest(count=2, memory_bytes=8000 * MIB, mode="mig"),
    "nvidia: mig-profile": DeviceRequest(profile="3g.20gb"),
    "nvidia: exclusive": DeviceRequest(count=2),
    "nvidia: memory-fraction": DeviceRequest(count=2, memory_percent=50, core_percent=30),
    "nvidia: limits-and-requests": DeviceRequest(count=2, memory_percent=30, core_percent=30),
    "ascend: share-of-910b3": DeviceRequest(memory_bytes=2000 * MIB),
    "ascend: share-of-910c": DeviceRequest(memory_bytes=16384 * MIB),
    "ascend: soft-split": DeviceRequest(memory_bytes=28672 * MIB, core_percent=40, mode="share"),
    "cambricon: whole-device": DeviceRequest(),
    "cambricon: default-use": DeviceRequest(memory_bytes=5 * GIB, core_percent=10),
    "cambricon: current-names": DeviceRequest(memory_bytes=5 * GIB, core_percent=10),
    "hygon: default-use": DeviceRequest(memory_bytes=2000 * MIB, core_percent=60),
    "hygon: exclusive": DeviceRequest(count=2),
    "hygon: newer-names": DeviceRequest(memory_bytes=2000 * MIB, core_percent=60),
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items(), ids=EXPECTED)
def test_published_example_asks_for_what_it_says(name: str, expected: DeviceRequest) -> None:
    (container,) = admitted(dict(published())[name]).containers
    assert [asked.request for asked in container.requests] == [expected]


# -- Where we differ from HAMi: one test for each row of the table in docs/resources.md -----------------------------


def request(limits: dict[str, Any]) -> DeviceRequest:
    pod = {"spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}}
    return read_pod(pod, CATALOG).containers[0].requests[0].request


def refusal(limits: dict[str, Any], requests: dict[str, Any] | None = None, annotations: dict[str, str] | None = None) -> Reason:
    resources = {"limits": limits, "requests": requests}
    pod = {"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "main", "resources": resources}]}}
    with pytest.raises(InvalidRequest) as caught:
        read_pod(pod, CATALOG)
    return caught.value.rejections[0].reason


def test_d1_count_alone_is_exclusive_for_every_vendor() -> None:
    assert request({"hygon.com/dcunum": 1}).whole
    assert request({"huawei.com/Ascend910B3": 1}).whole


def test_d2_memory_without_cores_sets_no_compute_limit() -> None:
    assert request({"hygon.com/dcunum": 1, "hygon.com/dcumem": 2000}).core_percent is None
    assert request({"cambricon.com/vmlu": 1, "cambricon.com/mlu.smlu.vmemory": 20}).core_percent is None


def test_d3_all_memory_without_cores_is_no_exclusive_device() -> None:
    assert not request({"nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 100}).whole


def test_d4_binary_suffixes_on_memory_are_bytes() -> None:
    assert request({"nvidia.com/gpu": 1, "nvidia.com/gpumem": "3Gi"}).memory_bytes == 3 * GIB


def test_d5_percentages_out_of_range_are_refused() -> None:
    assert refusal({"nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 120}) is Reason.PERCENT_INVALID
    assert refusal({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 120}) is Reason.PERCENT_INVALID


def test_d6_zero_amounts_are_refused() -> None:
    assert refusal({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 0}) is Reason.QUANTITY_INVALID
    assert refusal({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 0}) is Reason.PERCENT_INVALID


def test_d7_what_cannot_be_read_is_never_nothing() -> None:
    assert refusal({"nvidia.com/gpu": 1, "nvidia.com/gpumem": "500m"}) is Reason.QUANTITY_INVALID
    assert refusal({"huawei.com/Ascend910B3": 1, "huawei.com/Ascend910B3-memory": "-1"}) is Reason.QUANTITY_INVALID


def test_d8_memory_in_two_ways_is_refused() -> None:
    assert refusal({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000, "nvidia.com/gpumem-percentage": 50}) is Reason.REQUEST_CONFLICT


def test_d9_limits_are_what_counts() -> None:
    assert refusal({}, {"nvidia.com/gpu": 1}) is Reason.COUNT_MISSING
    assert refusal({"nvidia.com/gpu": 1}, {"nvidia.com/gpumem": 3000}) is Reason.REQUEST_CONFLICT


def test_d10_a_missing_count_is_written_at_admission_for_every_vendor() -> None:
    pod = {"spec": {"containers": [{"name": "main", "resources": {"limits": {"hygon.com/dcumem": 2000}}}]}}
    assert admitted(pod).containers[0].requests[0].request == DeviceRequest(memory_bytes=2000 * MIB)
    assert refusal({"hygon.com/dcumem": 2000}) is Reason.COUNT_MISSING


def test_d11_types_match_exactly() -> None:
    b4_1 = DeviceClass(model="910B4-1", types=("Ascend910B4-1",), capacity=Capacity(memory_bytes=64 * GIB))
    assert not Selector(use_types=("910B4",)).accepts_type(b4_1)
    assert not Selector(resource_types=("910B4",)).accepts_type(b4_1)
    assert Selector(use_types=("910b4-1",)).accepts_type(b4_1)


def test_d12_modes_and_policies_are_known_words() -> None:
    assert refusal({"nvidia.com/gpu": 1}, annotations={"nvidia.com/vgpu-mode": "hami-core,mig"}) is Reason.ANNOTATION_INVALID
    assert refusal({"nvidia.com/gpu": 1}, annotations={"hami.io/gpu-scheduler-policy": "tidy"}) is Reason.POLICY_UNKNOWN
    assert refusal({"nvidia.com/gpu": 1}, annotations={"hami.io/gpu-scheduler-policy": "mutex,binpack"}) is Reason.POLICY_UNKNOWN


def test_d13_sidecars_run_beside_the_others() -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000}}}
    spec = {"initContainers": [{"name": "proxy", "restartPolicy": "Always", **limits}], "containers": [{"name": "main", **limits}]}
    assert read_pod({"spec": spec}, CATALOG).phases() == ((0, 1),)


def test_d14_whole_modules_but_single_shares_of_910c() -> None:
    def count(limits: dict[str, Any]) -> int:
        pod = {"spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}}
        return admitted(pod).containers[0].requests[0].request.count

    assert count({"huawei.com/Ascend910C": 1}) == 2
    assert count({"huawei.com/Ascend910C": 1, "huawei.com/Ascend910C-memory": 16384}) == 1


def test_the_table_and_the_tests_have_the_same_rows() -> None:
    tested = [found[1].upper() for name in globals() if (found := re.match(r"test_(d\d+)_", name))]
    documented = re.findall(r"^\| (D\d+) \|", (ROOT / "docs" / "resources.md").read_text(), re.MULTILINE)
    assert documented == tested
