# SPDX-License-Identifier: Apache-2.0
"""A node whose kubelet or runtime cannot carry our edits is found out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from hami_framework.deviceplugin import arrival, runtime
from hami_framework.deviceplugin.arrival import Arrivals
from hami_framework.deviceplugin.grants import PodBook
from hami_framework.deviceplugin.missed import Missed
from hami_framework.deviceplugin.state import Record, StateFile
from hami_framework.model import Owner

UID = "0e8f33d2-3d3c-4b5b-9f0e-1f2a3b4c5d6e"
MOUNT = "/run/hami/limits.json"
OFF = "failed to get container spec opts: CDI devices (hami.io/slot=xpu-0) requested but CDI support is explicitly disabled"
UNKNOWN = "CDI device injection failed: unresolvable CDI devices hami.io/slot=xpu-0"


@pytest.mark.parametrize(
    ("kubelet", "container_runtime", "words"),
    [
        pytest.param("v1.37.2", "containerd://2.3.7", None, id="new"),
        pytest.param("v1.29.0", "containerd://1.7.0", None, id="oldest"),
        pytest.param("v1.28.9", "containerd://2.0.0", "kubelet v1.28.9 passes no CDI names", id="old-kubelet"),
        pytest.param("v1.31.0", "containerd://1.6.20~ds1", "containerd 1.6.20~ds1 knows no CDI", id="old-containerd"),
        pytest.param("v1.31.0", "cri-o://1.31.0", None, id="cri-o"),
        pytest.param("", "", None, id="says-nothing"),
    ],
)
def test_versions_that_surely_know_no_cdi(kubelet: str, container_runtime: str, words: str | None) -> None:
    found = runtime.too_old({"status": {"nodeInfo": {"kubeletVersion": kubelet, "containerRuntimeVersion": container_runtime}}})

    assert found is None if words is None else found is not None and words in found


def process(proc: Path, pid: int, cgroup: str, mounts: Iterable[str] = ()) -> None:
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "cgroup").write_text(f"0::{cgroup}\n")
    (directory / "mountinfo").write_text("".join(f"36 35 98:0 /x {mount} ro,noatime - ext4 /dev/root rw\n" for mount in mounts))


def test_the_mount_of_a_prepared_container_is_looked_for_among_the_pods_processes(tmp_path: Path) -> None:
    own = f"/kubepods/besteffort/pod{UID}/"
    process(tmp_path, 1, "/init.scope", [MOUNT])
    assert runtime.arrived(UID, MOUNT, tmp_path) is None
    process(tmp_path, 20, own + "pause")
    assert runtime.arrived(UID, MOUNT, tmp_path) is None, "the sandbox alone says nothing"
    process(tmp_path, 30, own + "main", ["/etc/hosts"])
    assert runtime.arrived(UID, MOUNT, tmp_path) is False
    process(tmp_path, 31, f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-x.scope", [MOUNT])
    assert runtime.arrived(UID, MOUNT, tmp_path) is True


class Cluster:
    """Remembers what pods were told."""

    def __init__(self, node: dict[str, Any] | None = None) -> None:
        self.told: list[tuple[str, str, str]] = []
        self._node = node or {}

    async def node(self, name: str) -> dict[str, Any]:
        return self._node

    async def warn(self, pod: dict[str, Any], reason: str, message: str, *, name: str = "") -> None:
        self.told.append((reason, message, name))


class Setup:
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, node: dict[str, Any] | None = None) -> None:
        monkeypatch.setattr(arrival, "LOOK_SECONDS", 0.01)
        self.state, self.pods, self.cluster = StateFile(directory / "agent.json"), PodBook(), Cluster(node)
        self.changes = 0
        self.arrivals = Arrivals("n1", MOUNT, state=self.state, pods=self.pods, cluster=self.cluster, on_change=self.changed)  # type: ignore[arg-type]

    def changed(self) -> None:
        self.changes += 1

    def prepared(self, at: float, state: dict[str, Any]) -> None:
        owner = Owner(kind="pod", uid=UID, namespace="ns", name="p")
        self.state.put(Record(owner=owner, container="main", kind="app", resource="a/x", slots=("xpu-0",), devices=(), phase="ready", at=at, boot="b"))
        self.pods.upsert({"metadata": {"uid": UID, "name": "p", "namespace": "ns"}, "status": {"containerStatuses": [{"name": "main", "state": state}]}})

    async def run(self, seconds: float = 0.3) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.arrivals.run()
        except TimeoutError:
            return


async def test_a_runtime_that_says_cdi_is_off_is_believed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tmp_path, monkeypatch)
    setup.prepared(time.time(), {"waiting": {"reason": "CreateContainerError", "message": OFF}})

    await setup.run()

    assert "explicitly disabled" in setup.arrivals.fault
    assert [(reason, "Enable CDI" in message) for reason, message, _ in setup.cluster.told] == [("CdiNotApplied", True)]
    assert setup.changes == 1


async def test_an_unresolvable_name_counts_after_three_preparations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kubelet may skip one preparation after its restart; that heals by itself and is no fault of the runtime."""
    setup = Setup(tmp_path, monkeypatch)
    for at in (1.0, 2.0):
        setup.prepared(at, {"waiting": {"reason": "CreateContainerError", "message": UNKNOWN}})
        await setup.run(0.1)
    assert setup.arrivals.fault == ""

    setup.prepared(3.0, {"waiting": {"reason": "CreateContainerError", "message": UNKNOWN}})
    await setup.run(0.1)

    assert "unresolvable CDI devices" in setup.arrivals.fault


@pytest.mark.parametrize(("found", "fault"), [(False, True), (True, False), (None, False)], ids=["missing", "there", "nothing-to-see"])
async def test_a_runtime_that_silently_ignores_cdi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bool | None, fault: bool) -> None:
    monkeypatch.setattr(runtime, "arrived", lambda uid, mount: found)
    setup = Setup(tmp_path, monkeypatch)
    setup.prepared(time.time() + 1, {"running": {}})

    await setup.run()

    assert bool(setup.arrivals.fault) is fault
    assert bool(setup.cluster.told) is fault


async def test_a_node_that_is_too_old_gives_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tmp_path, monkeypatch, {"status": {"nodeInfo": {"kubeletVersion": "v1.27.3"}}})

    await setup.run(0.05)

    assert "kubelet v1.27.3 passes no CDI names" in setup.arrivals.fault


async def test_a_pod_that_kubelet_did_not_admit_is_told_what_to_do_once() -> None:
    pods, cluster = PodBook(), Cluster()
    failed = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Pod was rejected: Allocate failed due to no healthy devices present"}
    granted = {"hami.io/grant": "{}"}
    pods.upsert({"metadata": {"uid": "u1", "name": "ours", "annotations": granted}, "status": failed})
    pods.upsert({"metadata": {"uid": "u2", "name": "not-ours"}, "status": failed})
    pods.upsert({"metadata": {"uid": "u3", "name": "ended", "annotations": granted}, "status": {"phase": "Failed"}})
    running = asyncio.create_task(Missed(pods, cluster).run())  # type: ignore[arg-type]

    await asyncio.sleep(0.05)
    pods.upsert({"metadata": {"uid": "u1", "name": "ours", "annotations": granted}, "status": failed})
    await asyncio.sleep(0.05)
    running.cancel()

    assert [(reason, name) for reason, _, name in cluster.told] == [("NotAdmitted", "hami-not-admitted.u1")]
