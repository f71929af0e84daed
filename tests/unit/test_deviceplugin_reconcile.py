# SPDX-License-Identifier: Apache-2.0
"""The reconcile loop over real files and real processes; the driver's figures, the cluster and the vendor are small fakes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.deviceplugin import enforcing, fence
from hami_framework.deviceplugin.grants import PodBook
from hami_framework.deviceplugin.reconcile import OnBypass, Reconciler
from hami_framework.deviceplugin.state import Record, StateFile
from hami_framework.enforcement import container as containers
from hami_framework.enforcement import layout, region
from hami_framework.enforcement.policy import Compute
from hami_framework.enforcement.region import Region
from hami_framework.errors import ConfigError
from hami_framework.model import (
    GIB,
    MIB,
    Capacity,
    ContainerEdits,
    ContainerGrant,
    Device,
    DeviceClass,
    DeviceGrant,
    Enforcement,
    Grant,
    Interceptor,
    Owner,
    PodGrant,
    ProcessUsage,
    Rejection,
    Usage,
    VendorInfo,
    share,
)
from hami_framework.testing.tenant import Tenant

Json = Mapping[str, Any]
CLASS = DeviceClass(model="X", vendor="acme", capacity=Capacity(memory_bytes=8 * GIB, shares=10))


class Vendors:
    """One vendor with one device, and a driver that says what it is told."""

    def __init__(self) -> None:
        self.vendors = {"acme": VendorInfo(name="acme")}
        self.readings: list[Usage] = []

    def devices(self, vendor: str) -> Sequence[Device]:
        return [Device(id="x0", name="x0", device_class=CLASS)]

    async def allocate(self, vendor: str, grant: Grant) -> ContainerEdits:
        return ContainerEdits()

    async def enforce(self, vendor: str, grant: Grant) -> Enforcement:
        return Enforcement()

    async def release(self, vendor: str, grant: Grant) -> None: ...

    async def usage(self, vendor: str) -> Sequence[Usage]:
        return self.readings


class Cluster:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []
        self.evicted: list[str] = []

    async def pod(self, namespace: str, name: str) -> Json | None:
        return None

    async def inventory(self, node: str) -> Json | None:
        return None

    async def create_inventory(self, body: Json) -> None: ...

    async def replace_inventory(self, node: str, body: Json) -> None: ...

    async def report(self, pod: Json, rejection: Rejection) -> None: ...

    async def warn(self, pod: Json, reason: str, message: str) -> None:
        self.warnings.append((reason, message))

    async def evict(self, pod: Json) -> None:
        self.evicted.append(pod["metadata"]["name"])


class Node:
    """A node with containers that have an interceptor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.library = directory / "libacme.so"
        self.library.write_bytes(b"code")
        self.state = StateFile(directory / "agent.json")
        self.pods = PodBook()
        self.vendors, self.cluster = Vendors(), Cluster()
        self.tenants: list[Tenant] = []
        self.grants: dict[str, PodGrant] = {}
        self.reconcilers: list[Reconciler] = []

    def reconciler(self, on_bypass: OnBypass = "report") -> Reconciler:
        made = Reconciler(
            node="n1",
            state_directory=self.directory,
            state=self.state,
            pods=self.pods,
            workers=self.vendors,
            cluster=self.cluster,
            overcommit=fence.Overcommit(),
            on_bypass=on_bypass,
            compute="work-conserving",
        )
        self.reconcilers.append(made)
        return made

    def start(self, uid: str, *, memory: int = GIB, percent: int | None = 30, compute: Compute = "fixed") -> Path:
        """Prepare a container of a new pod; its directory."""
        device = DeviceGrant(device_id="x0", device_name="x0", vendor="acme", resource="acme.com/xpu", offer=share(memory, percent))
        container = ContainerGrant(container="main", devices=(device,))
        grant = PodGrant(owner=Owner(kind="pod", uid=uid, namespace="ns", name=f"pod-{uid}"), node="n1", containers=(container,))
        self.say(grant)
        record = Record(
            owner=grant.owner,
            container="main",
            kind="app",
            resource="acme.com/xpu",
            slots=(f"s-{uid}",),
            devices=(device,),
            phase="ready",
            at=time.time(),
            boot="b",
        )
        self.state.put(record, grant)
        directory = enforcing.enforcement_directory(self.directory, uid, "main")
        declared = Interceptor(library=str(self.library), identities=(("x0", (("uuid", "X-0"),)),))
        known = {one.id: one for one in self.vendors.devices("acme")}
        enforcing.put(directory, grant, container, {"acme": Enforcement(interceptor=declared)}, known, compute, self.directory / "lib")
        return directory

    def say(self, grant: PodGrant) -> None:
        """The API server has this grant on the pod."""
        uid = grant.owner.uid
        self.grants[uid] = grant
        metadata = {"uid": uid, "namespace": "ns", "name": f"pod-{uid}", "annotations": {GRANT_ANNOTATION: encode_grant(grant)}}
        self.pods.upsert({"metadata": metadata, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}})

    def change(self, uid: str, memory: int, percent: int | None = 30, revision: int = 2) -> None:
        """Somebody changes a limit of the running pod."""
        grant = self.grants[uid]
        (container,) = grant.containers
        devices = tuple(structs.replace(device, offer=share(memory, percent)) for device in container.devices)
        self.say(structs.replace(grant, revision=revision, containers=(structs.replace(container, devices=devices),)))

    def tenant(self, directory: Path, uid: str, **how: Any) -> Tenant:
        tenant = Tenant(containers.state_path(directory), environment={"HAMI_GRANT": f"{uid}/main"}, **how)
        self.tenants.append(tenant)
        return tenant

    def measured(self, *processes: tuple[int, int], busy: float | None = None) -> None:
        held = tuple(ProcessUsage(pid=pid, memory_bytes=memory) for pid, memory in processes)
        self.vendors.readings = [Usage(device_id="x0", memory_used_bytes=sum(one.memory_bytes for one in held), core_busy_percent=busy, processes=held)]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    for reconciler in made.reconcilers:
        await reconciler.close()
    for tenant in made.tenants:
        tenant.stop()


async def test_an_idle_node_has_nothing_to_do(node: Node) -> None:
    await node.reconciler().look()
    assert node.cluster.warnings == []


async def test_every_look_is_a_heartbeat(node: Node) -> None:
    directory = node.start("u1")
    before = time.monotonic_ns()
    await node.reconciler().look()
    with containers.control_of(directory) as control:
        assert control.heartbeat_ns >= before


async def test_the_dead_are_taken_out_by_a_helper(node: Node) -> None:
    directory = node.start("u1")
    node.tenant(directory, "u1", slot=0, held=500)
    node.tenant(directory, "u1", slot=1, held=4096).stop()
    reconciler = node.reconciler()
    books = Region(containers.state_path(directory))
    give_up = time.monotonic() + 30
    while books.usage(1).dead and time.monotonic() < give_up:
        await reconciler.look()
    usage = books.usage(1)
    assert ([process.slot for process in usage.processes], usage.devices[0].used_bytes) == ([0], 500)


async def test_a_container_that_keeps_its_mutex_does_not_keep_the_heartbeat(node: Node) -> None:
    directory = node.start("u1")
    node.tenant(directory, "u1", slot=0).tell("lock")
    node.tenant(directory, "u1", slot=1).stop()
    reconciler = node.reconciler()
    began = time.monotonic()
    await reconciler.look()
    await reconciler.look()
    assert time.monotonic() - began < 20
    with containers.control_of(directory) as control:
        assert time.monotonic_ns() - control.heartbeat_ns < 20 * 10**9
    assert len(Region(containers.state_path(directory)).usage(1).dead) == 1


async def test_a_process_that_accounts_for_what_it_uses_is_left_alone(node: Node) -> None:
    directory = node.start("u1")
    tenant = node.tenant(directory, "u1", held=512 * MIB)
    node.measured((tenant.pid, 520 * MIB), (os.getpid(), 6 * GIB))
    reconciler = node.reconciler("evict")
    for _ in range(3):
        await reconciler.look()
    assert node.cluster.warnings == []
    assert node.cluster.evicted == []


def unbooked(node: Node, directory: Path) -> None:
    """The driver knows more than the library was told."""
    tenant = node.tenant(directory, "u1", held=100 * MIB)
    node.measured((tenant.pid, 900 * MIB))


def slotless(node: Node, directory: Path) -> None:
    """A process of the container that never loaded the library: its books are in another file."""
    other = node.directory / "elsewhere.bin"
    region.create(other)
    stranger = Tenant(other, environment={"HAMI_GRANT": "u1/main"})
    node.tenants.append(stranger)
    node.measured((stranger.pid, 700 * MIB))


def scribbled(node: Node, directory: Path) -> None:
    path = containers.state_path(directory)
    image = layout.StateFile.from_buffer_copy(path.read_bytes())
    image.devices[0].used_bytes = 5
    path.write_bytes(bytes(image))


def replaced(node: Node, directory: Path) -> None:
    containers.state_path(directory).unlink()
    os.mkfifo(containers.state_path(directory))


BYPASSES = [
    pytest.param(unbooked, "more-than-booked", id="more than booked"),
    pytest.param(slotless, "no-slot", id="no slot"),
    pytest.param(scribbled, "sum", id="scribbled"),
    pytest.param(replaced, "layout", id="replaced"),
]


@pytest.mark.parametrize(("bypass", "kind"), BYPASSES)
async def test_a_bypass_is_found_at_the_second_look_and_said_once(node: Node, bypass: Callable[[Node, Path], None], kind: str) -> None:
    directory = node.start("u1")
    bypass(node, directory)
    reconciler = node.reconciler()
    await reconciler.look()
    assert node.cluster.warnings == [], "it may have been in the middle of a change"
    for _ in range(3):
        await reconciler.look()
    ((reason, message),) = node.cluster.warnings
    assert reason == "LimitBypassed"
    assert message.startswith(f"container main: {kind}: ")
    assert reconciler.watched["u1", "main"].counted == {kind: 1}


async def test_by_setting_the_container_is_suspended(node: Node) -> None:
    directory = node.start("u1")
    unbooked(node, directory)
    reconciler = node.reconciler("suspend")
    await reconciler.look()
    await reconciler.look()
    with containers.control_of(directory) as control:
        assert control.suspended
    assert node.cluster.evicted == []


async def test_by_setting_the_pod_is_evicted_and_no_other(node: Node) -> None:
    node.start("u2")
    unbooked(node, node.start("u1"))
    reconciler = node.reconciler("evict")
    for _ in range(4):
        await reconciler.look()
    assert node.cluster.evicted == ["pod-u1"]


async def test_a_restarted_container_is_looked_at_anew(node: Node) -> None:
    scribbled(node, node.start("u1"))
    reconciler = node.reconciler()
    await reconciler.look()
    await reconciler.look()
    scribbled(node, node.start("u1"))
    await reconciler.look()
    await reconciler.look()
    assert len(node.cluster.warnings) == 2


async def test_a_file_that_grows_is_cut_back(node: Node) -> None:
    directory = node.start("u1")
    os.truncate(containers.state_path(directory), 100 * region.SIZE)
    await node.reconciler().look()
    assert containers.state_path(directory).stat().st_size == region.SIZE


async def test_a_driver_without_a_list_of_processes_blames_the_one_container_there_is(node: Node) -> None:
    directory = node.start("u1")
    reconciler = node.reconciler()
    node.vendors.readings = [Usage(device_id="x0", memory_used_bytes=300 * MIB)]
    await reconciler.look()
    node.tenant(directory, "u1", held=100 * MIB)
    node.vendors.readings = [Usage(device_id="x0", memory_used_bytes=410 * MIB)]
    for _ in range(3):
        await reconciler.look()
    assert node.cluster.warnings == [], "300 MiB are the device's own"
    node.vendors.readings = [Usage(device_id="x0", memory_used_bytes=900 * MIB)]
    for _ in range(3):
        await reconciler.look()
    assert [message.split(": ")[1] for _, message in node.cluster.warnings] == ["more-than-booked"]


async def test_a_changed_grant_takes_effect_while_the_container_runs(node: Node) -> None:
    directory = node.start("u1")
    reconciler = node.reconciler()
    await reconciler.look()
    inode = containers.state_path(directory).stat().st_ino
    node.change("u1", GIB // 2, 20)
    await reconciler.look()
    policy = containers.policy_of(directory)
    assert (policy.generation, policy.devices[0].memory_bytes, policy.devices[0].core_milli) == (2, GIB // 2, 20_000)
    assert containers.state_path(directory).stat().st_ino == inode
    assert node.state.grants["u1"].revision == 2
    await reconciler.look()
    assert containers.policy_of(directory).generation == 2, "once"


async def test_an_older_revision_is_no_news(node: Node) -> None:
    directory = node.start("u1")
    reconciler = node.reconciler()
    await reconciler.look()
    node.change("u1", 2 * GIB, revision=1)
    await reconciler.look()
    assert containers.policy_of(directory).devices[0].memory_bytes == GIB


async def test_a_limit_for_which_there_is_no_room_is_refused_until_there_is(node: Node) -> None:
    directory = node.start("u1")
    node.start("u2", memory=6 * GIB)
    reconciler = node.reconciler()
    await reconciler.look()
    node.change("u1", 4 * GIB)
    await reconciler.look()
    await reconciler.look()
    ((reason, message),) = node.cluster.warnings
    assert (reason, containers.policy_of(directory).devices[0].memory_bytes) == ("LimitNotChanged", GIB)
    assert "memory" in message
    node.change("u2", 2 * GIB)
    await reconciler.look()
    await reconciler.look()
    assert containers.policy_of(directory).devices[0].memory_bytes == 4 * GIB


async def test_other_devices_are_no_change_of_limits(node: Node) -> None:
    node.start("u1")
    reconciler = node.reconciler()
    await reconciler.look()
    grant = node.grants["u1"]
    node.say(structs.replace(grant, revision=2, containers=(structs.replace(grant.containers[0], container="other"),)))
    await reconciler.look()
    assert [reason for reason, _ in node.cluster.warnings] == ["LimitNotChanged"]
    assert node.state.grants["u1"].revision == 1


async def test_an_idle_share_is_lent_and_taken_back(node: Node) -> None:
    first, second = node.start("u1", percent=30, compute="work-conserving"), node.start("u2", percent=50, compute="work-conserving")
    busy, idle = node.tenant(first, "u1"), node.tenant(second, "u2")
    reconciler = node.reconciler()
    await reconciler.look()

    def shares() -> list[int | None]:
        found = []
        for directory in (first, second):
            with containers.control_of(directory) as control:
                found.append(control.effective(0))
        return found

    busy.tell("charge 300000000")
    await reconciler.look()
    assert shares() == [99_000, 1_000]
    busy.tell("charge 300000000")
    idle.tell("charge 1000")
    await reconciler.look()
    given = shares()
    assert given[0] is not None
    assert given[1] is not None
    assert (given[0] >= 30_000, given[1] >= 50_000, sum((given[0], given[1])) <= 100_000) == (True, True, True)


async def test_the_cost_is_corrected_by_what_the_device_says(node: Node) -> None:
    directory = node.start("u1")
    tenant = node.tenant(directory, "u1", held=0)
    reconciler = node.reconciler()
    await reconciler.look()
    for _ in range(3):
        tenant.tell("charge 1000000")
        node.measured(busy=90.0)
        await reconciler.look()
    with containers.control_of(directory) as control:
        assert 1.0 < control.gain(0) <= 2.0


async def test_what_others_use_is_not_put_on_the_container(node: Node) -> None:
    directory = node.start("u1")
    node.start("u2", percent=None)  # its time is not measured
    tenant = node.tenant(directory, "u1", held=0)
    reconciler = node.reconciler()
    await reconciler.look()
    tenant.tell("charge 1000000")
    node.measured(busy=90.0)
    await reconciler.look()
    with containers.control_of(directory) as control:
        assert control.gain(0) == 1.0


async def test_a_released_container_is_forgotten(node: Node) -> None:
    node.start("u1")
    reconciler = node.reconciler()
    await reconciler.look()
    assert set(reconciler.watched) == {("u1", "main")}
    node.state.remove(("u1", "main", "acme.com/xpu"))
    await reconciler.look()
    assert reconciler.watched == {}


async def test_metrics_are_what_was_last_seen(node: Node) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from hami_framework.deviceplugin import metrics

    directory = node.start("u1", memory=3 * GIB)
    node.tenant(directory, "u1", held=4096).tell("charge 500000000")
    reconciler = node.reconciler()
    await reconciler.look()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics.Containers("n1", reconciler))
    text = generate_latest(registry).decode()
    whose = 'container="main",device="x0",namespace="ns",node="n1",pod="pod-u1"'
    assert f"hami_container_memory_used_bytes{{{whose}}} 4096.0" in text
    assert f"hami_container_memory_limit_bytes{{{whose}}} 3.221225472e+09" in text
    assert f"hami_container_core_limit_ratio{{{whose}}} 0.3" in text
    assert f"hami_container_core_busy_seconds_total{{{whose}}} 0.5" in text
    assert f"hami_container_refusals_total{{{whose}}} 0.0" in text


@pytest.mark.parametrize("listen", ["9396", ":9396", "localhost:", "localhost:http", "256.0.0.1:9396"])
async def test_an_address_that_cannot_be_is_a_wrong_setting(node: Node, listen: str) -> None:
    from hami_framework.deviceplugin import metrics

    with pytest.raises(ConfigError, match="--metrics-listen"):
        await metrics.serve(listen, "n1", node.reconciler())
