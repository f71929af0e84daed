# SPDX-License-Identifier: Apache-2.0
"""From slot ids to one container, with kubelet's checkpoint and the pod's statuses as the only witnesses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hami_framework.deviceplugin import identity
from hami_framework.deviceplugin.identity import Entry, Listed, Prepared, Undecided
from hami_framework.errors import FormatError

RESOURCE = "acme.com/xpu"
NOW = 1_800_000_000.0
BOOT = "boot-2"


def stamp(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def row(device_ids: object, uid: str = "u1", container: str = "main") -> dict[str, Any]:
    return {"PodUID": uid, "ContainerName": container, "ResourceName": RESOURCE, "DeviceIDs": device_ids, "AllocResp": "CgA="}


def checkpoint(*rows: dict[str, Any]) -> bytes:
    return json.dumps({"Data": {"PodDeviceEntries": list(rows), "RegisteredDevices": {RESOURCE: ["s1"]}}, "Checksum": 1}).encode()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(checkpoint(row({"-1": ["s1", "s2"]})), id="since 1.20: ids by NUMA node"),
        pytest.param(checkpoint(row({"0": ["s1"], "1": ["s2"], "2": None})), id="since 1.20: several NUMA nodes"),
        pytest.param(checkpoint(row(["s1", "s2"])), id="before 1.20: a list"),
        pytest.param(json.dumps({"PodDeviceEntries": [row(["s2", "s1"])], "RegisteredDevices": {}}).encode(), id="before 1.10: no wrapper"),
        pytest.param(checkpoint(row({"0": ["s1"]}), row({"1": ["s2"]})), id="one container in two entries"),
    ],
)
def test_every_shape_of_the_checkpoint_is_read(data: bytes) -> None:
    assert identity.read_checkpoint(data) == (Entry(pod_uid="u1", container="main", resource=RESOURCE, ids=frozenset({"s1", "s2"})),)


@pytest.mark.parametrize("data", [b'{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":0}', checkpoint()], ids=["null", "empty"])
def test_an_empty_checkpoint_is_fine(data: bytes) -> None:
    assert identity.read_checkpoint(data) == ()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"Data":{}}', checkpoint({"PodUID": "u"}), checkpoint(row(7))])
def test_a_checkpoint_that_cannot_be_understood_is_an_error(data: bytes) -> None:
    with pytest.raises(FormatError, match="kubelet's checkpoint"):
        identity.read_checkpoint(data)


def entries(*held: tuple[str, str, str]) -> tuple[Entry, ...]:
    return tuple(Entry(pod_uid=uid, container=container, resource=RESOURCE, ids=frozenset(ids)) for uid, container, ids in held)


def test_the_owner_holds_exactly_these_ids() -> None:
    known = entries(("u1", "main", "ab"), ("u2", "main", "c"), ("u1", "side", "d"))

    assert identity.owner(known, RESOURCE, frozenset("ab")) == ("u1", ("main",))
    assert identity.owner(known, RESOURCE, frozenset("c")) == ("u2", ("main",))


@pytest.mark.parametrize(
    ("known", "ids"),
    [
        pytest.param(entries(("u1", "main", "ab")), "a", id="a part of somebody's ids"),
        pytest.param(entries(("u1", "main", "a"), ("u1", "side", "b")), "ab", id="ids of two containers"),
        pytest.param((), "a", id="nobody's"),
        pytest.param(entries(("u1", "main", "a"), ("u2", "main", "a")), "a", id="two pods'"),
    ],
)
def test_anything_else_is_undecided(known: tuple[Entry, ...], ids: str) -> None:
    with pytest.raises(Undecided):
        identity.owner(known, RESOURCE, frozenset(ids))


def test_ids_of_another_resource_prove_nothing() -> None:
    with pytest.raises(Undecided):
        identity.owner(entries(("u1", "main", "a")), "other.com/xpu", frozenset("a"))


def listed(pod: str, ids: str) -> Listed:
    return Listed(namespace="ns", pod=pod, container="c", resource=RESOURCE, ids=frozenset(ids))


def test_pod_resources_may_be_silent_but_not_contradict() -> None:
    identity.confirm([], RESOURCE, frozenset("a"), "ns", "web")
    identity.confirm([listed("web", "a"), listed("other", "b")], RESOURCE, frozenset("a"), "ns", "web")
    with pytest.raises(Undecided, match="pod-resources to ns/other"):
        identity.confirm([listed("other", "ab")], RESOURCE, frozenset("a"), "ns", "web")


# -- which of the containers that share a token -------------------------------------------------------------------


def pod(*, init: dict[str, Any] | None = None, app: dict[str, Any] | None = None) -> dict[str, Any]:
    status = {
        "initContainerStatuses": [{"name": "init", **(init or {})}],
        "containerStatuses": [{"name": "main", **(app or {})}],
    }
    return {"spec": {"initContainers": [{"name": "init"}], "containers": [{"name": "main"}]}, "status": status}


def ended(code: int, at: float) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "finishedAt": stamp(at)}}


BOTH_EARLIER_BOOT = {"init": Prepared(at=NOW - 90, boot="boot-1"), "main": Prepared(at=NOW - 80, boot="boot-1")}
RUNNING: dict[str, Any] = {"state": {"running": {"startedAt": stamp(NOW)}}}
WAITING: dict[str, Any] = {"state": {"waiting": {"reason": "PodInitializing"}}}
BEFORE = Prepared(at=NOW - 5.4, boot=BOOT)


@pytest.mark.parametrize(
    ("status", "prepared", "expected"),
    [
        pytest.param({}, {}, "init", id="first call: the first that starts"),
        pytest.param({"state": ended(0, NOW - 1)}, {"init": BEFORE}, "main", id="init ended well after we prepared it"),
        pytest.param({"state": ended(0, NOW - 6)}, {"init": BEFORE}, "main", id="ended in the second of the preparation: Kubernetes counts whole seconds"),
        pytest.param({"state": ended(0, NOW - 60)}, {}, "main", id="no record of ours (state lost): the status decides"),
        pytest.param({"state": ended(1, NOW - 2)}, {"init": BEFORE}, "init", id="init failed since: it starts again"),
        pytest.param({**WAITING, "lastState": ended(1, NOW - 2)}, {"init": BEFORE}, "init", id="in back-off after failing since"),
        pytest.param(WAITING, {"init": Prepared(at=NOW - 20, boot=BOOT)}, "init", id="never started, and the status must be current by now"),
        pytest.param(WAITING, {"init": BEFORE}, None, id="not reported yet: it may have run in between"),
        pytest.param(RUNNING, {"init": BEFORE}, None, id="reported running: its end is not visible yet"),
        pytest.param(RUNNING, {"init": Prepared(at=NOW - 60, boot=BOOT)}, None, id="reported running for long: still no proof of its end"),
        pytest.param({"state": ended(1, NOW - 6)}, {"init": BEFORE}, None, id="a failure that may be the one before the preparation"),
        pytest.param({"state": ended(0, NOW - 60)}, {"init": BEFORE}, None, id="an end from before the preparation proves nothing"),
        pytest.param({"state": ended(0, NOW - 60)}, BOTH_EARLIER_BOOT, "init", id="node rebooted: from the beginning"),
        pytest.param({"state": ended(0, NOW - 1)}, {**BOTH_EARLIER_BOOT, "init": BEFORE}, "main", id="after the reboot, init has run again"),
    ],
)  # fmt: skip
def test_the_container_that_starts_is_told_by_evidence_newer_than_ours(status: dict[str, Any], prepared: dict[str, Prepared], expected: str | None) -> None:
    subject = pod(init=status)
    if expected is None:
        with pytest.raises(Undecided, match="init container 'init' was prepared"):
            identity.starting(subject, ["main", "init"], prepared, now=NOW, boot=BOOT)
    else:
        assert identity.starting(subject, ["main", "init"], prepared, now=NOW, boot=BOOT) == expected


def test_a_token_of_one_container_needs_no_status() -> None:
    assert identity.starting(pod(app=RUNNING), ["main"], {}, now=NOW, boot=BOOT) == "main"


def test_a_container_that_the_pod_does_not_have_is_undecided() -> None:
    with pytest.raises(Undecided, match="'ghost'"):
        identity.starting(pod(), ["ghost"], {}, now=NOW, boot=BOOT)


def test_start_order_is_init_and_sidecars_as_written_then_apps() -> None:
    spec = {"initContainers": [{"name": "i1"}, {"name": "side", "restartPolicy": "Always"}, {"name": "i2"}], "containers": [{"name": "a"}, {"name": "b"}]}

    assert list(identity.start_order({"spec": spec}).items()) == [("i1", "init"), ("side", "sidecar"), ("i2", "init"), ("a", "app"), ("b", "app")]
