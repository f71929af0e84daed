# SPDX-License-Identifier: Apache-2.0
"""What every test of API faults stands on: our extender behind the proxy, and somebody in kube-scheduler's place who goes straight.

`Stand` makes nodes (Node, inventory, sign of life) and pods past the proxy; `place` asks the extender as kube-scheduler would, again and
again until each pod is bound or refused; `verdict` is the oracle, read from the API server alone.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from e2e.faults.proxy import Proxy
from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import ApiError
from hami_framework.model import GIB, Capacity, Device, DeviceClass, Inventory, ResourceNames, VendorInfo

Json = dict[str, Any]
VENDOR = Path(__file__).with_name("acme.py")
NAMES = ResourceNames(count="acme.com/xpu", memory="acme.com/xpumem", cores="acme.com/xpucores")
CLASS = DeviceClass(model="Xpu", vendor="acme", capacity=Capacity(memory_bytes=64 * GIB, shares=32))
NAMESPACE, SYSTEM = "default", "hami-system"
SHARE_MIB = 16_384
"""Four pods fill a device."""
AT_ONCE = 8


@dataclass
class Verdict:
    """What the API server says in the end."""

    bound: int = 0
    waiting: int = 0
    wrong: list[str] = field(default_factory=list)


class Stand:
    """Make it with `standing`."""

    def __init__(self, proxy: Proxy, client: KubeClient, port: int) -> None:
        self.proxy, self.client, self._port = proxy, client, port
        self.nodes: list[str] = []

    # -- objects --------------------------------------------------------------------------------------------------

    async def add_nodes(self, count: int, devices: int = 4) -> None:
        """Nodes with their inventories, made past the proxy."""
        for number in range(len(self.nodes), len(self.nodes) + count):
            name = f"fault-{number}"
            found = tuple(Device(id=f"{name}-x{index}", name=f"acme-{name}-x{index}", index=index, device_class=CLASS) for index in range(devices))
            inventory = Inventory(node=name, vendors=(VendorInfo(name="acme", resources=(NAMES,)),), devices=found)
            await self.make(path("nodes"), {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
            await self.make(_inventories(), inventories.to_object(inventory))
            self.nodes.append(name)
        await self.renew()

    async def renew(self) -> None:
        """The agents' signs of life."""
        for node in self.nodes:
            spec = {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
            name = f"node-{node}"
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "labels": {"hami.io/sign-of-life": "true"}},
                "spec": spec,
            }
            try:
                await self.client.call(self.client.patch, _leases(name), {"spec": spec})
            except ApiError as error:
                if not error.not_found:
                    raise
                await self.make(_leases(), body)

    async def make(self, place: str, body: Json) -> Json:
        """POST past the proxy; one that is there already will do."""
        try:
            return await self.client.call(self.client.create, place, body)
        except ApiError as error:
            if not error.conflict:
                raise
            return body

    async def pods(self, count: int, prefix: str = "p") -> list[Json]:
        """So many pods of one share each, for nobody's scheduler but ours."""
        limits = {NAMES.count: "1", str(NAMES.memory): str(SHARE_MIB)}
        spec = {
            "schedulerName": "the-test",
            "containers": [{"name": "main", "image": "none.invalid/none", "resources": {"limits": limits}}],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
        }
        documents = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{prefix}-{number}", "namespace": NAMESPACE}, "spec": spec} for number in range(count)
        ]
        return [await self.make(path("pods", namespace=NAMESPACE), document) for document in documents]

    async def remove(self, pods: Sequence[Json]) -> None:
        for pod in pods:
            await self.client.call(self.client.delete, path("pods", namespace=NAMESPACE, name=pod["metadata"]["name"]), grace_seconds=0)

    async def clean(self) -> None:
        """Everything that `Stand` made is removed."""
        listed = await self.client.call(self.client.list, path("pods", namespace=NAMESPACE))
        await self.remove(listed["items"])
        for node in self.nodes:
            for place in (path("nodes", name=node), _inventories(node), _leases(f"node-{node}")):
                try:
                    await self.client.call(self.client.delete, place)
                except ApiError as error:
                    if not error.not_found:
                        raise

    # -- kube-scheduler's place -------------------------------------------------------------------------------------

    async def ask(self, verb: str, body: Json | None, seconds: float = 8.0) -> Any:
        """One question to the extender; raises OSError where there is no answer."""
        return await asyncio.to_thread(self._ask, verb, body, seconds)

    def _ask(self, verb: str, body: Json | None, seconds: float) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=seconds)
        try:
            connection.request("POST" if body is not None else "GET", f"/{verb}", None if body is None else json.dumps(body))
            answer = connection.getresponse()
            data = answer.read()
            return (answer.status, data.decode()) if body is None else json.loads(data)
        finally:
            connection.close()

    async def ready(self, seconds: float = 60.0) -> float:
        """Until the extender says that it is ready; how long that took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            try:
                if (await self.ask("readyz", None))[0] == 200:
                    return time.monotonic() - began
            except OSError:
                pass  # it does not listen yet
            await asyncio.sleep(0.1)
        raise TimeoutError(f"the extender was not ready after {seconds:.0f} s")

    async def place(self, pods: Sequence[Json], seconds: float, *, stop_when_full: bool = True) -> dict[str, str]:
        """Bind what can be bound, as kube-scheduler would: name → `bound`, `full` (refused on every node) or the last error."""
        ended = time.monotonic() + seconds
        gate = asyncio.Semaphore(AT_ONCE)
        results: dict[str, str] = {}

        async def one(pod: Json) -> None:
            name = pod["metadata"]["name"]
            while time.monotonic() < ended:
                async with gate:
                    results[name] = await self._try(pod)
                if results[name] == "bound" or (results[name] == "full" and stop_when_full):
                    return
                await asyncio.sleep(0.2)

        await asyncio.gather(*(one(pod) for pod in pods))
        return results

    async def _try(self, pod: Json) -> str:
        metadata = pod["metadata"]
        try:
            found = await self.ask("filter", {"Pod": pod, "NodeNames": self.nodes})
            if found["Error"]:
                return f"error: {found['Error']}"
            if not found["NodeNames"]:
                return "full"
            ranked = await self.ask("prioritize", {"Pod": pod, "NodeNames": found["NodeNames"]})
            best = max(ranked, key=lambda line: line["Score"])["Host"]
            names = {"PodName": metadata["name"], "PodNamespace": metadata["namespace"], "PodUID": metadata["uid"], "Node": best}
            error = (await self.ask("bind", names))["Error"]
        except OSError as problem:
            return f"error: {problem}"
        return await self._seen(pod) if error else "bound"

    async def _seen(self, pod: Json) -> str:
        """kube-scheduler hears of the binding from its own watch: an error is not the last word."""
        now = await self.client.call(self.client.get, path("pods", namespace=NAMESPACE, name=pod["metadata"]["name"]))
        return "bound" if now["spec"].get("nodeName") else "error: not bound"

    # -- the oracle -------------------------------------------------------------------------------------------------

    async def verdict(self) -> Verdict:
        """No device promised beyond what it has; each bound pod with exactly the one grant that is its own."""
        result, promised = Verdict(), defaultdict[str, int](int)
        listed = await self.client.call(self.client.list, path("pods", namespace=NAMESPACE))
        for pod in listed["items"]:
            name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
            text = (pod["metadata"].get("annotations") or {}).get(GRANT_ANNOTATION)
            if not node:
                result.waiting += 1
                result.wrong += [f"{name} is not bound and has a grant"] if text else []
                continue
            result.bound += 1
            if text is None:
                result.wrong.append(f"{name} is bound without a grant")
                continue
            grant = decode_grant(text)
            devices = [held for container in grant.containers for held in container.devices]
            if (grant.owner.uid, grant.node, len(devices)) != (pod["metadata"]["uid"], node, 1):
                result.wrong.append(f"{name} on {node} has a grant for uid {grant.owner.uid} on {grant.node} of {len(devices)} devices")
            for held in devices:
                promised[held.device_id] += held.offer.cost.memory_bytes
        result.wrong += [f"{device}: {amount / GIB:.0f} GiB promised" for device, amount in promised.items() if amount > CLASS.capacity.memory_bytes]
        return result


@asynccontextmanager
async def standing(
    credentials: Credentials, directory: Path, *, nodes: int = 4, devices: int = 4, arguments: Sequence[str] = (), wait: bool = True
) -> AsyncIterator[Stand]:
    """The proxy, the extender as a process behind it, and nodes. `directory` holds its kubeconfig and log.

    `arguments`: more flags of the extender; `wait`: until it is ready (one that follows never is).
    """
    directory.mkdir(exist_ok=True)
    client = KubeClient(credentials, threads=16, user_agent="fault-test")
    async with Proxy(credentials) as proxy:
        (directory / "kubeconfig").write_text(kubeconfig(proxy.url))
        words = ["--kubeconfig", str(directory / "kubeconfig"), "--port", "0", "--plugin", str(VENDOR), *arguments]
        with (directory / "extender.log").open("w") as log:
            child = subprocess.Popen([sys.executable, "-m", "hami_framework.scheduler", *words], stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                assert child.stdout is not None
                line = await asyncio.to_thread(child.stdout.readline)
                stand = Stand(proxy, client, int(line.rpartition(":")[2]))
                await stand.make(path("namespaces"), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
                await stand.add_nodes(nodes, devices)
                renewing = asyncio.create_task(_renew(stand))
                try:
                    if wait:
                        await stand.ready()
                    yield stand
                finally:
                    renewing.cancel()
                    await asyncio.gather(renewing, return_exceptions=True)
                    await stand.clean()
            finally:
                child.kill()
                child.wait(10)
                if child.stdout is not None:
                    child.stdout.close()
    client.close()


async def _renew(stand: Stand) -> None:
    while True:
        await asyncio.sleep(8)
        await stand.renew()


def kubeconfig(server: str) -> str:
    """For a server that asks for no credentials: the proxy has them."""
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    document = {"clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "c", "user": {}}], "contexts": [context]}
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "c", **document})


def _inventories(name: str | None = None) -> str:
    return path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION, name=name)


def _leases(name: str | None = None) -> str:
    return path("leases", group="coordination.k8s.io", namespace=SYSTEM, name=name)
