# SPDX-License-Identifier: Apache-2.0
"""The kubelet double against the sandbox's API server over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import ApiError
from hami_framework.sandbox.apiserver import ApiServer
from hami_framework.sandbox.kubelet.node import KubeletDouble
from hami_framework.sandbox.kubelet.options import KubeletOptions

PODS = path("pods", namespace="default")


class Cluster:
    def __init__(self, server: ApiServer, client: KubeClient, lab: Any) -> None:
        self.server, self.client, self.lab = server, client, lab

    async def get(self, where: str) -> dict[str, Any] | None:
        try:
            return await self.client.call(self.client.get, where)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def run(self, name: str, **more: Any) -> str:
        """Create a pod and bind it, as a user and a scheduler do."""
        container = {"name": "main", "image": "busybox", "resources": {"limits": {"example.com/slot": 1}}}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **more}, "spec": {"containers": [container]}}
        pod = await self.client.call(self.client.create, PODS, body)
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}}
        await self.client.call(self.client.create, f"{PODS}/{name}/binding", binding)
        return str(pod["metadata"]["uid"])

    async def until(self, where: str, holds: Callable[[dict[str, Any] | None], Any]) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while not holds(found := await self.get(where)):  # noqa: ASYNC110 — the server is asked as a user would ask it
                await asyncio.sleep(0.02)
        return found or {}


@pytest.fixture
async def cluster(lab: Any) -> AsyncIterator[Cluster]:
    await lab.kubelet.stop()
    server = ApiServer()
    await server.start()
    options = KubeletOptions(time_scale=0.05, node_status_lag_s=0.01, admission_delay_s=0.03, labels={"zone": "x"})
    lab.kubelet = KubeletDouble("n1", server.url, lab.paths, options=options)
    await lab.kubelet.start()
    client = KubeClient(Credentials(server=server.url))
    try:
        yield Cluster(server, client, lab)
    finally:
        await lab.kubelet.kill()
        client.close()
        await server.stop()


async def test_the_node_registers_itself_and_shows_its_devices(cluster: Cluster) -> None:
    await cluster.lab.plugin("a", "b")
    node = await cluster.until(path("nodes", name="n1"), lambda node: node and node.get("status", {}).get("allocatable", {}).get("example.com/slot") == "2")
    assert node["metadata"]["labels"] == {"kubernetes.io/hostname": "n1", "zone": "x"}
    assert node["status"]["conditions"][0]["type"] == "Ready"


async def test_a_bound_pod_runs_and_a_deleted_one_goes(cluster: Cluster) -> None:
    await cluster.lab.plugin("a")
    uid = await cluster.run("p")
    pod = await cluster.until(f"{PODS}/p", lambda pod: pod and pod["status"]["phase"] == "Running")
    assert pod["status"]["containerStatuses"][0]["ready"] is True
    assert cluster.lab.view(uid, "main")["slots"] == ["a"]
    await cluster.client.call(cluster.client.delete, f"{PODS}/p")
    await cluster.until(f"{PODS}/p", lambda pod: pod is None)
    await cluster.lab.until(lambda: cluster.lab.kubelet.containers() == [])


async def test_a_new_pod_under_an_old_name_is_another_pod(cluster: Cluster) -> None:
    await cluster.lab.plugin("a")
    uids = []
    for _ in range(3):
        uids.append(await cluster.run("p"))
        await cluster.until(f"{PODS}/p", lambda pod: pod and pod["status"]["phase"] == "Running")
        await cluster.client.call(cluster.client.delete, f"{PODS}/p")
        await cluster.until(f"{PODS}/p", lambda pod: pod is None)
    assert len(set(uids)) == 3


async def test_a_rejected_pod_says_why_and_has_an_event(cluster: Cluster) -> None:
    await cluster.lab.plugin("a")
    await cluster.run("first")
    await cluster.until(f"{PODS}/first", lambda pod: pod and pod["status"]["phase"] == "Running")
    await cluster.run("second")
    pod = await cluster.until(f"{PODS}/second", lambda pod: pod and pod["status"]["phase"] == "Failed")
    assert pod["status"]["reason"] == "UnexpectedAdmissionError"
    events = await cluster.until(path("events", namespace="default"), lambda found: found and found["items"])
    assert [(event["reason"], event["involvedObject"]["name"]) for event in events["items"]] == [("UnexpectedAdmissionError", "second")]


async def test_a_restart_finds_its_pods_again(cluster: Cluster) -> None:
    plugin = await cluster.lab.plugin("a")
    uid = await cluster.run("p")
    await cluster.until(f"{PODS}/p", lambda pod: pod and pod["status"]["phase"] == "Running")
    await cluster.lab.kubelet.restart()
    await plugin.down()
    await plugin.up()
    await cluster.client.call(cluster.client.delete, f"{PODS}/p")
    await cluster.until(f"{PODS}/p", lambda pod: pod is None)
    assert (plugin.count("Allocate"), plugin.count("PreStartContainer")) == (1, 1)
    assert not [item for item in cluster.lab.kubelet.containers() if item["podUID"] == uid and item["state"] == "running"]
