# SPDX-License-Identifier: Apache-2.0
"""The manifests that HAMi's users have run on a real cluster as they are: image and command are ours, all else is theirs.

The ways of asking are those of `tests/data/hami-examples`; what each must come to stands here, so that a manifest that is
accepted and given something else is noticed too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.harness.cluster import Cluster, started
from e2e.harness.pods import with_probe

Json = dict[str, Any]
EXAMPLES = Path(__file__).parents[2] / "tests" / "data" / "hami-examples"
WHOLE = 0
FIRST, SECOND = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-aaaaaaaa-0000-0000-0000-000000000002"


@dataclass(frozen=True)
class Given:
    """What each device of the container must come to. `memory_mib`: WHOLE for the whole device; `devices`: which ones may be it, () for any."""

    count: int
    memory_mib: int
    core_percent: int | None = None
    devices: tuple[str, ...] = ()
    not_devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """The reason's code in the event, for what this version does not do."""

    code: str


WHOLES = Given(2, WHOLE, 100)
EXPECTED: dict[str, Given | Refused] = {
    "nvidia: default-use": Given(1, 3000, 30),
    "nvidia: whole-devices": WHOLES,
    "nvidia: dynamic-mig": Refused("mode-unsupported"),
    "nvidia: dynamic-mig-with-a-preference": Refused("mode-unsupported"),
    "nvidia: mig-profile": Refused("mode-unsupported"),
    "nvidia: deployment": Given(1, 3000),
    "nvidia: not-these-types": WHOLES,
    "nvidia: these-types": WHOLES,
    "nvidia: policies": Given(1, WHOLE, 100),
    "nvidia: not-these-devices": Given(2, WHOLE, 100, not_devices=(FIRST,)),
    "nvidia: these-devices": Given(1, WHOLE, 100, devices=(FIRST, SECOND)),
    "nvidia: exclusive": WHOLES,
    "nvidia: memory-fraction": Given(2, 20480, 30),
    "nvidia: text-quantities": Given(1, 1024, 30),
    "nvidia: limits-and-requests": Given(2, 12288, 30),
    "ascend: share-of-310p": Given(1, 3072, 12),
    "ascend: share-of-910a": Given(1, 2184, 6),
    "ascend: share-of-910b2": Given(1, 8192, 12),
    "ascend: share-of-910b3": Given(1, 16384, 25),
    "ascend: share-of-910b4": Given(1, 8192, 25),
    "ascend: share-of-910c": Given(1, 16384, 25),
    "ascend: soft-split": Given(1, 28672, 40),
    "cambricon: whole-device": Given(1, WHOLE, 100),
    "cambricon: default-use": Given(1, 5120, 10),
    "cambricon: current-names": Given(1, 5120, 10),
    "hygon: default-use": Given(1, 2000, 60),
    "hygon: not-this-type": Refused("type"),
    "hygon: this-type": Given(1, 2000, 60),
    "hygon: not-these-devices": Given(1, 2000, 60, not_devices=("DCU-AAAA000000000001", "DCU-AAAA000000000002")),
    "hygon: this-device": Given(1, 2000, 60, devices=("DCU-AAAA000000000001",)),
    "hygon: exclusive": Given(2, WHOLE, 100),
    "hygon: newer-names": Given(1, 2000, 60),
}
NEED_ADMISSION = {"ascend: share-of-910c", "hygon: newer-names"}
"""These count devices by a second name, which no node offers: without our webhook they wait, and the event has the remedy."""
SMALLER_MACHINE = {"nvidia: limits-and-requests": {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}}}
"""It asks for 2 processors and 4 GiB beside the devices, more than a lab may have free; these amounts are made smaller."""


def published() -> Iterator[Any]:
    """Every document of the examples, by file and name."""
    for file in sorted(EXAMPLES.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            name = f"{file.stem}: {document['metadata']['name']}"
            yield pytest.param(name, document, id=name)


def test_every_published_manifest_has_an_expectation() -> None:
    assert {param.id for param in published()} == EXPECTED.keys()


@pytest.mark.parametrize(("name", "manifest"), list(published()))
def test_published_manifest_runs_unmodified(cluster: Cluster, name: str, manifest: Json) -> None:
    cluster.create(smaller(name, with_probe(manifest)))
    cluster.until("its pod to be made", lambda: bool(cluster.pods()), 20)
    pod = cluster.pods()[0]["metadata"]["name"]
    expected = EXPECTED[name]
    if isinstance(expected, Refused):
        assert expected.code in cluster.event(pod, "FailedScheduling")
        return
    if name in NEED_ADMISSION and cluster.installed.webhook is None:
        assert "webhook has not rewritten it; write " in cluster.event(pod, "InvalidDeviceRequest")
        return
    cluster.running(pod)
    assert started(cluster.pod(pod))
    inside = cluster.inside(pod)
    assert inside.status == "MATCH", inside.problems
    ids = [device["id"] for device in inside.devices]
    assert len(set(ids)) == expected.count
    assert not expected.devices or set(ids) <= set(expected.devices)
    assert set(ids).isdisjoint(expected.not_devices)
    assert inside.core_percent == [expected.core_percent] * expected.count
    if expected.memory_mib == WHOLE:
        assert {device["mode"] for device in inside.devices} == {"whole"}
    else:
        assert inside.memory_mib == [expected.memory_mib] * expected.count


def smaller(name: str, manifest: Json) -> Json:
    """The manifest with less of what the lab has little of."""
    if name in SMALLER_MACHINE:
        for container in manifest["spec"]["template"]["spec"]["containers"]:
            for section, amounts in SMALLER_MACHINE[name].items():
                container["resources"][section].update(amounts)
    return manifest
