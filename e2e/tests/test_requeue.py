# SPDX-License-Identifier: Apache-2.0
"""A freed device reaches the pod that waits for it within a second or its backoff, not after kube-scheduler's five minutes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec
import pytest

from e2e.harness.fake_cluster import FakeCluster, fake_cluster
from hami_framework.kube.client import path
from hami_framework.model import Health, Inventory

pytestmark = pytest.mark.timeout(300)

NODE = "fake-00000"
BACKOFF_SECONDS = 10.0
"""kube-scheduler's longest (`podMaxBackoffSeconds`): a pod that waits longer than this is tried at once."""


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[FakeCluster]:
    with fake_cluster(f"requeue-{os.getpid()}", nodes=1, devices=1, kubernetes=os.environ.get("HAMI_E2E_KUBERNETES")) as made:
        yield made


@pytest.fixture
def cluster(running_cluster: FakeCluster) -> Iterator[FakeCluster]:
    yield running_cluster
    running_cluster.clear()


def unhealthy(inventory: Inventory) -> Inventory:
    device = msgspec.structs.replace(inventory.devices[0], health=Health(state="unhealthy", reason="test"))
    return msgspec.structs.replace(inventory, devices=(device,))


def healthy(inventory: Inventory) -> Inventory:
    return msgspec.structs.replace(inventory, devices=(msgspec.structs.replace(inventory.devices[0], health=Health()),))


def test_a_pod_ends_and_the_one_that_waits_is_bound(cluster: FakeCluster) -> None:
    cluster.create("first")
    cluster.bound("first")
    cluster.create("second")
    cluster.refused("second")
    time.sleep(BACKOFF_SECONDS)
    cluster.delete("first")
    took = cluster.bound("second")
    print(f"pod gone -> bound: {took:.2f} s")
    assert took < 1.5


def test_a_device_is_well_again_which_kube_scheduler_cannot_see(cluster: FakeCluster) -> None:
    cluster.change_inventory(NODE, unhealthy)
    cluster.create("waits")
    cluster.refused("waits")
    time.sleep(BACKOFF_SECONDS)
    cluster.change_inventory(NODE, healthy)
    took = cluster.bound("waits")
    print(f"device healthy -> bound: {took:.2f} s")
    assert took < 1.5


def test_after_a_restart_the_extender_knows_who_waits(cluster: FakeCluster) -> None:
    cluster.change_inventory(NODE, unhealthy)
    cluster.create("waits")
    cluster.refused("waits")
    cluster.until("the event", lambda: cluster.events("waits", "DevicesUnavailable"))
    cluster.extender.kill()
    cluster.extender.start()
    time.sleep(2.0)
    cluster.change_inventory(NODE, healthy)
    took = cluster.bound("waits", 15.0)
    print(f"device healthy after a restart -> bound: {took:.2f} s")
    assert len(cluster.events("waits", "DevicesUnavailable")) == 1


def test_as_many_are_told_as_fit(cluster: FakeCluster) -> None:
    cluster.change_inventory(NODE, unhealthy)
    names = [f"waits-{number}" for number in range(6)]
    for name in names:
        cluster.create(name, 30_000)
    for name in names:
        cluster.refused(name)
    cluster.change_inventory(NODE, healthy)
    cluster.until("two to be bound", lambda: sum(bool(cluster.node_of(name)) for name in names) == 2)
    time.sleep(2.0)
    pods = cluster.client.list(path("pods", namespace="default"))["items"]
    told = [pod for pod in pods if any(condition["type"] == "hami.io/DevicesFree" for condition in pod["status"].get("conditions") or ())]
    assert 1 <= len(told) <= 2
