# SPDX-License-Identifier: Apache-2.0
"""A control plane with fake nodes, the extender beside the real kube-scheduler, and kubelets that are played: for what needs no container.

with fake_cluster("mine", nodes=2, devices=1) as cluster:
    cluster.create("a", memory_mib=60_000)
    cluster.bound("a")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from e2e.lab import Lab
from e2e.lab.fake_nodes import FakeNodes, running
from e2e.lab.install import extender, scheduler_configuration
from e2e.lab.programs import Process
from hami_framework.codec import inventories
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import load
from hami_framework.kube.errors import ApiError
from hami_framework.model import Inventory

Json = dict[str, Any]
NAMESPACE = "default"
PRIORITIES = {"low": 10, "middle": 100, "high": 1000}


@dataclass
class FakeCluster:
    """Pods in `default`, and everything around them."""

    lab: Lab
    client: KubeClient
    fakes: FakeNodes
    extender: Process

    def create(self, name: str, memory_mib: int = 60_000, *, priority: str | None = None, labels: dict[str, str] | None = None, **spec: Any) -> Json:
        """A pod with a share of one device."""
        limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(memory_mib)}
        containers = [{"name": "main", "image": "none", "resources": {"limits": limits}}]
        more = {"priorityClassName": priority} if priority else {}
        metadata = {"name": name, "labels": {"app": name, **(labels or {})}}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers, **more, **spec}}
        made: Json = self.client.create(path("pods", namespace=NAMESPACE), body)
        return made

    def pod(self, name: str) -> Json | None:
        try:
            found: Json = self.client.get(path("pods", namespace=NAMESPACE, name=name))
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return found

    def node_of(self, name: str) -> str:
        return str(((self.pod(name) or {}).get("spec") or {}).get("nodeName") or "")

    def until(self, what: str, holds: Callable[[], Any], seconds: float = 20.0) -> float:
        """Seconds until it held."""
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < seconds, f"waited {seconds:.0f} s for {what}; logs: {self.lab.logs}\n{self.extender.log()[-2000:]}"
            time.sleep(0.02)
        return time.monotonic() - began

    def bound(self, name: str, seconds: float = 20.0) -> float:
        return self.until(f"{name} to be bound", lambda: self.node_of(name), seconds)

    def refused(self, name: str) -> None:
        """Until kube-scheduler has said that it fits nowhere, and has put it aside."""

        def said() -> bool:
            conditions = ((self.pod(name) or {}).get("status") or {}).get("conditions") or ()
            return any(condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable" for condition in conditions)

        self.until(f"{name} to be refused", said)

    def delete(self, name: str) -> None:
        self.client.delete(path("pods", namespace=NAMESPACE, name=name), grace_seconds=0)

    def events(self, name: str, reason: str) -> list[str]:
        """Of the pod that has this name now, since events outlive pods; of all that had it when there is none now."""
        pod = self.pod(name)
        who = f"involvedObject.uid={pod['metadata']['uid']}" if pod else f"involvedObject.name={name}"
        query = {"fieldSelector": f"{who},reason={reason}"}
        return [event["message"] for event in self.client.list(path("events", namespace=NAMESPACE), query)["items"]]

    def clear(self) -> None:
        """No pods, no budgets."""
        for pod in self.client.list(path("pods", namespace=NAMESPACE))["items"]:
            self.delete(pod["metadata"]["name"])
        budgets = path("poddisruptionbudgets", group="policy", namespace=NAMESPACE)
        for budget in self.client.list(budgets)["items"]:
            self.client.delete(path("poddisruptionbudgets", group="policy", namespace=NAMESPACE, name=budget["metadata"]["name"]))
        self.until("no pod to be left", lambda: not self.client.list(path("pods", namespace=NAMESPACE))["items"])

    def lease(self, node: str, **spec: Any) -> None:
        """What the node's agent would write."""
        self.client.patch(path("leases", group="coordination.k8s.io", namespace="hami-system", name=f"node-{node}"), {"spec": spec})

    def change_inventory(self, node: str, change: Callable[[Inventory], Inventory]) -> None:
        url = path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION, name=node)
        found = self.client.get(url)
        changed = inventories.to_object(change(inventories.from_object(found)))
        self.client.replace(url, changed | {"metadata": found["metadata"]})


@contextmanager
def fake_cluster(name: str, *, nodes: int, devices: int, kubernetes: str | None = None, arguments: tuple[str, ...] = ()) -> Iterator[FakeCluster]:
    """`nodes` nodes named fake-00000 …, each with so many devices of 80 GiB; the extender gets `arguments`."""
    with Lab.up(name, kubernetes=kubernetes, node=False) as lab:
        client = KubeClient(load(str(lab.kubeconfig)), threads=12)
        for priority, value in PRIORITIES.items():
            client.create(
                path("priorityclasses", group="scheduling.k8s.io"),
                {"metadata": {"name": priority}, "value": value, "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"},
            )
        fakes = FakeNodes(client)
        fakes.create(nodes, change=lambda inventory: msgspec.structs.replace(inventory, devices=inventory.devices[:devices]))
        process = extender(lab, arguments)
        process.start()
        lab.restart("kube-scheduler", config=scheduler_configuration(lab))
        try:
            with running(client):
                yield FakeCluster(lab, client, fakes, process)
        finally:
            client.close()
