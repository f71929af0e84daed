# SPDX-License-Identifier: Apache-2.0
"""`hami run` and the node agent on one machine: real processes that promise at the same time, and never more than there is."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.deviceplugin import enforcing
from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.grants import GrantRefused, PodBook
from hami_framework.deviceplugin.prestart import PreStart, Settings
from hami_framework.deviceplugin.release import Releaser
from hami_framework.deviceplugin.state import StateFile
from hami_framework.enforcement import container as containers
from hami_framework.errors import ConfigError, Unavailable
from hami_framework.local import choose, ledger, limit, override, run
from hami_framework.local.gate import Gate
from hami_framework.local.holders import Holder, look
from hami_framework.local.vendors import Setting
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
    Interceptor,
    Inventory,
    Mode,
    Owner,
    PodGrant,
    Usage,
    VendorInfo,
    encode,
    share,
    whole,
)
from hami_framework.plugins import load_registry

pytestmark = pytest.mark.timeout(90)

CAPACITY = 8 * GIB
XPU = "bench.example/card"
KIND = DeviceClass(model="Bench 1", vendor="bench", capacity=Capacity(memory_bytes=CAPACITY, shares=100), modes=(Mode(name="whole"), Mode(name="share")))
DEVICES = (Device(id="BENCH-0", name="bench-0", index=0, device_class=KIND),)
INVENTORY = Inventory(node="box", vendors=(VendorInfo(name="bench"),), devices=DEVICES)

PLUGIN = """
from hami_framework import Device, ResourceNames, hookimpl, share, whole
HAMI_SPEC_VERSION = "1"

@hookimpl
def hami_resources():
    return ResourceNames(count="bench.example/card", memory="bench.example/memory", cores="bench.example/cores")

@hookimpl
def hami_discover(host):
    return []

@hookimpl
def hami_partition(device_class, request):
    if request.whole:
        return [whole(device_class.capacity.memory_bytes)]
    return [share(request.memory_bytes or device_class.capacity.memory_bytes, request.core_percent)]
"""


class Bench:
    """A vendor's worker that does at once what it is asked."""

    vendors: ClassVar = {"bench": VendorInfo(name="bench")}

    def devices(self, vendor: str) -> tuple[Device, ...]:
        return DEVICES

    async def allocate(self, vendor: str, grant: Grant) -> ContainerEdits:
        return ContainerEdits()

    async def enforce(self, vendor: str, grant: Grant) -> Enforcement:
        interceptor = Interceptor(library=__file__, identities=(("BENCH-0", (("uuid", "bench-0"),)),))
        return Enforcement(isolation=SOFT, mechanism="a library", interceptor=interceptor)

    async def release(self, vendor: str, grant: Grant) -> None: ...

    async def usage(self, vendor: str) -> tuple[Usage, ...]:
        return ()


class Nobody:
    """An API server and a pod-resources socket that know nothing."""

    async def snapshot(self) -> tuple[()]:
        return ()

    async def pod(self, namespace: str, name: str) -> None:
        return None

    async def report(self, pod: Any, rejection: Any) -> None: ...


def pod_grant(uid: str, memory: int) -> PodGrant:
    held = DeviceGrant(device_id="BENCH-0", device_name="bench-0", vendor="bench", resource=XPU, offer=share(memory))
    return PodGrant(owner=Owner(kind="pod", uid=uid, namespace="ns", name=uid), node="box", containers=(ContainerGrant(container="c", devices=(held,)),))


class Agent:
    """The agent's PreStart and release over a state directory, with pods made by hand."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.pods = folder, PodBook()
        self.pods.synced = True
        self.state = StateFile.load(state / "agent.json")
        common: dict[str, Any] = {"pods": self.pods, "pod_resources": Nobody(), "workers": Bench(), "state": self.state, "cdi": CdiDirectory(folder / "cdi")}
        self.releaser = Releaser(state_directory=state, grace_seconds=0.0, **common)
        settings = Settings(node="box", boot="b", state_directory=state, checkpoint=folder / "checkpoint", wait_seconds=0.2)
        self._prestart = PreStart(settings, releaser=self.releaser, cluster=Nobody(), **common)  # type: ignore[arg-type]
        self.held: dict[str, str] = {}

    async def start(self, uid: str, memory: int) -> bool:
        """Whether the pod's container was admitted."""
        self.held[uid] = f"slot-{uid}"
        rows = [{"PodUID": one, "ContainerName": "c", "ResourceName": XPU, "DeviceIDs": {"-1": [slot]}} for one, slot in self.held.items()]
        (self.folder / "checkpoint.new").write_text(json.dumps({"Data": {"PodDeviceEntries": rows, "RegisteredDevices": {}}, "Checksum": 0}))
        (self.folder / "checkpoint.new").rename(self.folder / "checkpoint")
        metadata = {"uid": uid, "namespace": "ns", "name": uid, "annotations": {GRANT_ANNOTATION: encode_grant(pod_grant(uid, memory))}}
        self.pods.upsert({"metadata": metadata, "spec": {"containers": [{"name": "c"}], "nodeName": "box"}, "status": {"phase": "Pending"}})
        try:
            await self._prestart(XPU, frozenset({self.held[uid]}))
        except (GrantRefused, Unavailable):
            self.end(uid)
            return False
        return True

    def end(self, uid: str) -> None:
        self.held.pop(uid, None)
        self.pods.upsert({**(self.pods.get(uid) or {}), "status": {"phase": "Succeeded"}})


def held(state: Path) -> int:
    """What both ledgers together say is held. A pod on record counts once its container may start."""
    grants = (*ledger.agent_grants(state), *ledger.live_grants(state))
    return sum(device.offer.cost.memory_bytes for grant in grants for container in grant.containers for device in container.devices)


def runs(state: Path, plugin: Path, seed: int, until: float) -> None:
    """What `hami run` does to the ledger, over and over, in one process."""
    registry, dice = load_registry([], [plugin]), random.Random(seed)
    given = 0
    while time.monotonic() < until:
        order = run.Order(command=("x",), wanted=choose.Wanted(memory_bytes=dice.randint(1, 5) * GIB))
        owner = Owner(kind="local", uid=f"local-{seed}-{given}-{time.monotonic_ns()}")
        try:
            record = run.promise(order, Setting(state_directory=state, machine="played"), registry, INVENTORY, owner)
        except ConfigError:
            time.sleep(dice.random() / 200)
            continue
        given += 1
        time.sleep(dice.random() / 50)
        ledger.remove(state, record)
    (state / f"given-{seed}").write_text(str(given))


async def admissions(folder: Path, state: Path, until: float) -> None:
    """What the agent does meanwhile: pods come, several at once, and go."""
    agent, dice, admitted, number = Agent(folder, state), random.Random(99), 0, 0
    while time.monotonic() < until:
        uids = [f"pod-{number + each}" for each in range(3)]
        number += len(uids)
        answers = await asyncio.gather(*(agent.start(uid, dice.randint(1, 3) * GIB) for uid in uids))
        admitted += sum(answers)
        await asyncio.sleep(dice.random() / 50)
        for uid in uids:
            agent.end(uid)
        await agent.releaser.reconcile()
        await agent.state.durable()
    (state / "admitted").write_text(str(admitted))


def test_runs_and_containers_that_start_at_once_are_never_promised_more_than_there_is(tmp_path: Path) -> None:
    state, plugin = tmp_path / "state", tmp_path / "hami_bench.py"
    (state / "local").mkdir(parents=True)
    plugin.write_text(PLUGIN)
    until = time.monotonic() + 5
    arguments = [("runs", str(plugin), str(seed)) for seed in range(3)] + [("admissions", str(tmp_path), "")]
    children = [subprocess.Popen([sys.executable, __file__, what, str(state), str(until), *more]) for what, *more in arguments]
    most = looks = 0
    try:
        while time.monotonic() < until:
            with ledger.locked(state):  # nobody promises meanwhile: what is found is what stood at one moment
                most, looks = max(most, held(state)), looks + 1
            time.sleep(0.005)
    finally:
        statuses = [child.wait(60) for child in children]
    assert statuses == [0, 0, 0, 0]
    assert most <= CAPACITY, f"{most / GIB:g} GiB promised of 8"
    assert most > CAPACITY // 2, "nobody competed"
    assert looks > 5
    assert int((state / "admitted").read_text()) > 0
    assert all(int((state / f"given-{seed}").read_text()) > 0 for seed in range(3))


async def test_a_container_is_refused_what_a_local_run_holds_and_told_whose_it_is(tmp_path: Path) -> None:
    state = tmp_path / "state"
    agent = Agent(tmp_path, state)
    registry = load_registry([], [plugin_file(tmp_path)])
    order = run.Order(command=("x",), wanted=choose.Wanted(memory_bytes=6 * GIB))
    setting = Setting(state_directory=state, machine="played")
    record = run.promise(order, setting, registry, INVENTORY, Owner(kind="local", uid="local-7", name="train.py"))

    assert not await agent.start("big", 3 * GIB)
    assert await agent.start("small", 2 * GIB)
    with pytest.raises(ConfigError, match="not enough memory is free"):
        run.promise(order, setting, registry, INVENTORY, Owner(kind="local", uid="local-8"))
    ledger.remove(state, record)
    assert await agent.start("big", 3 * GIB)


async def test_what_hami_limit_lowered_stays_when_the_container_starts_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    agent = Agent(tmp_path, state)
    assert await agent.start("u1", 4 * GIB)
    directory = enforcing.enforcement_directory(state, "u1", "c")

    def holder() -> Holder:
        return next(one for one in look([state], 0) if one.id == "u1/c")

    written = limit.change_container(holder(), state, limit.Change(memory_bytes=GIB, core_percent=20))
    assert (written.devices[0].memory_bytes, written.devices[0].core_milli) == (GIB, 20_000)
    assert await agent.start("u1", 4 * GIB)
    again = containers.policy_of(directory)
    assert (again.devices[0].memory_bytes, again.devices[0].core_milli) == (GIB, 20_000)
    assert again.generation > written.generation
    with pytest.raises(ConfigError, match="was granted 4096 MiB, and 5120 MiB is more"):
        limit.change_container(holder(), state, limit.Change(memory_bytes=5 * GIB))
    assert limit.change_container(holder(), state, limit.Change(memory_bytes=4 * GIB)).devices[0].memory_bytes == 4 * GIB
    assert held(state) == 4 * GIB, "what was granted stays promised"


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        pytest.param(encode(override.Override(revision=1, memory_bytes=GIB)), "", id="of a grant that is older than this"),
        pytest.param(b"{", "override.json cannot be read", id="damaged"),
    ],
)
def test_an_override_that_does_not_count(tmp_path: Path, contents: bytes, said: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / override.FILE).write_bytes(contents)
    assert override.put_back(tmp_path, 2) is None
    assert said in caplog.text


def plugin_file(folder: Path) -> Path:
    (folder / "hami_bench.py").write_text(PLUGIN)
    return folder / "hami_bench.py"


async def test_the_agent_waits_for_the_lock_and_says_who_has_it(tmp_path: Path) -> None:
    gate = Gate(tmp_path, 0.3)
    with ledger.locked(tmp_path):
        with pytest.raises(Unavailable, match=f"locked for 0.3 s by process {os.getpid()}"):
            async with gate:
                raise AssertionError("entered")
        waiting = asyncio.create_task(gate.__aenter__())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with gate, gate:
        assert not _is_free(tmp_path)
    assert _is_free(tmp_path)


def _is_free(state: Path) -> bool:
    descriptor = os.open(ledger.folder(state) / ledger.LOCK, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_a_device_that_a_run_holds_whole_takes_no_container(tmp_path: Path) -> None:
    from hami_framework.deviceplugin import fence

    local = PodGrant(
        owner=Owner(kind="local", uid="local-1"),
        node="box",
        containers=(
            ContainerGrant(container="main", devices=(DeviceGrant(device_id="BENCH-0", device_name="b", vendor="bench", resource=XPU, offer=whole(CAPACITY)),)),
        ),
    )
    (memory, *rest) = fence.check(pod_grant("u", GIB), [local], {"BENCH-0": DEVICES[0]}, fence.Overcommit())
    assert "the local run local-1" in memory.message
    assert "exclusive" in [one.reason.value for one in rest]


if __name__ == "__main__":
    what, directory, end, *more = sys.argv[1:]
    if what == "runs":
        runs(Path(directory), Path(more[0]), int(more[1]), float(end))
    else:
        asyncio.run(admissions(Path(more[0]), Path(directory), float(end)))
