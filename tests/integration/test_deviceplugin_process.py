# SPDX-License-Identifier: Apache-2.0
"""The agent as a process between a real HTTP API server and the kubelet double, with a one-file vendor. Kills included."""

from __future__ import annotations

import asyncio
import copy
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.model import ContainerGrant, DeviceGrant, Owner, PodGrant, share
from hami_framework.sandbox.apiserver import ApiServer
from hami_framework.sandbox.kubelet.node import KubeletDouble
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.kubelet.paths import KubeletPaths

XPU = "acme.com/xpu"
NODE = "n1"
GIB = 2**30

VENDOR = """
from pathlib import Path
from hami_framework import Capacity, ContainerEdits, Device, DeviceClass, Health, ResourceNames, hookimpl

HAMI_SPEC_VERSION = "1"
CLASS = DeviceClass(model="Xpu", capacity=Capacity(memory_bytes=8 * 2**30, shares=5))

@hookimpl
def hami_resources():
    return ResourceNames(count="acme.com/xpu")

@hookimpl
def hami_discover(host):
    return [Device(id=f"x{n}", index=n, device_class=CLASS) for n in range(4)]

@hookimpl
def hami_health(host, devices):
    sick = host.path("/sick").read_text().split() if host.path("/sick").exists() else []
    return {d.id: Health(state="unhealthy", reason="it is on the list") if d.id in sick else Health() for d in devices}

@hookimpl
def hami_allocate(grant, devices):
    if Path(grant.directory).parents[1].joinpath("refuse").exists():
        raise RuntimeError("told to refuse")
    return ContainerEdits(env={"ACME_DEVICES": ",".join(d.id for d in devices)})

@hookimpl
def hami_release(grant, devices):
    with Path(grant.directory).parents[1].joinpath("released").open("a") as log:
        log.write(f"{grant.owner.uid}/{grant.container}\\n")
"""

KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{{name: lab, cluster: {{server: "{url}"}}}}]
users: [{{name: lab, user: {{}}}}]
contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]
current-context: lab
"""


class Lab:
    """API server and kubelet double in this process, the agent in its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths = KubeletPaths(
            plugin_dir=directory / "k" / "device-plugins",
            pod_resources_socket=directory / "k" / "pr.sock",
            cdi_dirs=(directory / "cdi",),
            root=directory / "root",
            real_dirs=(directory / "state",),
        )
        self.api = ApiServer(definitions=(inventories.CRD,))
        self.agent: asyncio.subprocess.Process | None = None
        self.started: list[dict[str, Any]] = []

    async def up(self) -> None:
        await self.api.start()
        (self.directory / "acme.py").write_text(VENDOR)
        (self.directory / "kubeconfig").write_text(KUBECONFIG.format(url=self.api.url))
        self.client = KubeClient(Credentials(server=self.api.url))
        options = KubeletOptions(seed=5, time_scale=0.05, node_status_lag_s=0.01)
        self.kubelet = KubeletDouble(NODE, self.api.url, self.paths, options=options)
        self.kubelet.on_container_start = self.started.append
        await self.kubelet.start()

    async def start_agent(self) -> None:
        arguments = ["--node", NODE, "--kubeconfig", "kubeconfig", "--kubelet-dir", "k", "--pod-resources-socket", "k/pr.sock", "--cdi-dir", "cdi"]
        arguments += [
            "--state-dir",
            str(self.directory / "state"),
            "--root",
            "root",
            "--plugin",
            "acme.py",
            "--allow",
            "acme",
            "--wait-seconds",
            "2",
            "--grace-seconds",
            "1",
        ]
        with (self.directory / "agent.log").open("ab") as log:
            environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
            command = [sys.executable, "-m", "hami_framework.deviceplugin", *arguments]
            self.agent = await asyncio.create_subprocess_exec(*command, cwd=self.directory, env=environment, stderr=log)
        await self.until(lambda: self.kubelet.registered().get(XPU), "registered")

    async def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        await self.agent.wait()

    async def down(self) -> None:
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
                raise AssertionError(f"not {what} after {seconds} s\n{(self.directory / 'agent.log').read_text()[-4000:]}")
            await asyncio.sleep(0.02)

    async def pod(
        self,
        name: str,
        device: str,
        *,
        memory: int = GIB,
        init_device: str | None = None,
        owner: str | None = None,
        run: str | None = None,
        restart: str = "Never",
    ) -> str:
        """Create a pod of one slot and bind it with its grant; its UID."""
        limits = {"resources": {"limits": {XPU: "1"}}}
        spec: dict[str, Any] = {"containers": [{"name": "main", "image": "x", **limits}], "restartPolicy": restart}
        parts = [ContainerGrant(container="main", devices=(device_grant(device, memory),))]
        if init_device:
            spec["initContainers"] = [{"name": "init", "image": "x", **limits}]
            parts.insert(0, ContainerGrant(container="init", kind="init", devices=(device_grant(init_device, memory),)))
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": {"sandbox.hami.io/run-seconds": run} if run else {}}, "spec": spec}
        made = await self.client.call(self.client.create, path("pods", namespace="default"), body)
        uid: str = made["metadata"]["uid"]
        grant = PodGrant(owner=Owner(kind="pod", uid=owner or uid, namespace="default", name=name), node=NODE, containers=tuple(parts))
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "uid": uid, "annotations": {GRANT_ANNOTATION: encode_grant(grant)}},
            "target": {"kind": "Node", "name": NODE},
        }
        await self.client.call(self.client.create, path("pods", namespace="default", name=name, subresource="binding"), binding)
        return uid

    async def delete(self, name: str) -> None:
        await self.client.call(self.client.delete, path("pods", namespace="default", name=name), grace_seconds=0)

    async def rejected(self) -> set[str]:
        """Pods that kubelet failed at admission: terminal, and no agent can help."""
        pods = await self.client.call(self.client.list, path("pods", namespace="default"))
        return {pod["metadata"]["uid"] for pod in pods["items"] if pod.get("status", {}).get("reason") == "UnexpectedAdmissionError"}

    def views(self, uid: str) -> list[dict[str, Any]]:
        return [copy.deepcopy(view) for view in self.started if view["podUID"] == uid]

    def wrong(self) -> list[dict[str, Any]]:
        """Container starts whose edits are not their own."""
        return [view for view in self.started if view["env"].get("HAMI_GRANT") != f"{view['podUID']}/{view['container']}"]

    async def inventory(self) -> dict[str, Any]:
        return await self.client.call(self.client.get, path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION, name=NODE))

    def released(self) -> list[str]:
        log = self.directory / "state" / "released"
        return log.read_text().split() if log.exists() else []


def device_grant(device: str, memory: int) -> DeviceGrant:
    return DeviceGrant(device_id=device, device_name=f"acme-{device}", vendor="acme", resource=XPU, offer=share(memory, 10))


@pytest.fixture
async def lab(short_directory: Path) -> AsyncIterator[Lab]:
    lab = Lab(short_directory)
    await lab.up()
    try:
        await lab.start_agent()
        yield lab
    finally:
        await lab.down()


async def test_every_pod_of_a_burst_sees_its_own_grant_and_slots_are_reused(lab: Lab) -> None:
    for generation in range(2):
        names = [f"p{generation}-{number}" for number in range(15)]
        uids = await asyncio.gather(*(lab.pod(name, f"x{number % 4}") for number, name in enumerate(names)))
        await lab.until(partial(all_started, lab, uids), "all started")
        assert lab.wrong() == []
        assert [lab.views(uid)[0]["env"]["ACME_DEVICES"] for uid in uids] == [f"x{number % 4}" for number in range(15)]
        await asyncio.gather(*(lab.delete(name) for name in names))
        await lab.until(partial(all_released, lab, uids), "released")
    assert list((lab.directory / "cdi").iterdir()) == []


def all_started(lab: Lab, uids: list[str]) -> bool:
    return all(lab.views(uid) for uid in uids)


def all_released(lab: Lab, uids: list[str]) -> bool:
    return {f"{uid}/main" for uid in uids} <= set(lab.released())


async def test_an_init_container_and_the_app_share_a_slot_and_each_sees_its_own(lab: Lab) -> None:
    uid = await lab.pod("p", "x0", init_device="x1")

    await lab.until(lambda: len(lab.views(uid)) == 2, "both started")

    assert lab.wrong() == []
    assert [(view["container"], view["env"]["ACME_DEVICES"]) for view in lab.views(uid)] == [("init", "x1"), ("main", "x0")]


async def test_an_agent_killed_in_a_burst_comes_back_and_loses_nothing(lab: Lab) -> None:
    uids = await asyncio.gather(*(lab.pod(f"p{number}", f"x{number % 4}") for number in range(10)))
    await lab.until(lambda: len(lab.started) >= 3, "some started")
    await lab.kill_agent()
    await lab.start_agent()
    uids += await asyncio.gather(*(lab.pod(f"q{number}", f"x{number % 4}") for number in range(5)))

    async def done() -> bool:
        return all(lab.views(uid) for uid in set(uids) - await lab.rejected())

    await lab.until(done, "all that kubelet admitted started")
    assert sum(bool(lab.views(uid)) for uid in uids) >= 8
    assert lab.wrong() == []
    await lab.kill_agent()
    await asyncio.gather(*(lab.delete(f"p{number}") for number in range(10)))
    await lab.start_agent()
    wanted = {f"{view['podUID']}/main" for view in lab.started if view["pod"].startswith("p")}
    await lab.until(lambda: wanted <= set(lab.released()), "released what ended while the agent was dead")


async def test_kubelet_restarts_and_the_agent_registers_again(lab: Lab) -> None:
    uid = await lab.pod("before", "x0")
    await lab.until(lambda: lab.views(uid), "started")

    await lab.kubelet.restart()
    await lab.until(lambda: lab.kubelet.registered().get(XPU) == 20, "registered again", 5.0)

    after = await lab.pod("after", "x1")
    await lab.until(lambda: lab.views(after), "started")
    assert lab.wrong() == []


async def test_a_reboot_brings_the_containers_back_with_the_same_grants(lab: Lab) -> None:
    uid = await lab.pod("p", "x2")
    await lab.until(lambda: lab.views(uid), "started")

    await lab.kubelet.reboot()
    await lab.until(lambda: len(lab.views(uid)) == 2, "started again")

    assert lab.wrong() == []
    assert [view["env"]["ACME_DEVICES"] for view in lab.views(uid)] == ["x2", "x2"]


async def test_a_prestart_that_kubelet_skips_never_shows_another_pods_grant(lab: Lab) -> None:
    """kubelet skips PreStart after its own restart until the agent has registered; here the agent is dead meanwhile."""
    first = await lab.pod("first", "x0")
    await lab.until(lambda: lab.views(first), "started")
    await lab.delete("first")
    await lab.until(lambda: f"{first}/main" in lab.released(), "released")
    second = await lab.pod("second", "x1", restart="Always")
    await lab.until(lambda: lab.views(second), "started")

    await lab.kill_agent()
    await lab.kubelet.restart()
    await asyncio.sleep(0.2)
    lab.kubelet.restart_container(second, "main")
    await asyncio.sleep(0.5)
    await lab.start_agent()
    await lab.until(lambda: len(lab.views(second)) >= 2, "started again")

    assert lab.wrong() == []
    assert {view["env"]["ACME_DEVICES"] for view in lab.views(second)} == {"x1"}


async def test_a_device_that_fails_takes_its_slots_down_and_recovers(lab: Lab) -> None:
    await lab.until(lambda: lab.kubelet.registered() == {XPU: 20, "hami.io/accelerator": 20}, "all healthy")
    generation = (await published(lab))["spec"]["generation"]

    (lab.directory / "root").mkdir(exist_ok=True)
    (lab.directory / "root" / "sick").write_text("x1")
    await lab.until(lambda: lab.kubelet.registered() == {XPU: 15, "hami.io/accelerator": 15}, "unhealthy at kubelet", 4.0)
    sick = await published(lab, lambda spec: spec["generation"] > generation)
    assert [(one["id"], one["health"]["reason"]) for one in sick["spec"]["devices"] if one.get("health")] == [("x1", "it is on the list")]

    (lab.directory / "root" / "sick").unlink()
    await lab.until(lambda: lab.kubelet.registered() == {XPU: 20, "hami.io/accelerator": 20}, "recovered at kubelet", 4.0)
    well = await published(lab, lambda spec: spec["generation"] > sick["spec"]["generation"])
    assert not any(one.get("health") for one in well["spec"]["devices"])

    version = well["metadata"]["resourceVersion"]
    await asyncio.sleep(1.2)
    assert (await lab.inventory())["metadata"]["resourceVersion"] == version, "written only on change"


async def published(lab: Lab, holds: Callable[[dict[str, Any]], bool] = lambda spec: len(spec["devices"]) == 4) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        objects = await lab.client.call(lab.client.list, path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION))
        return next((one for one in objects["items"] if holds(one["spec"])), None)

    answer: dict[str, Any] = await lab.until(found, "published as expected", 4.0)
    return answer


async def said(lab: Lab, state: str) -> dict[str, Any]:
    """The object, once its agent's last word is this."""

    async def found() -> dict[str, Any] | None:
        one = await lab.inventory()
        return one if (one.get("status") or {}).get("agent", {}).get("state") == state else None

    answer: dict[str, Any] = await lab.until(found, f"said to be {state}", 4.0)
    return answer


async def test_the_agent_says_of_itself_that_it_is_ready_and_that_it_stops(lab: Lab) -> None:
    await published(lab)
    (condition,) = (await said(lab, "running"))["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Ready", "True", "Registered")

    assert lab.agent is not None
    lab.agent.terminate()
    assert await lab.agent.wait() == 0
    (condition,) = (await said(lab, "stopping"))["status"]["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "Stopping")


async def test_a_restart_of_the_agent_writes_no_inventory(lab: Lab) -> None:
    await published(lab)
    before = await said(lab, "running")
    await lab.kill_agent()
    await lab.start_agent()
    await asyncio.sleep(2.0)

    after = await lab.inventory()
    assert after["spec"] == before["spec"], "the generation stands in it"
    assert after["status"]["conditions"] == before["status"]["conditions"], "Ready since then"
    await asyncio.sleep(1.0)
    assert (await lab.inventory())["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"], "its status is written once"


async def test_a_foreign_grant_never_takes_effect_and_becomes_an_event(lab: Lab) -> None:
    uid = await lab.pod("p", "x0", owner="somebody-else")

    async def events() -> list[str]:
        found = await lab.client.call(lab.client.list, path("events", namespace="default"))
        return [one["message"] for one in found["items"] if one["involvedObject"].get("uid") == uid and one["reason"] == "GrantRefused"]

    (message,) = await lab.until(events, "reported")
    assert "carries the grant of another owner: pod with UID somebody-else" in message
    assert lab.views(uid) == []


async def test_a_vendor_that_refuses_is_asked_again_by_kubelet(lab: Lab) -> None:
    (lab.directory / "state" / "refuse").touch()
    uid = await lab.pod("p", "x0")
    await asyncio.sleep(0.5)
    assert lab.views(uid) == []
    (lab.directory / "state" / "refuse").unlink()

    await lab.until(lambda: lab.views(uid), "started")
    assert lab.wrong() == []


async def test_random_kills_of_agent_and_kubelet_never_cross_two_grants(lab: Lab) -> None:
    """Seeded; `HAMI_TEST_DEEP=1` runs ten times the rounds. After the last kill everything that kubelet admitted runs with its own grant."""
    rounds = 30 if os.environ.get("HAMI_TEST_DEEP") else 3
    draw = random.Random(11)
    for turn in range(rounds):
        pods = {await lab.pod(f"p{turn}-{number}", f"x{draw.randrange(4)}", restart="Always"): number for number in range(6)}
        await asyncio.sleep(draw.uniform(0.0, 0.2))
        if draw.random() < 0.6:
            await lab.kill_agent()
            await asyncio.sleep(draw.uniform(0.0, 0.2))
            await lab.start_agent()
        if draw.random() < 0.6:
            await lab.kubelet.restart()
        rejected = await settled(lab, list(pods))
        assert lab.wrong() == []
        for number in pods.values():
            await lab.delete(f"p{turn}-{number}")
        await lab.until(partial(all_released, lab, [uid for uid in pods if uid not in rejected and lab.views(uid)]), "released")
    await lab.until(lambda: not list((lab.directory / "cdi").iterdir()), "tidy")


async def settled(lab: Lab, uids: list[str]) -> set[str]:
    """Wait until every pod has started or was rejected at admission; the rejected."""

    async def done() -> set[str] | None:
        rejected = await lab.rejected()
        return rejected | {""} if all(uid in rejected or lab.views(uid) for uid in uids) else None

    answer: set[str] = await lab.until(done, "all settled")
    return answer
