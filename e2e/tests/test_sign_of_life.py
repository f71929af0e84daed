# SPDX-License-Identifier: Apache-2.0
"""A node whose agent stops or falls silent takes nothing new, and is used again as soon as it is heard; one among thousands that has room is found."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest

from e2e.harness.fake_cluster import FakeCluster, fake_cluster
from hami_framework.kube.client import path
from hami_framework.model import GIB, Inventory

pytestmark = pytest.mark.timeout(300)

NODE = "fake-00000"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def too_small(inventory: Inventory) -> Inventory:
    """One device of 8 GiB: there is one, and no room for the pods of these tests."""
    (device, *_), replace = inventory.devices, msgspec.structs.replace
    capacity = replace(device.device_class.capacity, memory_bytes=8 * GIB)
    return replace(inventory, devices=(replace(device, links=(), device_class=replace(device.device_class, capacity=capacity)),))


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[FakeCluster]:
    with fake_cluster(f"sign-{os.getpid()}", nodes=1, devices=1, kubernetes=os.environ.get("HAMI_E2E_KUBERNETES")) as made:
        yield made


@pytest.fixture
def cluster(running_cluster: FakeCluster) -> Iterator[FakeCluster]:
    yield running_cluster
    running_cluster.lease(NODE, holderIdentity=NODE, renewTime=now(), leaseDurationSeconds=604_800)
    running_cluster.clear()


def test_an_agent_that_stops_says_so_and_is_back_at_once(cluster: FakeCluster) -> None:
    cluster.lease(NODE, holderIdentity="", renewTime=now())
    time.sleep(0.5)
    cluster.create("waits")
    cluster.refused("waits")
    cluster.until("its event", lambda: cluster.events("waits", "DevicesUnavailable"))
    assert "node-silent" in cluster.events("waits", "DevicesUnavailable")[0]
    cluster.lease(NODE, holderIdentity=NODE, renewTime=now())
    took = cluster.bound("waits", 5.0)
    print(f"heard again -> bound: {took:.2f} s")


def test_an_agent_that_falls_silent_is_noticed_when_its_sign_runs_out(cluster: FakeCluster) -> None:
    cluster.lease(NODE, holderIdentity=NODE, renewTime=now(), leaseDurationSeconds=3)
    time.sleep(6.0)
    cluster.create("waits")
    cluster.refused("waits")
    cluster.lease(NODE, holderIdentity=NODE, renewTime=now(), leaseDurationSeconds=604_800)
    cluster.bound("waits", 5.0)


def test_a_node_without_a_sign_is_judged_by_its_inventory(cluster: FakeCluster) -> None:
    cluster.client.delete(path("leases", group="coordination.k8s.io", namespace="hami-system", name=f"node-{NODE}"))
    cluster.create("goes")
    cluster.bound("goes")
    cluster.client.create(
        path("leases", group="coordination.k8s.io", namespace="hami-system"),
        {"metadata": {"name": f"node-{NODE}", "labels": {"hami.io/sign-of-life": "true"}}, "spec": {"holderIdentity": NODE, "renewTime": now()}},
    )


def test_one_node_of_2000_has_room_and_is_found_at_the_first_attempt() -> None:
    only = "fake-01234"
    with fake_cluster(f"many-{os.getpid()}", nodes=0, devices=0, kubernetes=os.environ.get("HAMI_E2E_KUBERNETES")) as cluster:
        began = time.monotonic()
        cluster.fakes.create(2000, change=lambda inventory: inventory if inventory.node == only else too_small(inventory))
        print(f"2,000 nodes in {time.monotonic() - began:.0f} s")
        time.sleep(3.0)  # kube-scheduler and the extender have read the last of them
        cluster.create("goes")
        print(f"created -> bound among 2,000 nodes: {cluster.bound('goes', 10.0):.2f} s")
        assert cluster.node_of("goes") == only
        assert cluster.events("goes", "FailedScheduling") == []
