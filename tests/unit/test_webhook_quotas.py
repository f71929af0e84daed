# SPDX-License-Identifier: Apache-2.0
"""HAMi's meaning of a quota over our resources: number × amount, what is granted before what is asked, and the words with figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.pods import read_pod
from hami_framework.codec.quotas import Bound, asked, bounds, granted, overstepped, total
from hami_framework.codec.resources import Family, ResourceCatalog, Role
from hami_framework.model import GIB, MIB, ContainerGrant, DeviceGrant, Owner, PodGrant, decode, share

FAMILIES = decode((Path(__file__).parents[1] / "data" / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog((family.vendor, family.names) for family in FAMILIES)
GPU, MEMORY, CORES = "nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpucores"


def quota(hard: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": hard, **spec}}


READ = [
    pytest.param({f"limits.{MEMORY}": "20000"}, (MEMORY, Role.MEMORY, 20000 * MIB), id="memory in its unit"),
    pytest.param({f"limits.{MEMORY}": "20Gi"}, (MEMORY, Role.MEMORY, 20 * GIB), id="memory in bytes"),
    pytest.param({f"limits.{MEMORY}": "0"}, (MEMORY, Role.MEMORY, 0), id="none at all"),
    pytest.param({f"limits.{CORES}": "350"}, (CORES, Role.CORES, 350), id="compute beyond one device"),
    pytest.param({f"limits.{GPU}": 4}, (GPU, Role.COUNT, 4), id="devices"),
]


@pytest.mark.parametrize(("hard", "expected"), READ)
def test_lines_are_read(hard: dict[str, Any], expected: tuple[str, Role, int]) -> None:
    [bound] = bounds([quota(hard)], CATALOG)
    assert (bound.resource, bound.role, bound.most) == expected


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(quota({f"requests.{GPU}": 4}), id="Kubernetes' own"),
        pytest.param(quota({"limits.cpu": 4, "pods": 3}), id="not ours"),
        pytest.param(quota({f"limits.{MEMORY}": "many"}), id="no quantity"),
        pytest.param(quota({f"limits.{MEMORY}": 5}, scopes=["Terminating"]), id="with a scope"),
    ],
)
def test_other_lines_are_left_to_the_api_server(document: dict[str, Any]) -> None:
    assert bounds([document], CATALOG) == ()


def request(*containers: dict[str, Any], init: tuple[dict[str, Any], ...] = ()) -> dict[str, int]:
    spec = {
        "containers": [{"name": f"c{number}", "resources": {"limits": limits}} for number, limits in enumerate(containers)],
        "initContainers": [{"name": f"i{number}", **entry} for number, entry in enumerate(init)],
    }
    return dict(asked(read_pod({"metadata": {"name": "p"}, "spec": spec}, CATALOG), CATALOG))


ASKED = [
    pytest.param(({GPU: 2, MEMORY: 4000},), {GPU: 2, MEMORY: 8000 * MIB}, id="memory counts for each device"),
    pytest.param(({GPU: 2, MEMORY: 1000, CORES: 30},), {GPU: 2, MEMORY: 2000 * MIB, CORES: 60}, id="compute too"),
    pytest.param(({GPU: 1, MEMORY: 1000}, {GPU: 1, MEMORY: 500}), {GPU: 2, MEMORY: 1500 * MIB}, id="containers add up"),
    pytest.param(({GPU: 1, "nvidia.com/gpumem-percentage": 50},), {GPU: 1}, id="a percentage has no bytes yet"),
    pytest.param(({"cpu": 1},), {}, id="not ours"),
]


@pytest.mark.parametrize(("containers", "expected"), ASKED)
def test_what_a_pod_counts_for(containers: tuple[dict[str, Any], ...], expected: dict[str, int]) -> None:
    assert request(*containers) == expected


def test_init_containers_hold_theirs_before_the_others() -> None:
    init = ({"resources": {"limits": {GPU: 1, MEMORY: 3000}}},)
    assert request({GPU: 1, MEMORY: 1000}, init=init) == {GPU: 1, MEMORY: 3000 * MIB}
    sidecar = ({"restartPolicy": "Always", "resources": {"limits": {GPU: 1, MEMORY: 3000}}},)
    assert request({GPU: 1, MEMORY: 1000}, init=sidecar) == {GPU: 2, MEMORY: 4000 * MIB}


def test_a_grant_has_the_numbers_that_a_request_has_not() -> None:
    device = DeviceGrant(device_id="d", device_name="n", vendor="nvidia", resource=GPU, offer=share(40 * GIB, 25))
    grant = PodGrant(owner=Owner(kind="pod", uid="u"), node="n", containers=(ContainerGrant(container="c", devices=(device, device)),))
    assert granted(grant, CATALOG) == {GPU: 2, MEMORY: 80 * GIB, CORES: 50}


LIMIT = Bound(quota="q", resource=MEMORY, role=Role.MEMORY, most=20 * GIB)


@pytest.mark.parametrize(
    ("used", "wanted", "told"),
    [
        pytest.param(12 * GIB, 8 * GIB, None, id="exactly full"),
        pytest.param(12 * GIB, 8 * GIB + 1, "12.0 GiB of 20.0 GiB are taken", id="one too many"),
        pytest.param(30 * GIB, 0, None, id="asks for none of it"),
    ],
)
def test_what_is_overstepped(used: int, wanted: int, told: str | None) -> None:
    found = overstepped([LIMIT], {MEMORY: used}, {MEMORY: wanted})
    assert bool(found) == (told is not None)
    if told:
        assert told in found[0]
        assert "quota q: limits.nvidia.com/gpumem" in found[0]


def test_sums() -> None:
    assert total([{"a": 1}, {"a": 2, "b": 1}, {}]) == {"a": 3, "b": 1}
