# SPDX-License-Identifier: Apache-2.0
"""40 pods at once on one node: from their creation until all run, against the same pods without devices. Same cluster, in turns.

The pods with devices go the whole way: kube-scheduler asks the extender, kubelet asks the agent, containerd resolves CDI.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.harness import pods
from e2e.harness.cluster import Cluster, started
from e2e.lab import Lab
from e2e.lab.install import install_processes

PODS = 40
ROUNDS = int(os.environ.get("HAMI_E2E_ROUNDS", "2"))
MOST = 2.0
"""Times as long (the product's claim)."""
GPU = {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000, "nvidia.com/gpucores": 5}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab.up("rate", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES")) as lab:
        own = Cluster(install_processes(lab), "rate")
        own.open()
        try:
            yield own
        finally:
            own.client.close()


def seconds(cluster: Cluster, prefix: str, limits: dict[str, int] | None) -> float:
    """Create them all at once; seconds until the last one runs. They are gone when this returns."""
    names = [f"{prefix}-{number}" for number in range(PODS)]
    manifests = [pods.pod(name, [pods.container("main", limits, args=["--brief"])]) for name in names]
    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(cluster.create, manifests))

    def missing() -> list[str]:
        return [pod["metadata"]["name"] for pod in cluster.pods() if not started(pod)]

    cluster.until("all to run", lambda: not missing(), 120, otherwise=lambda: "\n".join(cluster.explain(name) for name in missing()[:2]))
    took = time.monotonic() - began
    if limits:
        assert {cluster.inside(name).status for name in names} == {"MATCH"}
    cluster.delete(*names, grace_seconds=1)
    cluster.gone(*names, seconds=60)
    return took


def test_forty_gpu_pods_start_as_fast_as_pods_without_devices(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    seconds(cluster, "warm", None)
    plain, shared = [], []
    for turn in range(ROUNDS):
        plain.append(seconds(cluster, f"plain-{turn}", None))
        shared.append(seconds(cluster, f"gpu-{turn}", GPU))

    ratio = statistics.median(shared) / statistics.median(plain)

    with capsys.disabled():
        figures = f"{', '.join(f'{one:.1f}' for one in plain)} s without devices, {', '.join(f'{one:.1f}' for one in shared)} s with"
        print(f"\n{PODS} pods at once: {figures}; ratio of the medians {ratio:.2f}")
    assert ratio <= MOST
