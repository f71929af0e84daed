# SPDX-License-Identifier: Apache-2.0
"""What pods ask for: resources and containers → `PodRequest`, and every wrong wish → its code and what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.errors import FormatError, InvalidRequest
from hami_framework.model import GIB, MIB, ContainerRequest, DeviceRequest, PodRequest, Reason, Rejection, decode

FAMILIES = decode((Path(__file__).parents[1] / "data" / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog((family.vendor, family.names) for family in FAMILIES)


Json = dict[str, Any]


def container(limits: Json, name: str = "main", requests: Json | None = None, **more: Any) -> Json:
    return {"name": name, "resources": {"limits": limits, "requests": requests}, **more}


def pod(*containers: Json, init: tuple[Json, ...] = (), annotations: Json | None = None) -> Json:
    return {
        "metadata": {"uid": "u-1", "namespace": "team", "name": "train", "annotations": annotations},
        "spec": {"initContainers": list(init), "containers": list(containers), "priority": 7},
    }


def one(limits: Json) -> DeviceRequest:
    """The single request of a pod of one container with these limits."""
    request = read_pod(pod(container(limits)), CATALOG)
    (asked,) = request.containers[0].requests
    return asked.request


def refused(limits: Json, requests: Json | None = None) -> tuple[Rejection, ...]:
    with pytest.raises(InvalidRequest) as caught:
        read_pod(pod(container(limits, requests=requests)), CATALOG)
    return caught.value.rejections


AMOUNTS = [
    pytest.param({"nvidia.com/gpu": 1}, DeviceRequest(count=1), id="a count alone is a whole device"),
    pytest.param(
        {"nvidia.com/gpu": "2", "nvidia.com/gpumem": "3000"},
        DeviceRequest(count=2, memory_bytes=3000 * MIB),
        id="memory is per device, without a compute limit",
    ),
    pytest.param({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4k"}, DeviceRequest(memory_bytes=4000 * MIB), id="as the API server rewrites 4000"),
    pytest.param({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3Gi"}, DeviceRequest(memory_bytes=3 * GIB), id="Gi on a memory resource is bytes"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 30}, DeviceRequest(core_percent=30), id="cores without memory"),
    pytest.param(
        {"nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 50, "nvidia.com/gpucores": 30},
        DeviceRequest(memory_percent=50, core_percent=30),
        id="percentages",
    ),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 100}, DeviceRequest(), id="all cores and so all memory is a whole device"),
    pytest.param(
        {"nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 100, "nvidia.com/gpucores": 100}, DeviceRequest(), id="all of everything is a whole device"
    ),
    pytest.param(
        {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1, "nvidia.com/gpucores": 100},
        DeviceRequest(memory_bytes=MIB, core_percent=100),
        id="all cores of little memory",
    ),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/priority": 0}, DeviceRequest(priority=0), id="priority, highest"),
    pytest.param({"nvidia.com/mig-3g.20gb": 2}, DeviceRequest(count=2, profile="3g.20gb"), id="a profile resource is itself the count"),
    pytest.param({"cambricon.com/vmlu": 1, "cambricon.com/mlu.smlu.vmemory": 20}, DeviceRequest(memory_bytes=5 * GIB), id="256 MiB units"),
    pytest.param(
        {"cambricon.com/vmlu": 1, "cambricon.com/mlu370.smlu.vmemory": 20}, DeviceRequest(memory_bytes=5 * GIB), id="an amount's alias needs no rewriting"
    ),
    pytest.param({"hami.io/accelerator": 1, "hami.io/memory-mib": 8000}, DeviceRequest(memory_bytes=8000 * MIB), id="neutral"),
    pytest.param({"hami.io/accelerator": 1, "hami.io/memory-percent": 25}, DeviceRequest(memory_percent=25), id="neutral percentage"),
    pytest.param({"huawei.com/Ascend910": 2}, DeviceRequest(count=2), id="both dies of a module"),
    pytest.param({"huawei.com/Ascend910": 1, "huawei.com/Ascend910-memory": 16384}, DeviceRequest(memory_bytes=16 * GIB), id="a share of one die"),
]


@pytest.mark.parametrize(("limits", "expected"), AMOUNTS)
def test_amounts(limits: dict[str, Any], expected: DeviceRequest) -> None:
    assert one(limits) == expected


BAD = [
    pytest.param({"nvidia.com/gpumem": 3000}, Reason.COUNT_MISSING, "add nvidia.com/gpu: 1", id="amount without a count"),
    pytest.param({"hami.io/memory-mib": 3000}, Reason.COUNT_MISSING, "add hami.io/accelerator: 1", id="neutral amount without a count"),
    pytest.param({"nvidia.com/priority": 1}, Reason.COUNT_MISSING, "add nvidia.com/gpu: 1", id="priority of nothing"),
    pytest.param({"hygon.com/hcunum": 1}, Reason.COUNT_MISSING, "write hygon.com/dcunum: 1", id="a count's alias that admission has not rewritten"),
    pytest.param(
        {"nvidia.com/gpu": 1, "hami.io/memory-mib": 3000},
        Reason.COUNT_MISSING,
        "write the amount in the names that go with nvidia.com/gpu",
        id="neutral amount beside a vendor's count",
    ),
    pytest.param({"nvidia.com/gpu": "500m"}, Reason.COUNT_INVALID, "write a whole number of devices", id="half a device"),
    pytest.param({"nvidia.com/gpu": "-1"}, Reason.COUNT_INVALID, "write a whole number of devices", id="negative count"),
    pytest.param({"nvidia.com/gpu": "many"}, Reason.COUNT_INVALID, "write a whole number of devices", id="count in words"),
    pytest.param({"nvidia.com/gpu": 0, "nvidia.com/gpumem": 300}, Reason.COUNT_INVALID, "write nvidia.com/gpu: 1", id="amounts of no device"),
    pytest.param({"nvidia.com/mig-3g.20gb": "0.5"}, Reason.COUNT_INVALID, "whole number of partitions", id="half a partition"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpumem": "500m"}, Reason.QUANTITY_INVALID, "bytes as Mi or Gi", id="half a MiB"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpumem": "3GB"}, Reason.QUANTITY_INVALID, "bytes as Mi or Gi", id="not Kubernetes' spelling"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 0}, Reason.QUANTITY_INVALID, "leave it out", id="no memory"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 101}, Reason.PERCENT_INVALID, "1 to 100", id="more than all memory"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 120}, Reason.PERCENT_INVALID, "1 to 100", id="more than all cores"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 0}, Reason.PERCENT_INVALID, "no compute limit", id="no cores"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpucores": "33.3"}, Reason.PERCENT_INVALID, "whole percentage", id="a broken percentage"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/priority": "-1"}, Reason.QUANTITY_INVALID, "highest priority", id="negative priority"),
    pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1, "nvidia.com/gpumem-percentage": 1}, Reason.REQUEST_CONFLICT, "keep one", id="memory twice"),
    pytest.param({"nvidia.com/mig-3g.20gb": 1, "nvidia.com/gpumem": 3000}, Reason.REQUEST_CONFLICT, "leave nvidia.com/gpumem out", id="profile and amount"),
    pytest.param(
        {"cambricon.com/vmlu": 1, "cambricon.com/mlu.smlu.vcore": 10, "cambricon.com/mlu370.smlu.vcore": 10},
        Reason.REQUEST_CONFLICT,
        "keep cambricon.com/mlu.smlu.vcore only",
        id="alias and name at once",
    ),
    pytest.param({"huawei.com/Ascend910C": 1}, Reason.COUNT_MISSING, "write huawei.com/Ascend910: 2", id="half a module under an alias"),
    pytest.param({"huawei.com/Ascend910": 1}, Reason.COUNT_NOT_ALLOWED, "write huawei.com/Ascend910: 2", id="half a module"),
]


@pytest.mark.parametrize(("limits", "reason", "hint"), BAD)
def test_wrong_wishes(limits: dict[str, Any], reason: Reason, hint: str) -> None:
    (rejection,) = refused(limits)
    assert rejection.reason is reason
    assert hint in (rejection.hint or "")
    assert rejection.container == "main"
    assert rejection.resource in limits


@pytest.mark.parametrize(
    ("limits", "requests", "reason"),
    [
        pytest.param({}, {"nvidia.com/gpu": 1}, Reason.COUNT_MISSING, id="count under requests only"),
        pytest.param({"nvidia.com/gpu": 1}, {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000}, Reason.REQUEST_CONFLICT, id="amount under requests only"),
        pytest.param({"nvidia.com/gpu": 2}, {"nvidia.com/gpu": 1}, Reason.REQUEST_CONFLICT, id="request below limit"),
    ],
)
def test_requests_need_equal_limits(limits: dict[str, Any], requests: dict[str, Any], reason: Reason) -> None:
    (rejection,) = refused(limits, requests)
    assert rejection.reason is reason


def test_requests_that_equal_limits_are_welcome_however_they_are_spelled() -> None:
    limits = {"nvidia.com/gpu": 1, "nvidia.com/gpumem": "4000"}
    request = read_pod(pod(container(limits, requests={"nvidia.com/gpu": "1", "nvidia.com/gpumem": "4k", "cpu": "100m"})), CATALOG)
    assert request.containers[0].requests[0].request.memory_bytes == 4000 * MIB


def test_everything_wrong_is_said_at_once() -> None:
    first = container({"nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 120, "nvidia.com/gpucores": 120}, "first")
    second = container({"hygon.com/dcumem": 2000}, "second")
    with pytest.raises(InvalidRequest) as caught:
        read_pod(pod(first, second, annotations={"hami.io/gpu-scheduler-policy": "tidy"}), CATALOG)
    found = [(rejection.container, rejection.reason) for rejection in caught.value.rejections]
    assert found == [
        ("first", Reason.PERCENT_INVALID),
        ("first", Reason.PERCENT_INVALID),
        ("second", Reason.COUNT_MISSING),
        (None, Reason.POLICY_UNKNOWN),
    ]


def test_identity_priority_and_order_of_containers() -> None:
    log_shipper = container({"hygon.com/dcunum": 1, "hygon.com/dcumem": 100}, "logs", restartPolicy="Always")
    request = read_pod(pod(container({"nvidia.com/gpu": 1}, "app"), container({}, "web"), init=(container({}, "fetch"), log_shipper)), CATALOG)
    assert (request.uid, request.namespace, request.name, request.priority) == ("u-1", "team", "train", 7)
    assert [(c.name, c.kind, len(c.requests)) for c in request.containers] == [
        ("fetch", "init", 0),
        ("logs", "sidecar", 1),
        ("app", "app", 1),
        ("web", "app", 0),
    ]
    assert request.phases() == ((0,), (1, 2, 3))


def test_several_vendors_and_profiles_in_one_container() -> None:
    limits = {"nvidia.com/gpu": 1, "nvidia.com/mig-1g.5gb": 2, "huawei.com/Ascend910B3": 1, "huawei.com/Ascend910B3-memory": 16384}
    (main,) = read_pod(pod(container(limits)), CATALOG).containers
    asked = {request.resource: (request.selector.vendors, request.selector.resource_types, request.request) for request in main.requests}
    assert asked == {
        "nvidia.com/gpu": (("nvidia",), (), DeviceRequest()),
        "nvidia.com/mig-1g.5gb": (("nvidia",), (), DeviceRequest(count=2, profile="1g.5gb")),
        "huawei.com/Ascend910B3": (("ascend",), ("910B3",), DeviceRequest(memory_bytes=16 * GIB)),
    }


EMPTY = [
    pytest.param({}, id="nothing at all"),
    pytest.param({"cpu": "500m", "memory": "1Gi"}, id="Kubernetes' own resources"),
    pytest.param({"nvidia.com/gpu-memory-of-someone-else": "lots"}, id="a name under a known domain that nobody declares"),
    pytest.param({"nvidia.com/gpu": 0}, id="a count of 0 asks for nothing, as in Kubernetes"),
]


@pytest.mark.parametrize("limits", EMPTY)
def test_pods_that_ask_for_nothing_of_ours(limits: dict[str, Any]) -> None:
    request = read_pod(pod(container(limits), annotations={"hami.io/node-scheduler-policy": "whatever"}), CATALOG)
    assert request.empty


def test_a_bare_pod() -> None:
    assert read_pod({"spec": {"containers": [{"name": "main"}]}}, CATALOG) == PodRequest(
        uid="", namespace="default", name="", containers=(ContainerRequest(name="main"),)
    )


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"spec": []}, "spec is not an object but list"),
        ({"spec": {"containers": ["main"]}}, "/spec/containers/0 is not an object but str"),
        ({"spec": {"containers": [{"resources": 3}]}}, "/spec/containers/0: resources is not an object but int"),
    ],
)
def test_what_is_no_pod(broken: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read_pod(broken, CATALOG)
