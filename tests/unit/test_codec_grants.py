# SPDX-License-Identifier: Apache-2.0
"""The grant annotation: what is written in version 1.0 stays readable, what is unknown is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec import grants
from hami_framework.codec.grants import VERSION, decode_grant, encode_grant
from hami_framework.errors import FormatError
from hami_framework.model import ContainerGrant, Cost, Counter, DeviceGrant, Interval, Limit, Offer, Owner, PodGrant

GOLDEN = (Path(__file__).parents[1] / "golden" / "grant-1.0.json").read_text()


def device(device_id: str, device_name: str, vendor: str, resource: str, offer: Offer, **place: Any) -> DeviceGrant:
    return DeviceGrant(device_id=device_id, device_name=device_name, vendor=vendor, resource=resource, offer=offer, **place)


GPU_0 = ("GPU-11111111-2222-3333-4444-555555555555", "nvidia-gpu-11111111-2222-3333-4444-555555555555-0a1b2c3d", "nvidia")
GPU_1 = ("GPU-99999999-2222-3333-4444-555555555555", "nvidia-gpu-99999999-2222-3333-4444-555555555555-4d5e6f70", "nvidia")
GRANT = PodGrant(
    owner=Owner(kind="pod", uid="7a0c2a46-0d2f-4d8e-9f3b-1f7e4f0d2b11", namespace="team-a", name="train-0"),
    node="node-1",
    revision=2,
    containers=(
        ContainerGrant(
            container="fetch",
            kind="init",
            devices=(
                device(
                    *GPU_0,
                    "nvidia.com/gpu",
                    Offer(
                        mode="whole",
                        exclusive=True,
                        cost=Cost(memory_bytes=42949672960, core_percent=100, shares=10),
                        limit=Limit(memory_bytes=42949672960, core_percent=100),
                    ),
                ),
            ),
        ),
        ContainerGrant(container="log-shipper", kind="sidecar"),
        ContainerGrant(
            container="train",
            devices=(
                device(
                    *GPU_0,
                    "nvidia.com/gpu",
                    Offer(
                        mode="share",
                        cost=Cost(memory_bytes=3145728000, core_percent=30),
                        limit=Limit(memory_bytes=3145728000, core_percent=30),
                        guaranteed=Limit(memory_bytes=1048576000),
                    ),
                ),
                device(
                    *GPU_1,
                    "nvidia.com/mig-3g.20gb",
                    Offer(
                        mode="mig",
                        profile="3g.20gb",
                        cost=Cost(memory_bytes=20937965568, core_percent=42, interval=Interval(size=4, starts=(0, 4))),
                        limit=Limit(memory_bytes=20937965568, core_percent=42),
                    ),
                    start=4,
                ),
                device(
                    "185011D4-21104518-A0C4ED94-14CC040A-56102003",
                    "ascend-npu-0",
                    "ascend",
                    "huawei.com/Ascend910B3",
                    Offer(
                        mode="vnpu",
                        profile="vir05_1c_16g",
                        cost=Cost(memory_bytes=17179869184, core_percent=25, counters=(Counter(name="aicore", amount=5), Counter(name="aicpu", amount=1))),
                        limit=Limit(memory_bytes=17179869184),
                    ),
                ),
                device(
                    "TPXS320016070601",
                    "hygon-tpxs320016070601",
                    "hygon",
                    "hygon.com/dcunum",
                    Offer(mode="vdcu", cost=Cost(memory_bytes=2097152000, core_percent=50, units=60), limit=Limit(memory_bytes=2097152000, core_percent=50)),
                    units="0xfffffffffffffff",
                ),
            ),
        ),
    ),
)


def test_version_1_0_is_read_as_it_was_meant() -> None:
    assert decode_grant(GOLDEN) == GRANT


def test_version_1_0_is_written_as_it_was() -> None:
    assert json.loads(encode_grant(GRANT)) == json.loads(GOLDEN)


def test_equal_grants_are_equal_texts() -> None:
    assert encode_grant(decode_grant(GOLDEN)) == encode_grant(GRANT)
    assert "\n" not in encode_grant(GRANT)


def changed(**fields: Any) -> str:
    document = json.loads(GOLDEN)
    document.update(fields)
    return json.dumps({key: value for key, value in document.items() if value is not None})


def test_a_newer_minor_version_is_read_and_its_additions_are_ignored() -> None:
    assert decode_grant(changed(version="1.7", colour="blue")) == GRANT


REFUSED = [
    pytest.param(changed(version="2.0"), r"version 2\.0, but this program reads 1\.x only", id="a major version of the future"),
    pytest.param(changed(version="0.9"), r"version 0\.9, but this program reads 1\.x only", id="a major version that never was"),
    pytest.param(changed(version=None), r"no version this program understands: None", id="no version"),
    pytest.param(changed(version=1.0), r"no version this program understands: 1\.0", id="a version that is a number"),
    pytest.param(changed(version="one"), r"no version this program understands: 'one'", id="a version in words"),
    pytest.param(changed(node=7), r"\$\.node", id="a field of the wrong type, named"),
    pytest.param(changed(owner=None), r"missing required field `owner`", id="a field that is missing, named"),
    pytest.param(GOLDEN[:-20], "cannot be read", id="cut off"),
    pytest.param("[]", "cannot be read", id="not an object"),
    pytest.param("", "cannot be read", id="empty"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        decode_grant(text)
    assert grants.GRANT_ANNOTATION in str(caught.value)


def test_the_previous_major_version_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_version_0(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "node": fields["host"]}

    monkeypatch.setattr(grants, "_UPGRADES", {0: from_version_0})
    assert decode_grant(changed(version="0.3", host="node-1", node=None)) == GRANT
    with pytest.raises(FormatError, match=r"reads 0\.x, 1\.x only"):
        decode_grant(changed(version="2.0"))


def test_the_schema_has_a_version_of_its_own() -> None:
    assert VERSION == "1.0"
