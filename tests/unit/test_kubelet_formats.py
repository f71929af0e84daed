# SPDX-License-Identifier: Apache-2.0
"""kubelet's small formats: the checkpoint file, resource names, quantities, the rate limit, a container's environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_framework.errors import FormatError
from hami_framework.sandbox.kubelet import checkpoint
from hami_framework.sandbox.kubelet.checkpoint import DeviceRecord
from hami_framework.sandbox.kubelet.environment import pod_environment
from hami_framework.sandbox.kubelet.names import extended_resource_problem, whole_units
from hami_framework.sandbox.kubelet.paths import KubeletPaths
from hami_framework.sandbox.kubelet.podresources import TokenBucket
from hami_framework.sandbox.runtime.container import ContainerError

names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=12)
records = st.builds(
    DeviceRecord,
    pod_uid=names,
    container=names,
    resource=names,
    devices=st.dictionaries(st.integers(-1, 7), st.lists(names, min_size=1, max_size=4).map(tuple), min_size=1, max_size=3),
    response=st.binary(max_size=40),
)


@given(st.lists(records, max_size=5), st.dictionaries(names, st.lists(names, max_size=4), max_size=3))
def test_a_checkpoint_reads_back_as_it_was(written: list[DeviceRecord], registered: dict[str, list[str]]) -> None:
    read = checkpoint.decode(checkpoint.encode(written, registered))
    assert list(read.records) == written
    assert read.registered == {key: tuple(ids) for key, ids in registered.items()}


def test_a_checkpoint_has_the_fields_of_kubelets() -> None:
    record = DeviceRecord(pod_uid="u", container="c", resource="r", devices={-1: ("a", "b")}, response=b"\x01")
    document = json.loads(checkpoint.encode([record], {"r": ["a"]}))
    assert sorted(document) == ["Checksum", "Data"]
    assert document["Data"] == {
        "PodDeviceEntries": [{"PodUID": "u", "ContainerName": "c", "ResourceName": "r", "DeviceIDs": {"-1": ["a", "b"]}, "AllocResp": "AQ=="}],
        "RegisteredDevices": {"r": ["a"]},
    }


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"Data":{}}', b'{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}'], ids=["empty", "list", "bare", "sum"]
)
def test_a_damaged_checkpoint_is_refused(content: bytes) -> None:
    with pytest.raises(FormatError):
        checkpoint.decode(content)


@pytest.mark.parametrize("name", ["example.com/slot", "huawei.com/Ascend910B3", "cambricon.com/mlu.smlu.vmemory", "hami.io/accelerator"])
def test_extended_resources(name: str) -> None:
    assert extended_resource_problem(name) is None


@pytest.mark.parametrize(
    "name", ["cpu", "/slot", "kubernetes.io/x", "node.kubernetes.io/x", "requests.example.com/x", "Example.com/x", "example.com/", "a.b/-x"]
)
def test_names_that_are_no_extended_resources(name: str) -> None:
    assert extended_resource_problem(name)


@pytest.mark.parametrize(("text", "value"), [("3", 3), (2, 2), ("4k", 4000), ("1Ki", 1024), ("500m", 1), ("1.5", 2)])
def test_whole_units(text: str | int, value: int) -> None:
    assert whole_units(text) == value


def test_a_quantity_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        whole_units("many")


def test_the_bucket_gives_its_burst_and_then_its_rate() -> None:
    now = 0.0
    bucket = TokenBucket(100, 10, clock=lambda: now)
    assert [bucket.allow() for _ in range(12)] == [True] * 10 + [False] * 2
    now = 0.025
    assert [bucket.allow() for _ in range(3)] == [True, True, False]
    now = 60.0
    assert sum(bucket.allow() for _ in range(20)) == 10


def test_a_socket_path_too_long_for_the_kernel_is_refused() -> None:
    paths = KubeletPaths(plugin_dir=Path("/tmp") / ("x" * 120), pod_resources_socket=Path("/tmp/p.sock"), cdi_dirs=(), root=Path("/"))
    with pytest.raises(ValueError, match="longer than 107 bytes"):
        paths.prepare()


POD: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "annotations": {"team/x": "blue"}, "labels": {"app": "web"}},
    "spec": {"nodeName": "n1", "containers": []},
}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ({"value": "plain"}, "plain"),
        ({}, ""),
        ({"value": "$(A)/$(NOPE)/$$(A)"}, "base/$(NOPE)/$(A)"),
        ({"valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}, "shop"),
        ({"valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['team/x']"}}}, "blue"),
        ({"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['none']"}}}, ""),
        ({"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}, "n1"),
        ({"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}, ""),
        ({"valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}, "2"),
    ],
)
def test_environment(entry: dict[str, Any], value: str) -> None:
    container = {"env": [{"name": "X", **entry}], "resources": {"limits": {"cpu": "1500m"}}}
    assert pod_environment(POD, container, {"A": "base"}) == {"X": value}


def test_an_optional_reference_is_left_out_and_a_needed_one_is_an_error() -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    assert pod_environment(POD, {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"optional": True}}}]}, {}) == {}
    with pytest.raises(ContainerError, match="secretKeyRef"):
        pod_environment(POD, {"env": [{"name": "X", "valueFrom": source}]}, {})
