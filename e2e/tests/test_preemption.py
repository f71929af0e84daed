# SPDX-License-Identifier: Apache-2.0
"""Preemption for devices alone, on the real kube-scheduler: free slots and CPU, full device memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.harness.fake_cluster import FakeCluster, fake_cluster
from hami_framework.kube.client import path

MOST_CPU = "100"
"""Of the 128 that a fake node has."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[FakeCluster]:
    with fake_cluster(f"preempt-{os.getpid()}", nodes=2, devices=1, kubernetes=os.environ.get("HAMI_E2E_KUBERNETES")) as made:
        yield made


@pytest.fixture
def cluster(running_cluster: FakeCluster) -> Iterator[FakeCluster]:
    yield running_cluster
    running_cluster.clear()


def fill(cluster: FakeCluster, *pods: tuple[str, str]) -> None:
    for name, priority in pods:
        cluster.create(name, priority=priority)
        cluster.bound(name)


def test_the_least_important_pod_makes_room_once(cluster: FakeCluster) -> None:
    fill(cluster, ("low-1", "low"), ("middle-1", "middle"))
    cluster.create("boss", priority="high")
    took = cluster.bound("boss")
    print(f"created -> bound, eviction included: {took:.2f} s")
    assert cluster.node_of("middle-1")
    assert cluster.pod("low-1") is None
    cluster.until("its event", lambda: cluster.events("boss", "Preempting"))
    assert "boss" in cluster.events("low-1", "Preempted")[0]
    time.sleep(2.0)
    assert cluster.pod("middle-1") is not None


def test_the_room_is_kept_from_others_who_wait(cluster: FakeCluster) -> None:
    fill(cluster, ("low-1", "low"), ("low-2", "low"))
    for name in ("thief-1", "thief-2", "thief-3"):
        cluster.create(name, priority="low")
        cluster.refused(name)
    cluster.create("boss", priority="high")
    cluster.bound("boss")
    assert not any(cluster.node_of(name) for name in ("thief-1", "thief-2", "thief-3"))
    assert sum(cluster.pod(name) is None for name in ("low-1", "low-2")) == 1


def test_equals_and_pods_that_never_preempt_wait(cluster: FakeCluster) -> None:
    fill(cluster, ("middle-1", "middle"), ("middle-2", "middle"))
    cluster.create("equal", priority="middle")
    cluster.create("polite", preemptionPolicy="Never", priority="polite")
    for name in ("equal", "polite"):
        cluster.refused(name)
    time.sleep(3.0)
    assert cluster.node_of("middle-1")
    assert cluster.node_of("middle-2")


@pytest.fixture(scope="module", autouse=True)
def polite_class(running_cluster: FakeCluster) -> None:
    body = {"metadata": {"name": "polite"}, "value": 1000, "preemptionPolicy": "Never", "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    running_cluster.client.create(path("priorityclasses", group="scheduling.k8s.io"), body)


def test_a_disruption_budget_is_kept(cluster: FakeCluster) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "keep", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}},
    }
    cluster.client.create(path("poddisruptionbudgets", group="policy", namespace="default"), budget)
    fill(cluster, ("kept", "low"), ("middle-1", "middle"))
    cluster.create("boss", priority="high")
    cluster.bound("boss")
    assert cluster.pod("kept") is not None
    assert cluster.pod("middle-1") is None
    cluster.create("boss-2", priority="high")
    cluster.refused("boss-2")
    time.sleep(3.0)
    assert cluster.pod("kept") is not None


def both(cpu: str, memory_mib: int) -> dict[str, Any]:
    """What a container asks for: CPU and a share of a device."""
    amounts = {"cpu": cpu, "nvidia.com/gpu": "1", "nvidia.com/gpumem": str(memory_mib)}
    return {"containers": [{"name": "main", "image": "none", "resources": {"limits": amounts}}]}


def test_kube_scheduler_asks_who_must_go_for_devices_too(cluster: FakeCluster) -> None:
    """CPU is full as well, so kube-scheduler preempts itself: the verb adds those who hold the devices to its victims."""
    cluster.create("elsewhere", priority="high", **both(MOST_CPU, 60_000))
    cluster.bound("elsewhere")
    cluster.create("cpu-hog", priority="low", **both(MOST_CPU, 1_000))
    cluster.bound("cpu-hog")
    cluster.create("device-hog", priority="low", **both("1", 60_000))
    cluster.bound("device-hog")
    node = cluster.node_of("cpu-hog")
    assert cluster.node_of("device-hog") == node != cluster.node_of("elsewhere")
    cluster.create("boss", priority="high", **both(MOST_CPU, 60_000))
    cluster.bound("boss", seconds=40.0)
    assert cluster.node_of("boss") == node
    assert cluster.pod("cpu-hog") is cluster.pod("device-hog") is None
    for victim in ("cpu-hog", "device-hog"):
        assert any("Preempted by pod" in text for text in cluster.events(victim, "Preempted")), "kube-scheduler's own words"
    assert not cluster.events("boss", "Preempting"), "the extender left it to kube-scheduler"
