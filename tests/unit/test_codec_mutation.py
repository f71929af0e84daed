# SPDX-License-Identifier: Apache-2.0
"""The one mutation at admission: what it adds, what it leaves alone, and the AdmissionReview around it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.mutation import LONGEST_WARNING, apply_patch, mutate_pod, review
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.errors import FormatError
from hami_framework.model import ResourceNames, decode

FAMILIES = decode((Path(__file__).parents[1] / "data" / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog((family.vendor, family.names) for family in FAMILIES)

Limits = dict[str, Any]


def pod(limits: Limits, requests: Limits | None = None, where: str = "containers") -> dict[str, Any]:
    resources = {"limits": limits} | ({} if requests is None else {"requests": requests})
    spec: dict[str, Any] = {"containers": [{"name": "plain"}]}
    spec.setdefault(where, []).append({"name": "main", "resources": resources})
    return {"metadata": {"generateName": "train-"}, "spec": spec}


def limits_after(limits: Limits) -> Limits:
    before = pod(limits)
    after: Limits = apply_patch(before, mutate_pod(before, CATALOG))["spec"]["containers"][1]["resources"]["limits"]
    return after


CHANGED = [
    pytest.param({"nvidia.com/gpumem": 3000}, {"nvidia.com/gpumem": 3000, "nvidia.com/gpu": "1"}, id="count of an amount"),
    pytest.param({"hami.io/memory-mib": 3000}, {"hami.io/memory-mib": 3000, "hami.io/accelerator": "1"}, id="count of a neutral amount"),
    pytest.param({"hygon.com/hcunum": 2, "hygon.com/hcumem": 9}, {"hygon.com/dcunum": 2, "hygon.com/dcumem": 9}, id="aliases"),
    pytest.param({"hygon.com/hcumem": "1k"}, {"hygon.com/dcumem": "1k", "hygon.com/dcunum": "1"}, id="alias and missing count"),
    pytest.param({"huawei.com/Ascend910": 1}, {"huawei.com/Ascend910": "2"}, id="half a module"),
    pytest.param({"huawei.com/Ascend910C": 1}, {"huawei.com/Ascend910": "2"}, id="half a module under an alias"),
    pytest.param(
        {"nvidia.com/gpumem": 1, "hygon.com/dcumem": 2},
        {"nvidia.com/gpumem": 1, "hygon.com/dcumem": 2, "nvidia.com/gpu": "1", "hygon.com/dcunum": "1"},
        id="two vendors",
    ),
]


@pytest.mark.parametrize(("before", "after"), CHANGED)
def test_completes(before: Limits, after: Limits) -> None:
    assert limits_after(before) == after


LEFT_ALONE = [
    pytest.param({}, id="nothing"),
    pytest.param({"cpu": 1, "example.com/fpga": 1}, id="not ours"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000}, id="complete"),
    pytest.param({"nvidia.com/gpu": 1, "hami.io/memory-mib": 3000}, id="an amount beside another family's count is ambiguous"),
    pytest.param({"nvidia.com/mig-1g.5gb": 1}, id="a profile is a count"),
    pytest.param({"nvidia.com/priority": 1}, id="a priority asks for nothing"),
    pytest.param({"huawei.com/Ascend910": 4}, id="two modules"),
    pytest.param({"huawei.com/Ascend910": 0}, id="none"),
    pytest.param({"huawei.com/Ascend910": "half"}, id="nonsense is for the scheduler to refuse"),
    pytest.param({"huawei.com/Ascend910": 1, "huawei.com/Ascend910-memory": 16384}, id="a share of one die is not raised"),
    pytest.param({"hygon.com/hcunum": 1, "hygon.com/dcunum": 1}, id="alias and name at once"),
]


@pytest.mark.parametrize("limits", LEFT_ALONE)
def test_leaves_alone(limits: Limits) -> None:
    assert mutate_pod(pod(limits), CATALOG) == []


@pytest.mark.parametrize(("before", "after"), CHANGED)
def test_its_own_result_is_left_alone_and_readable(before: Limits, after: Limits) -> None:
    once = pod(limits_after(before))
    assert once == pod(after)
    assert mutate_pod(once, CATALOG) == []
    assert read_pod(once, CATALOG).empty is False


@pytest.mark.parametrize(
    ("limits", "requests", "after"),
    [
        pytest.param({"nvidia.com/gpumem": 1}, {"nvidia.com/gpumem": 1}, {"nvidia.com/gpumem": 1, "nvidia.com/gpu": "1"}, id="count beside the amount"),
        pytest.param({"nvidia.com/gpumem": 1}, {"cpu": 1}, {"cpu": 1}, id="requests of something else"),
        pytest.param({"hygon.com/hcunum": 1}, {"hygon.com/hcunum": 1}, {"hygon.com/dcunum": 1}, id="aliases"),
        pytest.param({"nvidia.com/gpu": 2, "nvidia.com/gpumem": 1}, {"nvidia.com/gpumem": 1}, {"nvidia.com/gpumem": 1}, id="the limits have a count"),
        pytest.param({}, {"nvidia.com/gpumem": 1}, {"nvidia.com/gpumem": 1}, id="requests without limits"),
    ],
)
def test_requests_follow_limits(limits: Limits, requests: Limits, after: Limits) -> None:
    before = pod(limits, requests)
    assert apply_patch(before, mutate_pod(before, CATALOG))["spec"]["containers"][1]["resources"]["requests"] == after


def test_patch_is_minimal_and_escaped() -> None:
    before = pod({"hygon.com/hcumem": "2k"}, where="initContainers")
    assert mutate_pod(before, CATALOG) == [
        {"op": "remove", "path": "/spec/initContainers/0/resources/limits/hygon.com~1hcumem"},
        {"op": "add", "path": "/spec/initContainers/0/resources/limits/hygon.com~1dcumem", "value": "2k"},
        {"op": "add", "path": "/spec/initContainers/0/resources/limits/hygon.com~1dcunum", "value": "1"},
    ]
    assert before == pod({"hygon.com/hcumem": "2k"}, where="initContainers"), "the pod that was handed in is not touched"


def admission(pod_json: dict[str, Any], operation: str = "CREATE", kind: str = "Pod") -> dict[str, Any]:
    request = {"uid": "r-1", "kind": {"group": "", "version": "v1", "kind": kind}, "operation": operation, "namespace": "team", "object": pod_json}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def test_review_patches_and_warns() -> None:
    before = pod({"hygon.com/hcumem": "2k"})
    answer = review(admission(before), CATALOG)
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = answer["response"]
    assert (response["uid"], response["allowed"], response["patchType"]) == ("r-1", True, "JSONPatch")
    assert json.loads(base64.b64decode(response["patch"])) == mutate_pod(before, CATALOG)
    assert response["warnings"] == [
        "container main: hygon.com/hcumem is an alias and was rewritten to hygon.com/dcumem",
        "container main: hygon.com/dcunum: 1 was added, because amounts alone do not say how many devices",
    ]


def test_review_says_when_a_count_is_raised() -> None:
    response = review(admission(pod({"huawei.com/Ascend910": 1})), CATALOG)["response"]
    assert response["warnings"] == ["container main: huawei.com/Ascend910 was raised from 1 to 2, the least that can be had"]


@pytest.mark.parametrize(
    "request_review",
    [
        pytest.param(admission(pod({"cpu": 1})), id="not our resources"),
        pytest.param(admission(pod({"nvidia.com/gpumem": 1}), operation="UPDATE"), id="an update"),
        pytest.param(admission({"spec": {}}, kind="Deployment"), id="not a pod"),
    ],
)
def test_review_leaves_others_alone(request_review: dict[str, Any]) -> None:
    assert review(request_review, CATALOG)["response"] == {"uid": "r-1", "allowed": True}


def test_review_warns_of_a_pod_that_will_be_refused() -> None:
    response = review(admission(pod({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 150})), CATALOG)["response"]
    assert response["allowed"] is True
    assert "patch" not in response
    (warning,) = response["warnings"]
    assert warning.startswith("no node will take this pod: container main, nvidia.com/gpucores: 150 is not a percentage from 1 to 100")
    assert len(warning) <= LONGEST_WARNING


@pytest.mark.parametrize(
    "nonsense", [{}, {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {}}, admission({}) | {"request": None}]
)
def test_review_of_nonsense(nonsense: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r"AdmissionReview of admission\.k8s\.io/v1"):
        review(nonsense, CATALOG)


HIDING = ResourceCatalog(
    [
        ("acme", ResourceNames(count="acme.com/xpu", memory="acme.com/mem", hidden_by={"ACME_VISIBLE": "void"})),
        ("zeta", ResourceNames(count="zeta.com/npu", hidden_by={"ZETA_VISIBLE": "none"})),
        ("plain", ResourceNames(count="plain.com/x")),
    ]
)


def environments(*containers: dict[str, Any], init: dict[str, Any] | None = None) -> list[dict[str, str]]:
    """Each container's environment after admission; admission of the result changes nothing."""
    spec: dict[str, Any] = {"containers": [{"name": f"c{number}", **container} for number, container in enumerate(containers)]}
    if init is not None:
        spec["initContainers"] = [{"name": "init", **init}]
    before = {"metadata": {"name": "p"}, "spec": spec}
    after = apply_patch(before, mutate_pod(before, HIDING))
    assert mutate_pod(after, HIDING) == []
    everybody = [*after["spec"].get("initContainers", ()), *after["spec"]["containers"]]
    return [{entry["name"]: entry.get("value", "?") for entry in container.get("env", ())} for container in everybody]


def asking(**limits: int) -> dict[str, Any]:
    names = {"xpu": "acme.com/xpu", "mem": "acme.com/mem", "npu": "zeta.com/npu", "any": "hami.io/accelerator", "x": "plain.com/x"}
    return {"resources": {"limits": {names[key]: value for key, value in limits.items()}}}


def with_env(**values: str) -> dict[str, Any]:
    return {"env": [{"name": name, "value": value} for name, value in values.items()]}


class TestDevicesAreHiddenFromWhoAskedForNone:
    def test_a_pod_without_devices_is_left_alone(self) -> None:
        assert environments({}, with_env(ACME_VISIBLE="all")) == [{}, {"ACME_VISIBLE": "all"}]

    def test_beside_a_container_with_devices(self) -> None:
        assert environments(asking(xpu=1), {}, init={}) == [{"ACME_VISIBLE": "void"}, {}, {"ACME_VISIBLE": "void"}]

    def test_what_the_pod_or_its_author_said_is_replaced_and_the_rest_stays(self) -> None:
        before = {"env": [{"name": "PATH", "value": "/bin"}, {"name": "ACME_VISIBLE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}
        assert environments(asking(xpu=1), before) == [{}, {"PATH": "/bin", "ACME_VISIBLE": "void"}]
        assert environments(asking(xpu=1), with_env(A="1")) == [{}, {"A": "1", "ACME_VISIBLE": "void"}]

    def test_a_container_that_asks_for_one_vendor_does_not_see_the_other(self) -> None:
        assert environments(asking(xpu=1), asking(npu=1)) == [{"ZETA_VISIBLE": "none"}, {"ACME_VISIBLE": "void"}]

    def test_who_may_be_given_any_device_is_told_nothing_and_the_others_see_none(self) -> None:
        assert environments(asking(any=1), {}) == [{}, {"ACME_VISIBLE": "void", "ZETA_VISIBLE": "none"}]

    def test_an_amount_asks_for_a_device_and_a_count_of_zero_for_none(self) -> None:
        assert environments(asking(mem=5), asking(xpu=0)) == [{}, {"ACME_VISIBLE": "void"}]

    def test_a_vendor_that_hides_nothing_adds_nothing(self) -> None:
        assert environments(asking(x=1), {}) == [{}, {}]

    def test_the_author_is_told(self) -> None:
        spec = {"containers": [{"name": "main", **asking(xpu=1)}, {"name": "helper"}]}
        request = {"uid": "1", "kind": {"kind": "Pod"}, "operation": "CREATE", "object": {"metadata": {"name": "p"}, "spec": spec}}
        answer = review({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}, HIDING)["response"]
        assert answer["warnings"] == ["container helper: ACME_VISIBLE=void was set, because it asks for no device of the kind that others of this pod ask for"]
