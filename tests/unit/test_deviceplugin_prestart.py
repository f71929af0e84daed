# SPDX-License-Identifier: Apache-2.0
"""The way from slot ids to a CDI file, and back when the container is gone; kubelet, vendors and the API server are small fakes."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.deviceplugin import limits
from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.grants import GrantRefused, PodBook
from hami_framework.deviceplugin.identity import Listed, read_checkpoint
from hami_framework.deviceplugin.prestart import PreStart, Settings
from hami_framework.deviceplugin.release import Releaser, sweep
from hami_framework.deviceplugin.state import StateFile
from hami_framework.errors import PluginError, Unavailable
from hami_framework.model import (
    GIB,
    SOFT,
    Capacity,
    ContainerEdits,
    ContainerGrant,
    Device,
    DeviceClass,
    DeviceGrant,
    Enforcement,
    Grant,
    Offer,
    Owner,
    PodGrant,
    Rejection,
    Usage,
    VendorInfo,
    share,
)
from hami_framework.model.request import ContainerKind

XPU = "acme.com/xpu"
Json = Mapping[str, Any]


def device_grant(device: str = "d0", offer: Offer | None = None, resource: str = XPU, vendor: str = "acme") -> DeviceGrant:
    return DeviceGrant(device_id=device, device_name=device, vendor=vendor, resource=resource, offer=offer or share(GIB))


def pod_grant(uid: str, *containers: ContainerGrant, node: str = "n1") -> PodGrant:
    return PodGrant(owner=Owner(kind="pod", uid=uid, namespace="ns", name=f"pod-{uid}"), node=node, containers=containers)


def container(*devices: DeviceGrant, name: str = "main", kind: ContainerKind = "app") -> ContainerGrant:
    return ContainerGrant(container=name, kind=kind, devices=devices or (device_grant(),))


def pod_object(grant: PodGrant | None, uid: str, spec: Json | None = None) -> dict[str, Any]:
    annotations = {GRANT_ANNOTATION: encode_grant(grant)} if grant else {}
    metadata = {"uid": uid, "namespace": "ns", "name": f"pod-{uid}", "annotations": annotations}
    return {"metadata": metadata, "spec": dict(spec or {"containers": [{"name": "main"}], "nodeName": "n1"}), "status": {"phase": "Pending"}}


class Vendors:
    """Vendor workers that note what they are asked, and fail on demand."""

    def __init__(self) -> None:
        device_class = DeviceClass(model="X", vendor="acme", capacity=Capacity(memory_bytes=8 * GIB, shares=10))
        self.vendors = {"acme": VendorInfo(name="acme"), "zeta": VendorInfo(name="zeta")}
        self.all = {
            "acme": [Device(id=f"d{n}", name=f"d{n}", device_class=device_class) for n in range(3)],
            "zeta": [Device(id="z0", device_class=device_class)],
        }
        self.calls: list[tuple[str, str, str, str]] = []
        self.failures = 0
        self.release_failures = 0
        self.gate: asyncio.Event | None = None

    def devices(self, vendor: str) -> Sequence[Device]:
        return self.all[vendor]

    async def allocate(self, vendor: str, grant: Grant) -> ContainerEdits:
        self.calls.append(("allocate", vendor, grant.owner.uid, grant.container))
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise PluginError(vendor, "hami_allocate", "out of luck")
        (Path(grant.directory) / f"{vendor}.made").write_text("x")
        return ContainerEdits(env={f"{vendor.upper()}_DEVICES": ",".join(device.device_id for device in grant.devices)})

    async def enforce(self, vendor: str, grant: Grant) -> Enforcement:
        return Enforcement(isolation=SOFT, mechanism=f"{vendor}'s word", edits=ContainerEdits(env={f"{vendor.upper()}_HELD": "1"}))

    async def release(self, vendor: str, grant: Grant) -> None:
        self.calls.append(("release", vendor, grant.owner.uid, grant.container))
        if self.release_failures:
            self.release_failures -= 1
            raise PluginError(vendor, "hami_release", "busy")

    async def usage(self, vendor: str) -> Sequence[Usage]:
        return ()

    def asked(self, verb: str) -> list[tuple[str, str, str]]:
        return [call[1:] for call in self.calls if call[0] == verb]


class Api:
    """The API server's answers to direct reads, and the events it was sent."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], Json] = {}
        self.events: list[tuple[str, Rejection]] = []

    async def pod(self, namespace: str, name: str) -> Json | None:
        return self.pods.get((namespace, name))

    async def inventory(self, node: str) -> Json | None:
        return None

    async def create_inventory(self, body: Json) -> None: ...

    async def replace_inventory(self, node: str, body: Json) -> None: ...

    async def report(self, pod: Json, rejection: Rejection) -> None:
        self.events.append((pod["metadata"]["uid"], rejection))

    async def warn(self, pod: Json, reason: str, message: str) -> None: ...

    async def evict(self, pod: Json) -> None: ...


class Listing:
    """kubelet's pod-resources."""

    def __init__(self) -> None:
        self.rows: tuple[Listed, ...] = ()

    async def snapshot(self) -> tuple[Listed, ...]:
        return self.rows


class Node:
    """One node: what survives a kill is on disk, `restart` makes everything else anew."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vendors, self.api, self.listing = Vendors(), Api(), Listing()
        self.checkpoint = directory / "kubelet_internal_checkpoint"
        self.entries: list[tuple[str, str, str, tuple[str, ...]]] = []
        self.cdi = CdiDirectory(directory / "cdi")
        self.boot = "boot-1"
        self.restart()

    def restart(self) -> None:
        """What a new agent process begins with."""
        self.pods = PodBook()
        self.pods.synced = True
        self.state = StateFile.load(self.directory / "state" / "agent.json")
        sweep(self.cdi, self.state)
        common: dict[str, Any] = {"pods": self.pods, "pod_resources": self.listing, "workers": self.vendors, "state": self.state, "cdi": self.cdi}
        self.releaser = Releaser(state_directory=self.directory / "state", grace_seconds=0.05, **common)
        settings = Settings(
            node="n1", boot=self.boot, state_directory=self.directory / "state", checkpoint=self.checkpoint, wait_seconds=0.3, look_up_seconds=0.1
        )
        self.prestart = PreStart(settings, releaser=self.releaser, cluster=self.api, **common)

    def hold(self, uid: str, name: str, *slots: str, resource: str = XPU) -> None:
        """kubelet gives slots to a container; they leave whoever had them before, unless it is the same pod."""
        self.entries = [one for one in self.entries if one[0] == uid or not set(slots) & set(one[3])]
        self.entries.append((uid, name, resource, slots))
        rows = [{"PodUID": u, "ContainerName": c, "ResourceName": r, "DeviceIDs": {"-1": list(s)}} for u, c, r, s in self.entries]
        self.checkpoint.write_text(json.dumps({"Data": {"PodDeviceEntries": rows, "RegisteredDevices": {}}, "Checksum": 0}))

    def bind(self, grant: PodGrant, spec: Json | None = None) -> None:
        self.pods.upsert(pod_object(grant, grant.owner.uid, spec))

    async def start(self, *slots: str, resource: str = XPU) -> None:
        await self.prestart(resource, frozenset(slots))

    def env(self, slot: str) -> dict[str, str]:
        (device,) = json.loads((self.cdi.path / f"hami.io-slot_{slot}.json").read_text())["devices"]
        return dict(pair.split("=", 1) for pair in device["containerEdits"]["env"])

    def end(self, uid: str) -> None:
        pod = dict(self.pods.get(uid) or {})
        self.pods.upsert({**pod, "status": {"phase": "Succeeded"}})


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_a_container_gets_its_own_grant(node: Node) -> None:
    node.bind(pod_grant("u1", container(device_grant("d1", share(2 * GIB, 30)))))
    node.hold("u1", "main", "s1")

    await node.start("s1")

    assert node.env("s1") == {"HAMI_GRANT": "u1/main", "ACME_DEVICES": "d1", "ACME_HELD": "1", "HAMI_SLOT_S1": "held"}
    told = limits.read(node.directory / "state" / "containers" / "u1_main" / "limits.json")
    assert (told.owner.uid, told.container, told.devices[0].limit.memory_bytes, told.devices[0].limit.core_percent) == ("u1", "main", 2 * GIB, 30)
    assert [(held.vendor, held.isolation, held.mechanism) for held in told.enforcement] == [("acme", SOFT, "acme's word")]


async def test_two_identical_pods_get_their_own_in_any_order(node: Node) -> None:
    order = list(range(8))
    random.Random(7).shuffle(order)
    for number in order:
        node.bind(pod_grant(f"u{number}", container(device_grant(f"d{number % 3}"))))
    random.Random(8).shuffle(order)
    for number in order:
        node.hold(f"u{number}", "main", f"s{7 - number}")

    await asyncio.gather(*(node.start(f"s{7 - number}") for number in order))

    assert {number: node.env(f"s{7 - number}")["HAMI_GRANT"] for number in order} == {number: f"u{number}/main" for number in order}
    assert {number: node.env(f"s{7 - number}")["ACME_DEVICES"] for number in order} == {number: f"d{number % 3}" for number in order}


async def test_a_slot_used_again_shows_its_new_owner(node: Node) -> None:
    for uid in ("u1", "u2", "u3"):
        node.bind(pod_grant(uid, container(device_grant("d0", share(8 * GIB)))))
        node.hold(uid, "main", "s1")
        await node.start("s1")
        assert node.env("s1")["HAMI_GRANT"] == f"{uid}/main"
        node.end(uid)

    await node.releaser.reconcile()
    assert node.vendors.asked("release") == [("acme", "u1", "main"), ("acme", "u2", "main"), ("acme", "u3", "main")]
    assert node.cdi.slots() == frozenset()


async def test_the_release_of_the_old_owner_leaves_the_new_ones_file(node: Node) -> None:
    node.bind(pod_grant("old", container(device_grant("d0"))))
    node.hold("old", "main", "s1")
    await node.start("s1")
    node.end("old")
    node.bind(pod_grant("new", container(device_grant("d1"))))
    node.hold("new", "main", "s1")
    await node.start("s1")

    await node.releaser.reconcile()

    assert node.env("s1")["HAMI_GRANT"] == "new/main"
    assert node.vendors.asked("release") == [("acme", "old", "main")]


async def test_the_call_waits_for_a_grant_that_becomes_visible(node: Node) -> None:
    node.hold("u1", "main", "s1")
    waiting = asyncio.create_task(node.start("s1"))
    await asyncio.sleep(0.1)
    node.bind(pod_grant("u1", container()))
    await waiting

    assert node.env("s1")["HAMI_GRANT"] == "u1/main"


async def test_a_grant_that_the_watch_does_not_show_is_read_directly(node: Node) -> None:
    node.hold("u1", "main", "s1")
    node.listing.rows = (Listed(namespace="ns", pod="pod-u1", container="main", resource=XPU, ids=frozenset({"s1"})),)
    node.api.pods["ns", "pod-u1"] = pod_object(pod_grant("u1", container()), "u1")

    await node.start("s1")

    assert node.env("s1")["HAMI_GRANT"] == "u1/main"


async def test_a_pod_that_took_over_the_name_is_not_taken_for_the_one_that_holds_the_slot(node: Node) -> None:
    node.hold("old", "main", "s1")
    node.listing.rows = (Listed(namespace="ns", pod="pod-old", container="main", resource=XPU, ids=frozenset({"s1"})),)
    node.api.pods["ns", "pod-old"] = {**pod_object(pod_grant("new", container()), "new")}

    with pytest.raises(Unavailable, match="pod with UID old"):
        await node.start("s1")


@pytest.mark.parametrize(
    ("grant", "words"),
    [
        pytest.param(pod_grant("somebody-else", container()), "grant of another owner", id="wrong UID"),
        pytest.param(pod_grant("u1", container(), node="n2"), "grant for node 'n2'", id="wrong node"),
        pytest.param(pod_grant("u1", container(name="other")), "its grant has 0 devices", id="no such container"),
        pytest.param(pod_grant("u1", container(device_grant("d0"), device_grant("d1"))), "holds 1 slots of acme.com/xpu, its grant has 2", id="wrong count"),
        pytest.param(pod_grant("u1", container(device_grant("d9"))), "no device d9", id="no such device"),
        pytest.param(pod_grant("u1", container(device_grant("d0", share(9 * GIB)))), "memory, device d0", id="more than the device has"),
    ],
)
async def test_a_grant_that_is_not_ours_is_refused_and_reported(node: Node, grant: PodGrant, words: str) -> None:
    node.pods.upsert(pod_object(grant, "u1"))
    node.hold("u1", "main", "s1")

    for _ in range(2):
        with pytest.raises(GrantRefused, match=words):
            await node.start("s1")

    assert [uid for uid, _ in node.api.events] == ["u1"], "reported once"
    assert node.vendors.calls == []
    assert node.cdi.slots() == frozenset()


async def test_a_pod_that_nobody_granted_anything_fails_with_the_reason(node: Node) -> None:
    node.pods.upsert(pod_object(None, "u1"))
    node.hold("u1", "main", "s1")

    with pytest.raises(Unavailable, match="was not bound by the hami scheduler extender"):
        await node.start("s1")


async def test_the_fence_refuses_what_is_over_capacity_with_the_live_grants(node: Node) -> None:
    for uid, slot in (("u1", "s1"), ("u2", "s2")):
        node.bind(pod_grant(uid, container(device_grant("d0", share(5 * GIB)))))
        node.hold(uid, "main", slot)
    await node.start("s1")

    with pytest.raises(GrantRefused, match=f"wanted {5 * GIB}, free {3 * GIB}"):
        await node.start("s2")

    node.end("u1")
    await node.start("s2")
    assert node.vendors.asked("release") == [("acme", "u1", "main")], "the ended pod's part is undone first"


async def test_the_fence_counts_running_pods_even_when_their_records_were_lost(node: Node) -> None:
    running = pod_object(pod_grant("u1", container(device_grant("d0", share(5 * GIB)))), "u1")
    node.pods.upsert({**running, "status": {"phase": "Running"}})
    node.bind(pod_grant("u2", container(device_grant("d0", share(5 * GIB)))))
    node.hold("u2", "main", "s2")

    with pytest.raises(GrantRefused, match=f"free {3 * GIB}"):
        await node.start("s2")


async def test_two_calls_at_once_cannot_both_pass_the_fence(node: Node) -> None:
    for number in range(6):
        node.bind(pod_grant(f"u{number}", container(device_grant("d0", share(3 * GIB)))))
        node.hold(f"u{number}", "main", f"s{number}")

    answers = await asyncio.gather(*(node.start(f"s{number}") for number in range(6)), return_exceptions=True)

    assert sum(answer is None for answer in answers) == 2
    assert sum(isinstance(answer, GrantRefused) for answer in answers) == 4


async def test_a_contradiction_of_pod_resources_is_waited_out(node: Node) -> None:
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")
    node.listing.rows = (Listed(namespace="ns", pod="pod-old", container="main", resource=XPU, ids=frozenset({"s1"})),)
    waiting = asyncio.create_task(node.start("s1"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    node.listing.rows = ()
    await waiting


async def test_a_worker_that_fails_is_an_error_and_the_next_call_succeeds(node: Node) -> None:
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")
    node.vendors.failures = 1

    with pytest.raises(PluginError, match="out of luck"):
        await node.start("s1")
    assert node.cdi.slots() == frozenset()

    await node.start("s1")
    assert node.env("s1")["HAMI_GRANT"] == "u1/main"


async def test_a_cancelled_call_leaves_nothing_half_done_and_can_be_repeated(node: Node) -> None:
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")
    for steps in range(40):
        call = asyncio.create_task(node.start("s1"))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert node.cdi.slots() in (frozenset(), {"s1"})
    node.vendors.gate = asyncio.Event()
    call = asyncio.create_task(node.start("s1"))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    node.vendors.gate = None

    await node.start("s1")

    assert node.env("s1")["HAMI_GRANT"] == "u1/main"
    node.end("u1")
    await node.releaser.reconcile()
    assert node.state.records == {}
    assert not (node.directory / "state" / "containers" / "u1_main").exists()


async def test_a_kill_between_any_two_steps_is_replayed(node: Node) -> None:
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")
    node.vendors.gate = asyncio.Event()
    call = asyncio.create_task(node.start("s1"))
    await asyncio.sleep(0.05)
    assert node.vendors.asked("allocate"), "the vendor is at work"
    killed = call  # kill -9: the coroutine never goes on; what is on disk is all that stays

    node.vendors = Vendors()
    node.restart()
    assert [record.phase for record in node.state.records.values()] == ["preparing"], "the record came before the vendor's work"

    node.pods.upsert({**pod_object(pod_grant("u1", container()), "u1"), "status": {"phase": "Failed"}})
    await node.releaser.reconcile()

    assert node.vendors.asked("release") == [("acme", "u1", "main")], "what was begun is undone"
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)


async def test_after_a_restart_the_files_of_nobody_are_swept_and_the_others_stay(node: Node) -> None:
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")
    await node.start("s1")
    node.cdi.write(["s7"], ContainerEdits(env={"LEFT": "over"}))

    node.restart()

    assert node.cdi.slots() == {"s1"}
    assert node.state.occupied() == {"s1": frozenset({"d0"})}


async def test_after_a_reboot_the_same_call_brings_everything_back(node: Node) -> None:
    grant = pod_grant("u1", container())
    node.bind(grant)
    node.hold("u1", "main", "s1")
    await node.start("s1")
    node.cdi.delete("s1")
    node.boot = "boot-2"
    node.restart()
    node.bind(grant)

    await node.start("s1")

    assert node.env("s1")["HAMI_GRANT"] == "u1/main"


# -- several containers, resources, vendors -----------------------------------------------------------------------

SHARING = {
    "initContainers": [{"name": "init"}, {"name": "side", "restartPolicy": "Always"}],
    "containers": [{"name": "main"}],
    "nodeName": "n1",
}


def finished(name: str, code: int = 0, at: float | None = None) -> dict[str, Any]:
    stamp = datetime.fromtimestamp(time.time() if at is None else at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"name": name, "state": {"terminated": {"exitCode": code, "finishedAt": stamp}}}


async def test_an_init_container_and_a_sidecar_share_a_token(node: Node) -> None:
    grant = pod_grant("u1", container(device_grant("d0"), name="init", kind="init"), container(device_grant("d1"), name="side", kind="sidecar"))
    node.bind(grant, SHARING)
    node.hold("u1", "init", "s1")
    node.hold("u1", "side", "s1")

    await node.start("s1")
    assert (node.env("s1")["HAMI_GRANT"], node.env("s1")["ACME_DEVICES"]) == ("u1/init", "d0")

    with pytest.raises(Unavailable, match="its end is not reported yet"):
        await node.start("s1")

    sidecar = asyncio.create_task(node.start("s1"))
    await asyncio.sleep(0.05)
    done = pod_object(grant, "u1", SHARING)
    done["status"]["initContainerStatuses"] = [finished("init")]
    node.pods.upsert(done)
    await sidecar

    assert (node.env("s1")["HAMI_GRANT"], node.env("s1")["ACME_DEVICES"]) == ("u1/side", "d1")
    assert node.vendors.asked("release") == [("acme", "u1", "init")], "the finished init container's part is undone first"
    assert (node.directory / "state" / "containers" / "u1_side" / "limits.json").exists()
    assert not (node.directory / "state" / "containers" / "u1_init").exists()


async def test_an_init_container_whose_vendor_failed_is_tried_again_at_once(node: Node) -> None:
    node.bind(
        pod_grant("u1", container(name="init", kind="init"), container(name="main")), {"initContainers": [{"name": "init"}], "containers": [{"name": "main"}]}
    )
    node.hold("u1", "init", "s1")
    node.hold("u1", "main", "s1")
    node.vendors.failures = 1
    with pytest.raises(PluginError):
        await node.start("s1")

    await node.start("s1")

    assert node.env("s1")["HAMI_GRANT"] == "u1/init"


async def test_containers_of_one_pod_are_told_apart_by_their_slots(node: Node) -> None:
    node.bind(pod_grant("u1", container(device_grant("d0"), name="a"), container(device_grant("d1"), name="b")), {"containers": [{"name": "a"}, {"name": "b"}]})
    node.hold("u1", "b", "s1")
    node.hold("u1", "a", "s2")

    await asyncio.gather(node.start("s1"), node.start("s2"))

    assert (node.env("s1")["HAMI_GRANT"], node.env("s2")["HAMI_GRANT"]) == ("u1/b", "u1/a")


async def test_several_slots_carry_one_set_of_edits(node: Node) -> None:
    node.bind(pod_grant("u1", container(device_grant("d0"), device_grant("d2"))))
    node.hold("u1", "main", "s2", "s1")

    await node.start("s1", "s2")

    assert node.env("s1")["ACME_DEVICES"] == "d0,d2"
    assert node.env("s2") == {"HAMI_SLOT_S2": "held"}
    assert len(node.vendors.asked("allocate")) == 1


async def test_two_vendors_and_two_resources_in_one_container(node: Node) -> None:
    both = container(device_grant("d0"), device_grant("z0", resource="zeta.com/npu", vendor="zeta"), device_grant("d1", resource="hami.io/accelerator"))
    node.bind(pod_grant("u1", both))
    node.hold("u1", "main", "s1")
    node.hold("u1", "main", "t1", resource="zeta.com/npu")
    node.hold("u1", "main", "n1", resource="hami.io/accelerator")

    await asyncio.gather(node.start("s1"), node.start("t1", resource="zeta.com/npu"), node.start("n1", resource="hami.io/accelerator"))

    assert node.env("s1")["ACME_DEVICES"] == "d0,d1", "a vendor sees all its devices of the container at once"
    assert (node.env("t1")["ZETA_DEVICES"], "HAMI_GRANT" in node.env("t1")) == ("z0", False)
    assert node.env("n1") == {"HAMI_SLOT_N1": "held"}
    assert sorted(node.vendors.asked("allocate")) == [("acme", "u1", "main"), ("zeta", "u1", "main")]
    told = limits.read(node.directory / "state" / "containers" / "u1_main" / "limits.json")
    assert [held.vendor for held in told.enforcement] == ["acme", "zeta"]

    node.end("u1")
    await node.releaser.reconcile()
    assert sorted(node.vendors.asked("release")) == [("acme", "u1", "main"), ("zeta", "u1", "main")]
    assert (node.cdi.slots(), node.state.records) == (frozenset(), {})


async def test_vendors_that_contradict_each_other_are_named(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def contrary(vendor: str, grant: Grant) -> Enforcement:
        return Enforcement(edits=ContainerEdits(env={"ACME_DEVICES": "all"}))

    monkeypatch.setattr(node.vendors, "enforce", contrary)
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")

    with pytest.raises(PluginError, match="two edits set ACME_DEVICES"):
        await node.start("s1")


async def test_a_vendor_that_is_not_installed_or_not_ready_is_named(node: Node) -> None:
    node.bind(pod_grant("u1", container(device_grant(vendor="gone"))))
    node.hold("u1", "main", "s1")
    with pytest.raises(GrantRefused, match="no package of vendor 'gone'"):
        await node.start("s1")

    node.vendors.vendors["acme"] = VendorInfo(name="acme", state="starting")
    node.bind(pod_grant("u2", container()))
    node.hold("u2", "main", "s2")
    with pytest.raises(Unavailable, match="'acme' has not finished discovering"):
        await node.start("s2")


# -- release ------------------------------------------------------------------------------------------------------


async def test_a_release_that_fails_is_tried_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")
    await node.start("s1")
    node.end("u1")
    node.vendors.release_failures = 1

    await node.releaser.reconcile()
    assert len(node.state.records) == 1
    await node.releaser.reconcile()
    assert len(node.vendors.asked("release")) == 1, "not before its pause is over"
    monkeypatch.setattr(node.releaser, "_retry", {})
    await node.releaser.reconcile()
    assert node.state.records == {}


async def test_a_pod_deleted_after_its_containers_stopped_is_released_at_once(node: Node) -> None:
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")
    await node.start("s1")
    node.pods.remove("u1")

    await node.releaser.reconcile()

    assert node.vendors.asked("release") == [("acme", "u1", "main")]


async def test_a_pod_deleted_by_force_keeps_its_devices_while_kubelet_lists_it_and_for_a_grace(node: Node) -> None:
    node.bind(pod_grant("u1", container(device_grant("d0", share(8 * GIB)))))
    node.hold("u1", "main", "s1")
    await node.start("s1")
    running = pod_object(pod_grant("u1", container()), "u1")
    running["status"] = {"phase": "Running", "containerStatuses": [{"name": "main", "state": {"running": {}}}]}
    node.pods.upsert(running)
    node.listing.rows = (Listed(namespace="ns", pod="pod-u1", container="main", resource=XPU, ids=frozenset({"s1"})),)
    node.pods.remove("u1")

    await node.releaser.reconcile()
    assert node.vendors.asked("release") == [], "within the grace"
    await asyncio.sleep(0.06)
    await node.releaser.reconcile()
    assert node.vendors.asked("release") == [], "kubelet lists it"
    node.listing.rows = ()
    await node.releaser.reconcile()
    assert node.vendors.asked("release") == [("acme", "u1", "main")]


async def test_nothing_is_released_before_the_first_list_of_pods(node: Node) -> None:
    node.bind(pod_grant("u1", container()))
    node.hold("u1", "main", "s1")
    await node.start("s1")
    node.restart()
    node.pods.synced = False

    await asyncio.sleep(0.06)
    await node.releaser.reconcile()

    assert node.vendors.asked("release") == []


def test_the_fake_checkpoint_is_what_kubelet_writes(node: Node) -> None:
    node.hold("u1", "main", "s1")

    assert read_checkpoint(node.checkpoint.read_bytes())[0].ids == {"s1"}


async def test_waiting_for_a_change_is_cancelled_even_when_the_change_comes_at_the_same_moment() -> None:
    book = PodBook()
    waiting = asyncio.create_task(book.changed(10))
    await asyncio.sleep(0.01)

    book.upsert(pod_object(None, "u1"))
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
