# SPDX-License-Identifier: Apache-2.0
"""The concurrency proof: pods bound and started in random interleavings, with agents, kubelets and the extender killed at random.

Everything that runs is the product: extender and agents as processes of their own, vendors' packages in their workers. At every
start of a container its edits are compared with the grant of its own pod; at the end nothing may be promised twice or left over.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from typing import Any

import pytest

from hami_framework.cli.cluster import list_inventories, list_pods
from hami_framework.cli.demo_checks import check_nothing_leaked, over_promised, wrong_edits
from hami_framework.kube import credentials
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError
from hami_framework.plugins import load_registry
from hami_framework.sandbox.cluster import Cluster
from hami_framework.sandbox.nodes import parse_nodes
from hami_framework.sandbox.resources import PODS as PODS_KIND
from hami_framework.testing.fakes import build_libraries

DEEP = bool(os.environ.get("HAMI_TEST_DEEP"))
PODS = 1_000 if DEEP else 60
WAVE = 40 if DEEP else 20
SEED = 20261123
KILL_EVERY_SECONDS = 3.0 if DEEP else 0.8
"""Something dies this often at most; an extender that dies more often than it starts proves nothing."""

pytestmark = [pytest.mark.deep, pytest.mark.timeout(1200 if DEEP else 120), pytest.mark.xdist_group("sandbox")]

NODES = {
    "nodes": [
        {"name": "a", "machine": "dgx-a100-40g"},
        {"name": "b", "machine": ["dgx-h100", "k100-ai"]},
        {"name": "c", "machine": "mlu370-x8"},
    ]
}

NVIDIA: dict[str, object] = {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 10}
PAIR: dict[str, object] = {"nvidia.com/gpu": 2, "nvidia.com/gpumem": 2000}
HYGON: dict[str, object] = {"hygon.com/dcunum": 1, "hygon.com/dcumem": 4000, "hygon.com/dcucores": 10}
CAMBRICON: dict[str, object] = {"cambricon.com/vmlu": 1, "cambricon.com/mlu.smlu.vmemory": 8, "cambricon.com/mlu.smlu.vcore": 10}
NEUTRAL: dict[str, object] = {"hami.io/memory-mib": 2000}
SHAPES = ([NVIDIA], [NVIDIA], [NVIDIA, PAIR, NEUTRAL], [NVIDIA, HYGON], [HYGON, NEUTRAL], [CAMBRICON], [CAMBRICON, NEUTRAL])
"""What the containers of one pod are drawn from: some node has all of it. Most are equal: identical pods are what a guess gets wrong."""


def pod(name: str, chance: random.Random) -> dict[str, Any]:
    shapes = chance.choice(SHAPES)

    def container(kind: str) -> dict[str, Any]:
        return {"name": kind, "image": "x", "resources": {"limits": dict(chance.choice(shapes))}}

    spec: dict[str, Any] = {"containers": [container("main")]}
    if chance.random() < 0.15:
        spec["initContainers"] = [container("init"), {**container("sidecar"), "restartPolicy": "Always"}]
    if chance.random() < 0.15:
        spec["containers"].append(container("second"))
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


class Proof:
    """Drives one sandbox and remembers everything that was wrong."""

    def __init__(self, cluster: Cluster, client: KubeClient) -> None:
        self.cluster, self.client = cluster, client
        self.chance = random.Random(SEED)
        self.wrong: list[str] = []
        self.started: Counter[str] = Counter()
        self.refused_by_kubelet: list[str] = []
        self.kills: Counter[str] = Counter()
        for node in cluster.nodes.values():
            node.kubelet.on_container_start = self.container_started

    def container_started(self, view: dict[str, Any]) -> None:
        """Called by the runtime double at each start, with what the container sees; the pod is read from the API server's own store."""
        found = self.cluster.server.store.find(PODS_KIND, view["namespace"], view["pod"])
        self.started[view["podUID"]] += 1
        if problem := wrong_edits(view, found if found and found["metadata"]["uid"] == view["podUID"] else None):
            self.wrong.append(problem)

    async def run(self) -> None:
        names = [f"p{number}" for number in range(PODS)]
        killer = asyncio.create_task(self.kill_at_random())
        try:
            for first in range(0, PODS, WAVE):
                wave = names[first : first + WAVE]
                await asyncio.gather(*(self.create(name) for name in wave))
                await self.settle(set(wave))
                await asyncio.gather(*(self.delete(name) for name in wave if self.chance.random() < 0.9 or DEEP))
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)

    async def create(self, name: str) -> None:
        await self.client.call(self.client.create, path("pods", namespace="default"), pod(name, self.chance))

    async def delete(self, name: str) -> None:
        try:
            await self.client.call(self.client.delete, path("pods", namespace="default", name=name))
        except ApiError as error:
            if not error.not_found:
                raise

    async def settle(self, names: set[str]) -> None:
        """Until every pod of the wave runs, or was failed by kubelet itself because it was killed at that moment."""
        end = asyncio.get_running_loop().time() + 60
        while True:
            pods = [item for item in await self.client.call(list_pods, self.client) if item["metadata"]["name"] in names]
            self.wrong += over_promised(pods, await self.client.call(list_inventories, self.client))
            phases = {item["metadata"]["name"]: item.get("status", {}) for item in pods}
            failed = [name for name, status in phases.items() if status.get("phase") == "Failed"]
            assert all(phases[name].get("reason") == "UnexpectedAdmissionError" for name in failed), [phases[name] for name in failed]
            open_ = {name: status for name, status in phases.items() if status.get("phase") not in ("Running", "Failed")}
            if not open_ and len(pods) == len(names):
                self.refused_by_kubelet += failed
                return
            assert asyncio.get_running_loop().time() < end, f"still not running after 60 s: {open_}"
            await asyncio.sleep(0.1)

    async def kill_at_random(self) -> None:
        while True:
            await asyncio.sleep(self.chance.uniform(0.3, KILL_EVERY_SECONDS))
            node = self.chance.choice(list(self.cluster.nodes))
            what = self.chance.choice(["agent"] * 5 + ["kubelet"] * 4 + ["extender"])
            self.kills[what] += 1
            if what == "agent":
                self.cluster.kill_agent(node)
            elif what == "kubelet":
                await self.cluster.restart_kubelet(node)
            else:
                self.cluster.kill_extender()


async def test_no_container_ever_sees_another_pods_grant() -> None:
    registry = load_registry()
    nodes = parse_nodes(NODES, registry.machines())
    async with Cluster(nodes, build=build_libraries, registry=registry, seed=SEED) as cluster:
        client = await asyncio.to_thread(lambda: KubeClient(credentials.load(str(cluster.kubeconfig)), threads=32))
        proof = Proof(cluster, client)
        await proof.run()
        for item in await client.call(list_pods, client):
            await proof.delete(item["metadata"]["name"])
        end = asyncio.get_running_loop().time() + 60
        while left := [finding.what for finding in check_nothing_leaked(cluster) if not finding.holds]:
            assert asyncio.get_running_loop().time() < end, (left, await client.call(list_pods, client), cluster.last_words())
            await asyncio.sleep(0.2)
        client.close()
    summary = {"pods": PODS, "started": len(proof.started), "kills": dict(proof.kills), "failed by a killed kubelet": len(proof.refused_by_kubelet)}
    print(json.dumps(summary))
    assert proof.kills.total() > 0
    assert proof.wrong == []
    assert len(proof.started) >= PODS - len(proof.refused_by_kubelet)
