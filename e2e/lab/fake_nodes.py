# SPDX-License-Identifier: Apache-2.0
"""Nodes without machines, up to thousands: a Node that is ready, its inventory, its agent's sign of life.

    with FakeNodes(client) as fakes:
        fakes.create(1000)
        with running(client): ...          # bound pods become Running, deleted ones go

    python -m e2e.lab.fake_nodes --name X --count 1000        # and --count 0 to delete them again

Devices are what the vendor's own package discovers on one of its made-up machines, once; every node gets them with ids of its own.
The controller manager must be told not to miss the kubelets (`--node-monitor-grace-period=24h`; labs do).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec

from hami_framework.codec import inventories
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import load
from hami_framework.kube.errors import ApiError, KubeError
from hami_framework.model import Device, Inventory, VendorInfo, device_name
from hami_framework.plugins import find_sources, load_registry
from hami_framework.plugins import load as load_vendor
from hami_framework.testing.stage import Stage

Json = dict[str, Any]

LABEL = "lab.hami.io/fake"
WRITERS = 12
"""Requests in flight; two cores are busy long before more would help."""
MACHINE = "dgx-a100-80g"
NAMESPACE = "hami-system"
SIGN_OF_LIFE = "hami.io/sign-of-life"
LEASE_SECONDS = 7 * 24 * 3600
"""Nobody renews the signs of life of fake nodes: they say beforehand that they are good for a week."""
NOT_THERE, EXISTS = 404, 409


@dataclass(frozen=True)
class Stock:
    """What every fake node has."""

    vendor: VendorInfo
    devices: tuple[Device, ...]

    @classmethod
    def of(cls, machine: str = MACHINE) -> Stock:
        """What the vendor's package finds on its made-up machine of this name. Raises KeyError for a name that no package brings."""
        name, made_up = load_registry().machines()[machine]
        source = next(source for source in find_sources()[0] if source.vendor == name)
        with tempfile.TemporaryDirectory(prefix="fake-nodes-") as directory:
            stage = Stage(source, made_up, Path(directory))
            try:
                return cls(load_vendor(source).info, tuple(_owned(device, name) for device in stage.discover()))
            finally:
                stage.close()

    def inventory(self, node: str) -> Inventory:
        """The same devices, with ids that belong to this node alone."""
        own = {device.id: f"{device.id}-{node}" for device in self.devices}
        devices = [
            msgspec.structs.replace(
                device,
                id=own[device.id],
                name=device_name(device.vendor, own[device.id]),
                identities=(),
                links=tuple(msgspec.structs.replace(link, peer=own[link.peer]) for link in device.links if link.peer in own),
            )
            for device in self.devices
        ]
        return Inventory(node=node, vendors=(self.vendor,), devices=tuple(devices))

    @property
    def resources(self) -> dict[str, str]:
        """What kubelet would advertise: every slot resource, as often as all devices can be shared."""
        slots = sum(device.device_class.capacity.shares for device in self.devices)
        return {name: str(slots) for family in self.vendor.resources for name in family.slot_resources}


class FakeNodes:
    """The fake nodes of one cluster. `delete` (and the end of a `with` block) removes all of them, also those of earlier runs."""

    def __init__(self, client: KubeClient, machine: str = MACHINE, *, more_resources: dict[str, str] | None = None) -> None:
        """`more_resources`: advertised by every node besides the slots."""
        self._client, self._machine, self._more = client, machine, more_resources or {}

    def __enter__(self) -> FakeNodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    @cached_property
    def stock(self) -> Stock:
        return Stock.of(self._machine)

    def create(self, count: int, *, first: int = 0, prefix: str = "fake", change: Callable[[Inventory], Inventory] | None = None) -> list[str]:
        """Make `count` nodes; answers their names. `change` may rewrite an inventory before it is written. Existing ones are left as they are."""
        self._prepare()
        _ = self.stock  # made here, once: several threads would each make their own
        names = [f"{prefix}-{number:05d}" for number in range(first, first + count)]
        there = {node["metadata"]["name"] for node in self._client.list(path("nodes"), {"labelSelector": LABEL})["items"]}
        each(partial(self._create, change=change or (lambda inventory: inventory)), [name for name in names if name not in there])
        return names

    def delete(self) -> int:
        """Remove every fake node with its inventory and lease, and the pods on them; answers how many there were."""
        nodes = self._client.list(path("nodes"), {"labelSelector": LABEL})["items"]
        names = [node["metadata"]["name"] for node in nodes]
        chosen = set(names)
        pods = self._client.list(path("pods"), {"fieldSelector": "spec.nodeName!="})["items"]
        each(partial(remove_pod, self._client), [pod for pod in pods if pod["spec"]["nodeName"] in chosen])
        each(self._delete, names)
        return len(names)

    def _prepare(self) -> None:
        """The definition of inventories and the namespace of the leases, where an installation has not brought them."""
        crds = path("customresourcedefinitions", group="apiextensions.k8s.io")
        _make(self._client, crds, inventories.CRD)
        _make(self._client, path("namespaces"), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        deadline = time.monotonic() + 20
        while True:
            try:
                self._client.get(_inventories(), {"limit": "1"})
            except KubeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _create(self, name: str, change: Callable[[Inventory], Inventory]) -> None:
        amounts = {"cpu": "128", "memory": "1024Gi", "pods": "500", **self.stock.resources, **self._more}
        now = _now()
        node: Json = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {LABEL: "", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
            "status": {
                "capacity": amounts,
                "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True", "reason": "Fake", "lastHeartbeatTime": now, "lastTransitionTime": now}],
            },
        }
        _make(self._client, path("nodes"), node)
        # Admission taints every new node as not ready; the controller manager would see to it, at its own pace.
        self._client.patch(path("nodes", name=name), {"spec": {"taints": None}})
        _make(self._client, _inventories(), inventories.to_object(change(self.stock.inventory(name))))
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": f"node-{name}", "namespace": NAMESPACE, "labels": {SIGN_OF_LIFE: "true"}},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")},
        }
        _make(self._client, _leases(), lease)

    def _delete(self, name: str) -> None:
        for url in (_leases(f"node-{name}"), _inventories(name), path("nodes", name=name)):
            _gone(self._client, url)


@contextmanager
def running(client: KubeClient) -> Iterator[None]:
    """While it lasts, what a kubelet would do: pods bound to any node become Running, and deleted ones go at once."""
    stop = threading.Event()
    thread = threading.Thread(target=_play_kubelet, args=(client, stop), name="fake kubelets", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def _owned(device: Device, vendor: str) -> Device:
    """The device as the node agent publishes it: its class says whose it is."""
    return msgspec.structs.replace(device, device_class=msgspec.structs.replace(device.device_class, vendor=vendor))


def each(do: Callable[[Any], object], items: Sequence[Any]) -> None:
    """`do` for every item, several at once. Raises the first error."""
    with ThreadPoolExecutor(WRITERS) as pool:
        for _ in pool.map(do, items):
            pass


def remove_pod(client: KubeClient, pod: Json) -> None:
    """Delete a pod that no kubelet looks after."""
    _gone(client, path("pods", namespace=pod["metadata"]["namespace"], name=pod["metadata"]["name"]), grace_seconds=0)


def _play_kubelet(client: KubeClient, stop: threading.Event) -> None:
    """Look twice a second: simple, and quick enough for any test."""
    while not stop.wait(0.5):
        try:
            pods = client.list(path("pods"), {"fieldSelector": "spec.nodeName!="})["items"]
            each(partial(_step, client), pods)
        except KubeError as error:
            print(f"fake kubelets: {error}", file=sys.stderr)


def _step(client: KubeClient, pod: Json) -> None:
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    if metadata.get("deletionTimestamp"):
        remove_pod(client, pod)
    elif status.get("phase") == "Pending":
        now = _now()
        containers = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": container["image"],
                "ready": True,
                "restartCount": 0,
                "started": True,
                "state": {"running": {"startedAt": now}},
            }
            for container in spec["containers"]
        ]
        change = {"status": {"phase": "Running", "startTime": now, "containerStatuses": containers}}
        try:
            client.patch(path("pods", namespace=metadata["namespace"], name=metadata["name"], subresource="status"), change)
        except ApiError as error:
            if error.status != NOT_THERE:
                raise


def _make(client: KubeClient, url: str, document: Json) -> None:
    try:
        client.create(url, document)
    except ApiError as error:
        if error.status != EXISTS:
            raise


def _gone(client: KubeClient, url: str, **options: Any) -> None:
    try:
        client.delete(url, **options)
    except ApiError as error:
        if error.status != NOT_THERE:
            raise


def _inventories(name: str | None = None) -> str:
    return path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION, name=name)


def _leases(name: str | None = None) -> str:
    return path("leases", group="coordination.k8s.io", namespace=NAMESPACE, name=name)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def main() -> int:
    """Have exactly `--count` fake nodes in a lab."""
    from e2e.lab.__main__ import into_the_venv

    into_the_venv()
    parser = argparse.ArgumentParser(prog="python -m e2e.lab.fake_nodes", description="Fake nodes in a lab.")
    parser.add_argument("--name", default="default", help="which lab (%(default)s)")
    parser.add_argument("--count", type=int, required=True, help="how many; 0 deletes all")
    parser.add_argument("--machine", default=MACHINE, help="what they have (%(default)s)")
    parser.add_argument("--run-pods", action="store_true", help="then play their kubelets until interrupted")
    options = parser.parse_args()
    from e2e.lab import Lab

    client = KubeClient(load(os.fspath(Lab.attach(options.name).kubeconfig)), threads=WRITERS)
    fakes = FakeNodes(client, options.machine)
    began = time.monotonic()
    if options.count == 0:
        print(f"{fakes.delete()} fake nodes deleted in {time.monotonic() - began:.1f} s")
        return 0
    fakes.create(options.count)
    print(f"{options.count} fake nodes in {time.monotonic() - began:.1f} s")
    if options.run_pods:
        with running(client):
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
