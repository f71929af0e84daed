# SPDX-License-Identifier: Apache-2.0
"""The agent as a process, with a vendor whose shares are held by a library: files, limits that change, and those who go round it.

The driver is a file that says what it measures; the tenants are real processes that keep books as the library does.
"""

from __future__ import annotations

import asyncio
import json
import re
import stat
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_lab import Lab, free_port, mounts
from msgspec import structs

from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.enforcement import container as containers
from hami_framework.enforcement.region import Region
from hami_framework.kube.client import path
from hami_framework.model import GIB, MIB, share

PORT = free_port()


@pytest.fixture
async def lab(short_directory: Path, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    made = Lab(short_directory)
    try:
        await made.up(*getattr(request, "param", ()))
        yield made
    finally:
        await made.down()


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
    told = Path(mounts(await lab.pod("p"))["/run/hami/limits.json"])
    inode = told.stat().st_ino
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
        with containers.control_of(lab.directory_of("p")) as control:
            return containers.policy_of(lab.directory_of("p")).devices[0].memory_bytes == GIB // 2 and control.generation == 2

    await lab.until(changed, "changed")
    assert containers.policy_of(lab.directory_of("p")).generation == 2
    await lab.until(lambda: json.loads(told.read_text())["revision"] == 2, "told")
    assert json.loads(told.read_text())["devices"][0]["limit"] == {"memoryBytes": GIB // 2, "corePercent": 5}
    assert told.stat().st_ino == inode, "the mount is of this very file"

    await lab.client.call(lab.client.delete, pod, grace_seconds=0)
    await lab.until(lambda: not lab.directory_of("p").exists(), "released")


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
    documented = set(re.findall(r"`(hami_container_\w+)`", (Path(__file__).parents[2] / "docs" / "agent.md").read_text()))
    scraped = {line.split("{")[0] for line in text.splitlines() if line.startswith("hami_container_")}
    assert {name for name in scraped if not name.endswith("_created")} == documented
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
