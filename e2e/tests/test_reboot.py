# SPDX-License-Identifier: Apache-2.0
"""The node loses its power: processes and /run are gone, what lies on its disk is kept. Its pods come back with the devices they had.

kubelet admits the pods that it remembers as soon as it is up, once; who is not registered by then loses them. As a host service
the agent runs before kubelet does; as a DaemonSet it cannot, and the last test shows what that costs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.harness.node_agent import Node, until
from e2e.lab import Lab
from e2e.lab.components import CONTAINERD_SOCKET
from e2e.lab.machine import LabError

PODS = 6


@pytest.fixture
def node() -> Iterator[Node]:
    with Lab.up("reboot", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES")) as lab, Node(lab) as own:
        own.prepare()
        own.start()
        own.wait_allocatable(128)
        yield own


def pods(node: Node) -> dict[str, str]:
    """Name → UID of pods that run, each with a device of its own and one with an init container."""
    uids = {f"p{number}": node.pod(f"p{number}", (f"x{number % 4}",), init=("x3",) if number == 0 else ()) for number in range(PODS)}
    node.wait_running(*uids)
    for name, uid in uids.items():
        assert node.wait_report(name, uid)["status"] == "MATCH"
    return uids


def came_back(node: Node, uids: dict[str, str]) -> None:
    """Every pod runs a second container, with its own devices."""
    for name, uid in uids.items():
        seen = node.wait_report(name, uid, count=2, seconds=90)
        assert (name, seen["status"], seen["env"]["ACME_DEVICES"]) == (name, "MATCH", f"x{int(name[1:]) % 4}")
        assert node.get(name)["metadata"]["uid"] == uid


def off_and_on(lab: Lab) -> None:
    """A machine that comes up has no cgroups of pods; those that the lab's machine leaves cost kubelet 3 s each before it serves."""
    lab.node.off()
    for root in Path("/sys/fs/cgroup").glob(f"*/{lab.options.cgroup}"):
        for folder in sorted((path for path in root.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
            folder.rmdir()
    lab.node.boot(lab.network_pid)


def power_cycle(node: Node, *, agent_first: bool) -> None:
    """Off and on; `agent_first`: as a host service that starts before kubelet."""
    off_and_on(node.lab)
    assert node.files("/run/cdi") == [], "what was in /run is gone"
    if agent_first:
        lives = node.log.read_text().count("began")
        node.start(wait=False)
        node.lab.wait("the agent to look for kubelet", lambda: node.log.read_text().count("began") > lives, 20)
    node.lab.start("containerd")
    node.lab.wait("containerd", lambda: node.lab.node.run(["test", "-S", CONTAINERD_SOCKET], check=False).returncode == 0, 20)
    node.lab.start("kubelet")


def test_pods_come_back_with_their_devices_when_the_agent_is_a_host_service(node: Node) -> None:
    uids = pods(node)

    power_cycle(node, agent_first=True)

    came_back(node, uids)


def test_slots_are_offered_as_they_were_while_a_driver_is_still_starting(node: Node) -> None:
    """The vendor takes 6 s to find its devices after the boot; kubelet asks for the slots in the first second."""
    uids = pods(node)
    node.told("acme-slow", "6")

    power_cycle(node, agent_first=True)
    node.lab.wait("kubelet to know the node's slots", lambda: node.allocatable() == 128, 30)

    came_back(node, uids)


def test_a_device_that_does_not_come_back_keeps_its_pods_waiting_and_nobody_elses(node: Node) -> None:
    uids = pods(node)
    node.told("acme-sick", "x1")

    power_cycle(node, agent_first=True)

    came_back(node, {name: uid for name, uid in uids.items() if int(name[1:]) % 4 != 1})
    sick = [name for name in uids if int(name[1:]) % 4 == 1]
    seen = {name: len(node.reports(name, uids[name])) for name in sick}
    node.told("acme-sick", "")
    assert all(count <= 2 for count in seen.values())


def test_an_agent_that_comes_after_kubelet_finds_its_pods_failed_and_says_so(node: Node) -> None:
    """The DaemonSet's order. kubelet fails for good what it admits before the agent is registered (docs/agent.md)."""
    uids = pods(node)

    power_cycle(node, agent_first=False)
    until("failed", lambda: all(node.get(name)["status"].get("reason") == "UnexpectedAdmissionError" for name in uids), 60)
    node.start(wait=False)

    until("told", lambda: all(any(one.startswith("NotAdmitted") for one in node.events(name)) for name in uids), 40)
    node.clear()
    uid = until("slots again", lambda: node.allocatable() == 128 and node.pod("new", ("x1",)), 40)
    assert node.wait_report("new", uid)["status"] == "MATCH"
    assert until("all released", lambda: node.files("/var/lib/hami/containers") == [f"{uid}_main"], 30)


def test_the_lab_really_reboots(node: Node) -> None:
    """What the tests above build on: another boot id, and nothing that ran is left."""
    before = node.lab.node.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    pods(node)

    off_and_on(node.lab)

    assert node.lab.node.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != before
    with pytest.raises(LabError):
        node.lab.node.run(["pidof", "probe"])
