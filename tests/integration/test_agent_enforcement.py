# SPDX-License-Identifier: Apache-2.0
"""The agent as a process, with a vendor whose shares are held by a library: files, limits that change, and those who go round it.

The driver is a file that says what it measures; the tenants are real processes that keep books as the library does.
"""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.enforcement import container as containers
from hami_framework.enforcement.region import Region
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.model import GIB, MIB, ContainerGrant, DeviceGrant, Owner, PodGrant, share
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
    """API server and kubelet double here, the agent in its own process."""

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
        arguments += ["--state-dir", str(self.directory / "state"), "--root", "root", "--plugin", "acme.py", "--allow", "acme"]
        arguments += ["--wait-seconds", "2", "--grace-seconds", "1", *options]
        with (self.directory / "agent.log").open("ab") as log:
            environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
            command = [sys.executable, "-m", "hami_framework.deviceplugin", *arguments]
            self.agent = await asyncio.create_subprocess_exec(*command, cwd=self.directory, env=environment, stderr=log)
        await self.until(lambda: self.kubelet.registered().get(XPU), "registered")

    async def down(self) -> None:
        for tenant in self.tenants:
            tenant.stop()
        if self.agent is not None and self.agent.returncode is None:
            self.agent.terminate()
            assert await self.agent.wait() == 0
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
        """A pod with a share of x0, started; what its container sees."""
        spec = {"containers": [{"name": "main", "image": "x", "resources": {"limits": {XPU: "1"}}}], "restartPolicy": "Always"}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations or {}}, "spec": spec}
        made = await self.client.call(self.client.create, path("pods", namespace="default"), body)
        uid = made["metadata"]["uid"]
        device = DeviceGrant(device_id="x0", device_name="acme-x0", vendor="acme", resource=XPU, offer=share(memory, 10))
        owner = Owner(kind="pod", uid=uid, namespace="default", name=name)
        grant = self.grants[name] = PodGrant(owner=owner, node=NODE, containers=(ContainerGrant(container="main", devices=(device,)),))
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "uid": uid, "annotations": {GRANT_ANNOTATION: encode_grant(grant)}},
            "target": {"kind": "Node", "name": NODE},
        }
        await self.client.call(self.client.create, path("pods", namespace="default", name=name, subresource="binding"), binding)
        views: list[dict[str, Any]] = await self.until(lambda: [view for view in self.started if view["podUID"] == uid], f"{name} started")
        return views[-1]

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


@pytest.fixture
async def lab(short_directory: Path, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    made = Lab(short_directory)
    try:
        await made.up(*getattr(request, "param", ()))
        yield made
    finally:
        await made.down()


def mounts(view: dict[str, Any]) -> dict[str, str]:
    """Container path → host path."""
    return {mount["containerPath"]: mount["hostPath"] for mount in view["mounts"]}


async def test_a_container_starts_with_its_policy_its_books_and_its_library(lab: Lab) -> None:
    seen = mounts(await lab.pod("p", memory=3 * GIB))
    directory = lab.directory_of("p")
    assert seen["/run/hami/policy"] == str(directory / "policy")
    assert seen["/run/hami/state"] == str(directory / "state")
    assert Path(seen["/etc/ld.so.preload"]).read_text() == "/run/hami/lib/libacme.so\n"
    assert Path(seen["/run/hami/lib/libacme.so"]).read_bytes() == b"not really"
    (device,) = containers.policy_of(directory).devices
    assert (device.identities, device.memory_bytes, device.core_milli) == ((("uuid", "x0"),), 3 * GIB, 10_000)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_a_pod_may_do_without(lab: Lab) -> None:
    view = await lab.pod("p", annotations={"hami.io/enforcement": "none"})
    assert "/etc/ld.so.preload" not in mounts(view)
    assert not lab.directory_of("p").exists()
    told = json.loads(Path(mounts(view)["/run/hami/limits.json"]).read_text())
    (held,) = told["enforcement"]
    assert held["isolation"] == {}
    assert "opted out" in held["mechanism"]


async def test_the_dead_are_taken_out_and_a_changed_limit_takes_effect(lab: Lab) -> None:
    await lab.pod("p")
    books = Region(containers.state_path(lab.directory_of("p")))
    lab.tenant("p", slot=0, held=500)
    lab.tenant("p", slot=1, held=4096).stop()
    await lab.until(lambda: [process.slot for process in books.usage(1).processes] == [0], "taken out")

    grant = lab.grants["p"]
    (container,) = grant.containers
    lower = structs.replace(container, devices=(structs.replace(container.devices[0], offer=share(GIB // 2, 5)),))
    annotation = {GRANT_ANNOTATION: encode_grant(structs.replace(grant, revision=2, containers=(lower,)))}
    pod = path("pods", namespace="default", name="p")
    await lab.client.call(lab.client.patch, pod, {"metadata": {"annotations": annotation}})

    def changed() -> bool:
        return containers.policy_of(lab.directory_of("p")).devices[0].memory_bytes == GIB // 2

    await lab.until(changed, "changed")
    with containers.control_of(lab.directory_of("p")) as control:
        assert control.generation == containers.policy_of(lab.directory_of("p")).generation == 2

    await lab.client.call(lab.client.delete, pod, grace_seconds=0)
    await lab.until(lambda: not lab.directory_of("p").exists(), "released")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()


@pytest.mark.parametrize("lab", [("--on-bypass", "suspend", "--metrics-listen", f"127.0.0.1:{PORT}")], indirect=True, ids=["suspend"])
async def test_who_goes_round_the_library_is_found_within_five_seconds_and_suspended(lab: Lab) -> None:
    await lab.pod("honest")
    await lab.pod("rogue")
    honest = lab.tenant("honest", held=200 * MIB)
    rogue = lab.tenant("rogue", held=10 * MIB)
    lab.measures(x0=[(honest.pid, 210 * MIB)])
    await asyncio.sleep(1.5)
    began = time.monotonic()
    lab.measures(x0=[(honest.pid, 210 * MIB), (rogue.pid, 3 * GIB)])

    def suspended() -> bool:
        with containers.control_of(lab.directory_of("rogue")) as control:
            return control.suspended

    await lab.until(suspended, "suspended")
    assert time.monotonic() - began < 5 + 3, "5 s, and some for a busy machine"
    await lab.until(lambda: lab.events("LimitBypassed"), "told")
    assert [message.split(": ")[:2] for message in await lab.events("LimitBypassed")] == [["container main", "more-than-booked"]]
    with containers.control_of(lab.directory_of("honest")) as control:
        assert not control.suspended
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics").read().decode())
    labels = 'container="main",kind="more-than-booked",namespace="default",node="n1",pod="rogue"'
    assert f"hami_container_findings_total{{{labels}}} 1.0" in text
    assert 'hami_container_memory_used_bytes{container="main",device="x0",namespace="default",node="n1",pod="honest"}' in text


@pytest.mark.parametrize("lab", [("--on-bypass", "evict")], indirect=True, ids=["evict"])
async def test_a_scribbled_state_file_costs_the_pod_its_place_where_the_operator_wants_it(lab: Lab) -> None:
    await lab.pod("p")
    state = containers.state_path(lab.directory_of("p"))
    state.write_bytes(b"x" * 4096)

    async def gone() -> bool:
        pods = await lab.client.call(lab.client.list, path("pods", namespace="default"))
        return not [pod for pod in pods["items"] if not pod["metadata"].get("deletionTimestamp")]

    await lab.until(gone, "evicted")
    assert (await lab.events("LimitBypassed"))[0].startswith("container main: layout: ")


async def test_an_agent_without_metrics_stays_small(lab: Lab) -> None:
    await lab.pod("p")
    await asyncio.sleep(1.5)
    assert lab.agent is not None
    status = Path(f"/proc/{lab.agent.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident < 56 * 1024, "45 MB is the budget as benchmarks.agent measures it; here without the settings of a node"
