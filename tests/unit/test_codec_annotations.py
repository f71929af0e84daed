# SPDX-License-Identifier: Apache-2.0
"""What a pod's annotations choose: types, ids, vendors, mode, policies, enforcement; each vendor's spelling and the uniform one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.errors import InvalidRequest
from hami_framework.model import Capacity, DeviceClass, Isolation, Reason, Rejection, ResourceRequest, Selector, decode

FAMILIES = decode((Path(__file__).parents[1] / "data" / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog(((family.vendor, family.names) for family in FAMILIES), vendors=["silent"])

GPU = {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000}


def pod(annotations: dict[str, Any], *limits: dict[str, Any]) -> dict[str, Any]:
    containers = [{"name": f"c{index}", "resources": {"limits": each}} for index, each in enumerate(limits or (GPU,))]
    return {"metadata": {"name": "p", "annotations": annotations}, "spec": {"containers": containers}}


def asked(annotations: dict[str, Any], limits: dict[str, Any] = GPU) -> ResourceRequest:
    return read_pod(pod(annotations, limits), CATALOG).containers[0].requests[0]


def refused(annotations: dict[str, Any], *limits: dict[str, Any]) -> tuple[Rejection, ...]:
    with pytest.raises(InvalidRequest) as caught:
        read_pod(pod(annotations, *limits), CATALOG)
    return caught.value.rejections


NV = ("nvidia",)
SELECTORS = [
    pytest.param({"nvidia.com/use-gputype": "A100,V100"}, GPU, Selector(vendors=NV, use_types=("A100", "V100")), id="vendor's use-type"),
    pytest.param({"nvidia.com/nouse-gputype": "1080, 2080"}, GPU, Selector(vendors=NV, nouse_types=("1080", "2080")), id="vendor's nouse-type, blanks"),
    pytest.param({"nvidia.com/use-gpuuuid": "GPU-1"}, GPU, Selector(vendors=NV, use_ids=("GPU-1",)), id="vendor's use-id"),
    pytest.param({"nvidia.com/nouse-gpuuuid": "GPU-1"}, GPU, Selector(vendors=NV, nouse_ids=("GPU-1",)), id="vendor's nouse-id"),
    pytest.param({"hami.io/use-device-type": "A100"}, GPU, Selector(vendors=NV, use_types=("A100",)), id="uniform use-type"),
    pytest.param({"hami.io/nouse-device-type": "A100"}, GPU, Selector(vendors=NV, nouse_types=("A100",)), id="uniform nouse-type"),
    pytest.param({"hami.io/use-device-id": "a"}, GPU, Selector(vendors=NV, use_ids=("a",)), id="uniform use-id"),
    pytest.param({"hami.io/nouse-device-id": "a"}, GPU, Selector(vendors=NV, nouse_ids=("a",)), id="uniform nouse-id"),
    pytest.param({"hygon.com/use-dcutype": "K100_AI"}, GPU, Selector(vendors=NV), id="another vendor's spelling steers its own devices only"),
    pytest.param({"hygon.com/use-hcutype": "K100_AI"}, {"hygon.com/dcunum": 1}, Selector(vendors=("hygon",), use_types=("K100_AI",)), id="newer spelling"),
    pytest.param(
        {"hygon.com/use-hcutype": "K100_AI", "hygon.com/use-dcutype": "K100_AI"},
        {"hygon.com/dcunum": 1},
        Selector(vendors=("hygon",), use_types=("K100_AI",)),
        id="two spellings that agree",
    ),
    pytest.param(
        {"hami.io/use-device-type": "Ascend"},
        {"huawei.com/Ascend910B3": 1},
        Selector(vendors=("ascend",), resource_types=("910B3",), use_types=("Ascend",)),
        id="the resource's own types hold beside the user's",
    ),
    pytest.param({"hami.io/vendors": "nvidia,hygon"}, {"hami.io/accelerator": 1}, Selector(vendors=("nvidia", "hygon")), id="vendors of a neutral request"),
    pytest.param({"hami.io/vendors": "silent"}, {"hami.io/accelerator": 1}, Selector(vendors=("silent",)), id="a vendor without names of its own"),
    pytest.param({}, {"hami.io/accelerator": 1}, Selector(), id="any vendor"),
    pytest.param({"hami.io/vendors": "hygon"}, GPU, Selector(vendors=NV), id="a vendor's own resource says the vendor"),
]


@pytest.mark.parametrize(("annotations", "limits", "expected"), SELECTORS)
def test_selector(annotations: dict[str, Any], limits: dict[str, Any], expected: Selector) -> None:
    assert asked(annotations, limits).selector == expected


MODES = [
    pytest.param({"nvidia.com/vgpu-mode": "mig"}, GPU, "mig", id="vendor's word"),
    pytest.param({"nvidia.com/vgpu-mode": "hami-core"}, GPU, "share", id="vendor's word for ours"),
    pytest.param({"huawei.com/vnpu-mode": "hami-core"}, {"huawei.com/Ascend910B3": 1}, "share", id="another vendor's annotation"),
    pytest.param({"hami.io/device-mode": "whole"}, GPU, "whole", id="uniform, the class's own name"),
    pytest.param({"hami.io/device-mode": "hami-core"}, GPU, "share", id="uniform, HAMi's word"),
    pytest.param({"hami.io/device-mode": "mig", "nvidia.com/vgpu-mode": "mig"}, GPU, "mig", id="both agree"),
    pytest.param({"huawei.com/vnpu-mode": "hami-core"}, GPU, None, id="not this vendor's"),
]


@pytest.mark.parametrize(("annotations", "limits", "mode"), MODES)
def test_mode(annotations: dict[str, Any], limits: dict[str, Any], mode: str | None) -> None:
    assert asked(annotations, limits).request.mode == mode


@pytest.mark.parametrize(
    ("value", "policy"),
    [
        ("binpack", "binpack"),
        ("spread", "spread"),
        ("mutex", "mutex"),
        ("topology-aware", "topology"),
        ("topology", "topology"),
        ("numa-bind", "numa"),
        ("numa", "numa"),
    ],
)
def test_policy(value: str, policy: str) -> None:
    assert read_pod(pod({"hami.io/gpu-scheduler-policy": value}), CATALOG).device_policy == policy


def test_policies_of_both_levels_and_of_a_package() -> None:
    annotations = {"hami.io/node-scheduler-policy": "spread", "hami.io/gpu-scheduler-policy": "coolest"}
    request = read_pod(pod(annotations), CATALOG, policies={"spread", "coolest"})
    assert (request.node_policy, request.device_policy) == ("spread", "coolest")


HARD = Isolation(memory="hard", compute="hard")


@pytest.mark.parametrize(
    ("value", "isolation"),
    [
        ("hard", HARD),
        ("soft", Isolation(memory="soft", compute="soft")),
        ("advisory", Isolation()),
        ("none", Isolation()),
        ("memory=hard, fault=hard", Isolation(memory="hard", fault="hard")),
    ],
)
def test_enforcement(value: str, isolation: Isolation) -> None:
    assert read_pod(pod({"hami.io/enforcement": value}), CATALOG).isolation == isolation


BAD = [
    pytest.param({"nvidia.com/use-gputype": "A100,,V100"}, Reason.ANNOTATION_INVALID, "single commas", id="an empty name"),
    pytest.param({"nvidia.com/use-gputype": ""}, Reason.ANNOTATION_INVALID, "leave the annotation out", id="nothing"),
    pytest.param({"hami.io/use-device-id": "a,"}, Reason.ANNOTATION_INVALID, "single commas", id="a comma at the end"),
    pytest.param({"hami.io/use-device-id": 3}, Reason.ANNOTATION_INVALID, "in quotes", id="not text"),
    pytest.param({"nvidia.com/vgpu-mode": "hami"}, Reason.ANNOTATION_INVALID, "hami-core, mig", id="a mode that the vendor does not know"),
    pytest.param({"hami.io/device-mode": "a mode"}, Reason.ANNOTATION_INVALID, "e.g. whole or share", id="no mode's name"),
    pytest.param({"hami.io/device-mode": "share", "nvidia.com/vgpu-mode": "mig"}, Reason.ANNOTATION_INVALID, "keep one of", id="two modes"),
    pytest.param({"hami.io/use-device-type": "A100", "nvidia.com/use-gputype": "V100"}, Reason.ANNOTATION_INVALID, "keep one of", id="two answers"),
    pytest.param({"hami.io/node-scheduler-policy": "binpak"}, Reason.POLICY_UNKNOWN, "did you mean binpack?", id="misspelt policy"),
    pytest.param({"hami.io/gpu-scheduler-policy": ""}, Reason.POLICY_UNKNOWN, "one of binpack", id="empty policy"),
    pytest.param({"hami.io/gpu-scheduler-policy": "mutex,tidy"}, Reason.POLICY_UNKNOWN, "one of binpack", id="a list"),
    pytest.param({"hami.io/enforcement": "strict"}, Reason.ANNOTATION_INVALID, "write hard, soft", id="unknown level"),
    pytest.param({"hami.io/enforcement": "memory=solid"}, Reason.ANNOTATION_INVALID, "write hard, soft", id="unknown level of an aspect"),
    pytest.param({"hami.io/enforcement": "disk=hard"}, Reason.ANNOTATION_INVALID, "write hard, soft", id="unknown aspect"),
]


@pytest.mark.parametrize(("annotations", "reason", "hint"), BAD)
def test_wrong_annotations(annotations: dict[str, Any], reason: Reason, hint: str) -> None:
    (rejection,) = refused(annotations)
    assert rejection.reason is reason
    assert rejection.resource in annotations
    assert hint in (rejection.hint or "")


def test_unknown_vendor_of_a_neutral_request() -> None:
    (rejection,) = refused({"hami.io/vendors": "nvdia"}, {"hami.io/accelerator": 1})
    assert rejection.reason is Reason.VENDOR_UNKNOWN
    assert rejection.hint is not None
    assert "did you mean nvidia?" in rejection.hint


def test_a_wrong_annotation_is_said_once_for_all_containers() -> None:
    assert len(refused({"hami.io/use-device-id": ","}, GPU, GPU, {"hygon.com/dcunum": 1})) == 1


def device_class(model: str, *types: str) -> DeviceClass:
    return DeviceClass(model=model, types=types, capacity=Capacity(memory_bytes=1))


@pytest.mark.parametrize(
    ("selector", "accepted"),
    [
        pytest.param(Selector(), True, id="any type"),
        pytest.param(Selector(use_types=("910b4-1",)), True, id="the model itself, ignoring case"),
        pytest.param(Selector(use_types=("910B4",)), False, id="never a part of a name"),
        pytest.param(Selector(use_types=("V100", "Ascend910B4-1")), True, id="one of several"),
        pytest.param(Selector(nouse_types=("910B4-1",)), False, id="not wanted"),
        pytest.param(Selector(resource_types=("910B3",), use_types=("910B4-1",)), False, id="the resource is for others"),
    ],
)
def test_types_match_exactly(selector: Selector, accepted: bool) -> None:
    assert selector.accepts_type(device_class("910B4-1", "Ascend910B4-1")) is accepted
