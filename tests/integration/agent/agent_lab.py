# SPDX-License-Identifier: Apache-2.0
"""The agent as a process, with API server and kubelet of the sandbox around it: by default for a one-file vendor whose shares are held by a library."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.enforcement import container as containers
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.model import GIB, ContainerGrant, DeviceGrant, Offer, Owner, PodGrant, share
from hami_framework.sandbox.apiserver import ApiServer
from hami_framework.sandbox.kubelet.node import KubeletDouble
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.kubelet.paths import KubeletPaths
from hami_framework.testing.tenant import Tenant

XPU = "acme.com/xpu"
NODE = "n1"

VENDOR = """
import json
from pathlib import Path
from hami_framework import (SOFT, Capacity, ContainerEdits, Device, DeviceClass, Enforcement, Interceptor, Mode, ProcessUsage, ResourceNames, Usage,
                            hookimpl)

HAMI_SPEC_VERSION = "1"
CLASS = DeviceClass(model="Xpu", capacity=Capacity(memory_bytes=8 * 2**30, shares=5), modes=(Mode(name="share", isolation=SOFT),))
LIBRARY = Path(__file__).parent / "libacme.so"
MEASURED = Path(__file__).parent / "measured.json"

@hookimpl
def hami_resources():
    return ResourceNames(count="acme.com/xpu")

@hookimpl
def hami_discover(host):
    return [Device(id=f"x{n}", index=n, device_class=CLASS) for n in range(2)]

@hookimpl
def hami_allocate(grant, devices):
    return ContainerEdits(env={"ACME_DEVICES": ",".join(d.id for d in devices)})

@hookimpl
def hami_enforce(grant, devices):
    names = tuple((d.id, (("uuid", d.id),)) for d in devices)
    return Enforcement(isolation=SOFT, mechanism="libacme.so", interceptor=Interceptor(library=str(LIBRARY), identities=names))

@hookimpl
def hami_usage(host, devices):
    held = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    for d in devices:
        processes = tuple(ProcessUsage(pid=pid, memory_bytes=used) for pid, used in held.get(d.id, ()))
        yield Usage(device_id=d.id, memory_used_bytes=sum(p.memory_bytes for p in processes), processes=processes)
"""

KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{{name: lab, cluster: {{server: "{url}"}}}}]
users: [{{name: lab, user: {{}}}}]
contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]
current-context: lab
"""


class Lab:
    """API server and kubelet double here, the agent in its own process. A test's own vendor overrides the names below."""

    resource, vendor, device = XPU, "acme", "x0"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        paths = KubeletPaths(
            plugin_dir=directory / "k" / "device-plugins",
            pod_resources_socket=directory / "k" / "pr.sock",
            cdi_dirs=(directory / "cdi",),
            root=directory / "root",
            real_dirs=(directory / "state",),
        )
        (directory / "acme.py").write_text(VENDOR)
        (directory / "libacme.so").write_bytes(b"not really")
        self.api = ApiServer(definitions=(inventories.CRD,))
        self.paths = paths
        self.started: list[dict[str, Any]] = []
        self.tenants: list[Tenant] = []
        self.grants: dict[str, PodGrant] = {}
        self.agent: asyncio.subprocess.Process | None = None

    async def up(self, *options: str) -> None:
        await self.api.start()
        (self.directory / "kubeconfig").write_text(KUBECONFIG.format(url=self.api.url))
        self.client = KubeClient(Credentials(server=self.api.url))
        self.kubelet = KubeletDouble(NODE, self.api.url, self.paths, options=KubeletOptions(seed=5, time_scale=0.05, node_status_lag_s=0.01))
        self.kubelet.on_container_start = self.started.append
        await self.kubelet.start()
        arguments = ["--node", NODE, "--kubeconfig", "kubeconfig", "--kubelet-dir", "k", "--pod-resources-socket", "k/pr.sock", "--cdi-dir", "cdi"]
        arguments += ["--state-dir", str(self.directory / "state"), "--root", "root", *self.vendor_options()]
        arguments += ["--wait-seconds", "2", "--grace-seconds", "1", *options]
        with (self.directory / "agent.log").open("ab") as log:
            environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "/usr/bin:/bin"}
            command = [sys.executable, "-m", "hami_framework.deviceplugin", *arguments]
            self.agent = await asyncio.create_subprocess_exec(*command, cwd=self.directory, env=environment, stderr=log)
        await self.until(lambda: self.kubelet.registered().get(self.resource), "registered")

    def vendor_options(self) -> list[str]:
        """What the agent is told of its vendor."""
        return ["--plugin", "acme.py", "--allow", "acme"]

    def kill_agent(self) -> None:
        """As nothing but SIGKILL does it."""
        assert self.agent is not None
        self.agent.kill()

    async def down(self) -> None:
        for tenant in self.tenants:
            tenant.stop()
        if self.agent is not None and self.agent.returncode is None:
            self.agent.terminate()
            assert await self.agent.wait() in (0, -9), "killed by the test, or ended in order"
        await self.kubelet.stop()
        self.client.close()
        await self.api.stop()

    async def until(self, holds: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        give_up = time.monotonic() + seconds
        while True:
            answer = holds()
            answer = await answer if asyncio.iscoroutine(answer) else answer
            if answer:
                return answer
            if time.monotonic() > give_up:
                raise AssertionError(f"not {what} after {seconds} s\n{self.log()[-4000:]}")
            await asyncio.sleep(0.05)

    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    async def pod(self, name: str, memory: int = GIB, annotations: dict[str, str] | None = None) -> dict[str, Any]:
        """A pod with a share of the device, started; what its container sees."""
        uid = await self.bound(name, share(memory, 10), annotations)
        views: list[dict[str, Any]] = await self.until(lambda: [view for view in self.started if view["podUID"] == uid], f"{name} started")
        return views[-1]

    async def bound(self, name: str, offer: Offer, annotations: dict[str, str] | None = None, device: str | None = None) -> str:
        """A pod with a grant, bound to the node; its UID. Whether it starts is the agent's to say."""
        spec = {"containers": [{"name": "main", "image": "x", "resources": {"limits": {self.resource: "1"}}}], "restartPolicy": "Always"}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations or {}}, "spec": spec}
        made = await self.client.call(self.client.create, path("pods", namespace="default"), body)
        uid = made["metadata"]["uid"]
        chosen = device or self.device
        held = DeviceGrant(device_id=chosen, device_name=f"{self.vendor}-0", vendor=self.vendor, resource=self.resource, offer=offer)
        owner = Owner(kind="pod", uid=uid, namespace="default", name=name)
        grant = self.grants[name] = PodGrant(owner=owner, node=NODE, containers=(ContainerGrant(container="main", devices=(held,)),))
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "uid": uid, "annotations": {GRANT_ANNOTATION: encode_grant(grant)}},
            "target": {"kind": "Node", "name": NODE},
        }
        await self.client.call(self.client.create, path("pods", namespace="default", name=name, subresource="binding"), binding)
        return str(uid)

    def directory_of(self, name: str) -> Path:
        return self.directory / "state" / "containers" / f"{self.grants[name].owner.uid}_main" / "enforcement"

    def tenant(self, name: str, **how: Any) -> Tenant:
        environment = {"HAMI_GRANT": f"{self.grants[name].owner.uid}/main"}
        self.tenants.append(Tenant(containers.state_path(self.directory_of(name)), environment=environment, **how))
        return self.tenants[-1]

    def measures(self, **devices: list[tuple[int, int]]) -> None:
        temporary = self.directory / "measured.new"
        temporary.write_text(json.dumps(devices))
        temporary.rename(self.directory / "measured.json")

    async def events(self, reason: str) -> list[str]:
        found = await self.client.call(self.client.list, path("events", namespace="default"))
        return [event["message"] for event in found["items"] if event["reason"] == reason]


def mounts(view: dict[str, Any]) -> dict[str, str]:
    """Container path → host path."""
    return {mount["containerPath"]: mount["hostPath"] for mount in view["mounts"]}


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
