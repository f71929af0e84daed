# SPDX-License-Identifier: Apache-2.0
"""Bad input and faults: each has one clear line where the library is loaded, one in the agent's log where the agent can know, and a documented behaviour.

The table is in docs/enforcement.md ("When something is wrong"); `test_enforcement_doc.py` compares.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from agent_lab import Lab
from gpu_lab import NOT_PERMITTED, OUT_OF_MEMORY, Box, Gpu, GpuLab

from hami_framework.enforcement import container as containers
from hami_framework.enforcement import layout, region
from hami_framework.enforcement.fields import offset
from hami_framework.model import GIB, share

GONE = "GPU-00000000-0000-0000-0000-000000000000"


@pytest.fixture
def folder(short_directory: Path) -> Path:
    short_directory.chmod(0o755)
    return short_directory


@pytest.fixture
def box(folder: Path) -> Box:
    return Box(folder, Gpu(folder))


def changed(path: Path, at: int, data: bytes) -> None:
    image = bytearray(path.read_bytes())
    image[at : at + len(data)] = data
    path.write_bytes(image)


def policy(box: Box) -> Path:
    return box.directory / "policy" / "policy.bin"


def state(box: Box) -> Path:
    return containers.state_path(box.directory)


def unknown_version(box: Box) -> None:
    changed(policy(box), offset(layout.PolicyHeader, "layout_version"), (99).to_bytes(4, "little"))


def damaged(box: Box) -> None:
    changed(policy(box), 500, b"\xff")


def no_policy(box: Box) -> None:
    policy(box).unlink()


def other_layout(box: Box) -> None:
    changed(state(box), offset(layout.StateFile, "layout_version"), (99).to_bytes(4, "little"))


def other_size(box: Box) -> None:
    os.truncate(state(box), region.SIZE * 2)


def no_state(box: Box) -> None:
    state(box).unlink()


FAULTS: dict[str, tuple[Callable[[Box], None], str]] = {
    "unknown-version": (unknown_version, "version"),
    "damaged-policy": (damaged, "checksum"),
    "no-policy": (no_policy, "policy.bin"),
    "other-layout": (other_layout, "another layout"),
    "other-size": (other_size, "size differs"),
    "no-state": (no_state, "cannot be opened for writing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_refuses_every_device_in_one_line(box: Box, fault: str) -> None:
    """Fail closed: the driver's own "not permitted", the program goes on, and stderr says why, once."""
    damage, words = FAULTS[fault]
    damage(box)
    done = box.run(box.gpu.taker, 5, 32)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"blocks": 0, "code": NOT_PERMITTED})
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("hami")
    assert words in done.stderr
    assert box.gpu.high_water(box.grant) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_no_write_access_refuses_every_device_in_one_line(box: Box) -> None:
    state(box).chmod(0o644)
    words = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]
    done = box.run(*words, box.gpu.taker, 5, 32)
    assert json.loads(done.stdout)["code"] == NOT_PERMITTED
    assert done.stderr.count("\n") == 1
    assert "state.bin" in done.stderr
    assert "may not open it" in done.stderr
    state(box).chmod(0o666)
    assert json.loads(box.run(*words, box.gpu.taker, 5, 32).stdout) == {"blocks": 5, "code": 0}


def test_a_device_that_vanished_answers_as_the_driver_does(box: Box) -> None:
    """The limit is not in the way of the driver's own error, and nothing stays on the books."""
    text = box.gpu.file.read_text()
    box.gpu.file.write_text(text.replace("[device 0]\n", "[device 0]\nhealth = lost\n", 1).replace("health = ok\n", "", 1))
    told = json.loads(box.run(box.gpu.taker, 5, 32).stdout)
    assert (told["blocks"], told["code"] in (0, OUT_OF_MEMORY)) == (0, False)
    box.gpu.file.write_text(text)
    assert box.fill()[1] == OUT_OF_MEMORY


def test_a_device_of_no_record_is_refused(folder: Path) -> None:
    gpu = Gpu(folder)
    gpu.uuid = GONE
    done = (box := Box(folder, gpu)).run(gpu.taker, 1, 32)
    assert json.loads(done.stdout)["code"] == NOT_PERMITTED
    assert done.stderr.count("a device that this container was not granted is refused") == 1
    assert box.gpu.high_water(box.grant) == 0


# -- what the agent knows of ------------------------------------------------------------------------------------------


@pytest.fixture
async def lab(short_directory: Path) -> AsyncIterator[GpuLab]:
    short_directory.chmod(0o755)
    made = GpuLab(short_directory)
    try:
        await made.up()
        yield made
    finally:
        await made.down()


async def refused(lab: Lab, name: str, words: str) -> None:
    async def told() -> bool:
        return any(words in message for message in await lab.events("GrantRefused"))

    await lab.until(told, f"{name} refused with {words!r}")
    assert words in lab.log()
    assert [view for view in lab.started if view["pod"] == name] == []


async def test_a_limit_above_the_device_is_refused_before_the_container_starts(lab: GpuLab) -> None:
    await lab.bound("greedy", share(100 * GIB, 10))
    await refused(lab, "greedy", "above the device")


async def test_a_device_that_is_not_there_is_refused_before_the_container_starts(lab: GpuLab) -> None:
    await lab.bound("late", share(GIB, 10), device=GONE)
    await refused(lab, "late", f"no device {GONE}")


async def test_the_agent_says_what_is_wrong_with_a_containers_files(lab: GpuLab) -> None:
    """A damaged policy and a state file of another layout: one line each, however often it looks."""
    for name in ("policy", "books"):
        await lab.pod(name)
    changed(lab.directory_of("policy") / "policy" / "policy.bin", 500, b"\xff")
    changed(containers.state_path(lab.directory_of("books")), offset(layout.StateFile, "layout_version"), (99).to_bytes(4, "little"))
    await lab.until(lambda: "checksum does not match" in lab.log(), "the policy named")
    await lab.until(lambda: "not a state file of this version" in lab.log(), "the state file named")
    await lab.until(lambda: lab.events("LimitBypassed"), "an event")
    assert lab.log().count("checksum does not match") == 1
    assert lab.log().count("not a state file of this version") == 1


async def test_a_static_program_is_named_in_the_agents_log(lab: GpuLab) -> None:
    await lab.pod("p")
    process = await lab.start("p", lab.gpu.static, 1, 2000, "hold")
    assert await lab.said(process) == {"blocks": 1, "code": 0}
    await lab.until(lambda: f"process {process.pid} holds" in lab.log(), "named")
    assert lab.log().count("without the library") == 1


def test_a_library_that_is_not_there_is_said_by_the_loader(box: Box) -> None:
    """ld.so names the file and goes on; the agent finds the process in the driver's figures (test_threat_model.py)."""
    binds = [bind for bind in box.binds if not bind.target.endswith(".so")]
    done = box.run("/bin/echo", "started", binds=binds)
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert "libhami_nvidia.so" in done.stderr
