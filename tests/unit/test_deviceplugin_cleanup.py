# SPDX-License-Identifier: Apache-2.0
"""`hami agent --clean-up`: what ended goes, what runs stays, and when all has ended nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hami_framework.deviceplugin import cleanup
from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.release import container_directory
from hami_framework.deviceplugin.state import Record, StateFile
from hami_framework.errors import PluginError
from hami_framework.model import GIB, ContainerEdits, DeviceGrant, Grant, Owner, share


class Node:
    """Two pods with a container each, as a killed agent leaves them."""

    def __init__(self, directory: Path) -> None:
        self.state, self.cdi, self.plugins = directory / "hami", directory / "cdi", directory / "device-plugins"
        self.plugins.mkdir()
        (self.plugins / "kubelet.sock").touch()
        (self.plugins / "hami-xpu-abc.sock").touch()
        self.released: list[str] = []
        self.broken = False
        self.file = StateFile.load(self.state / "agent.json")
        for number, name in enumerate(("ended", "running")):
            owner = Owner(kind="pod", uid=f"u-{name}", namespace="d", name=name)
            device = DeviceGrant(device_id=f"x{number}", device_name=f"x{number}", vendor="acme", resource="acme.com/xpu", offer=share(GIB, 10))
            grant = Grant(owner=owner, node="n", container="main", devices=(device,))
            slot = f"xpu-{number}"
            record = Record(
                owner=owner,
                container="main",
                kind="app",
                resource="acme.com/xpu",
                slots=(slot,),
                devices=(device,),
                leads=(grant,),
                phase="ready",
                at=1,
                boot="b",
            )
            self.file.put(record)
            container_directory(self.state, owner.uid, "main").mkdir(parents=True)
            CdiDirectory(self.cdi).write([slot], ContainerEdits(env={"A": "b"}))
        CdiDirectory(self.cdi).write(["xpu-9"], ContainerEdits(env={"A": "b"}))
        (self.cdi / "other-vendor.json").write_text("{}")

    async def release(self, vendor: str, grant: Grant) -> None:
        if self.broken:
            raise PluginError(vendor, "hami_release", "the driver hangs")
        self.released.append(grant.owner.name)

    async def clean(self, *active: str) -> cleanup.Outcome:
        return await cleanup.clean_up(self.state, self.cdi, self.plugins, {("d", name) for name in active}, self.release)

    @property
    def left(self) -> set[str]:
        return {path.name for folder in (self.cdi, self.plugins, self.state, self.state / "containers") if folder.exists() for path in folder.iterdir()}


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    await made.file.durable()
    return made


async def test_what_ended_goes_and_what_runs_stays(node: Node) -> None:
    outcome = await node.clean("running", "stranger")
    assert node.released == ["ended"]
    assert outcome.kept == ("container main of pod d/running: it runs",)
    assert node.left == {"hami.io-slot_xpu-1.json", "other-vendor.json", "kubelet.sock", "agent.json", "containers", "u-running_main"}


async def test_when_all_has_ended_nothing_is_left(node: Node) -> None:
    await node.clean("running")
    outcome = await node.clean()
    assert (outcome.kept, node.released) == ((), ["ended", "running"])
    assert node.left == {"other-vendor.json", "kubelet.sock"}
    assert not node.state.exists()


async def test_a_vendor_that_cannot_release_keeps_the_record(node: Node) -> None:
    node.broken = True
    outcome = await node.clean()
    assert len(outcome.kept) == 2
    assert all("the driver hangs" in what for what in outcome.kept)
    node.broken = False
    assert (await node.clean()).kept == ()


async def test_files_of_others_are_named_and_stay(node: Node) -> None:
    (node.state / "notes.txt").write_text("mine")
    outcome = await node.clean()
    assert outcome.kept == (f"{node.state / 'notes.txt'}: not made by the agent; remove it by hand",)
    assert (node.state / "notes.txt").read_text() == "mine"


def command(node: Node) -> subprocess.CompletedProcess[str]:
    words = [
        "--node",
        "n",
        "--state-dir",
        str(node.state),
        "--cdi-dir",
        str(node.cdi),
        "--kubelet-dir",
        str(node.plugins.parent),
        "--clean-up",
        "--allow",
        "none",
    ]
    return subprocess.run(
        [sys.executable, "-m", "hami_framework.deviceplugin", *words], env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False
    )


async def test_without_kubelet_nothing_is_removed(node: Node) -> None:
    before = node.left
    done = command(node)
    assert done.returncode == 2, done.stderr
    assert "which pods run is not known, and nothing was removed" in done.stderr
    assert before <= node.left


async def test_a_node_without_state_is_clean(node: Node) -> None:
    shutil.rmtree(node.state)
    done = command(node)
    assert (done.returncode, "nothing to clean up" in done.stderr) == (0, True), done.stderr
    assert not node.state.exists()
