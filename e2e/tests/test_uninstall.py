# SPDX-License-Identifier: Apache-2.0
"""The framework goes: running pods run on, and when they have ended too, nothing of ours is left on the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from e2e.harness.node_agent import AGENT, ENVIRONMENT, VENDOR, Node, ready
from e2e.lab import NODE, Lab

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def node() -> Iterator[Node]:
    with Lab.up("uninstall", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES")) as lab, Node(lab) as own:
        own.prepare()
        own.start()
        own.wait_allocatable(128)
        yield own


def clean_up(node: Node) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hami_framework.deviceplugin", "--node", NODE, "--plugin", str(VENDOR), "--allow", "acme", "--clean-up"]
    return node.lab.node.run(["env", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), *command], check=False, timeout=60)


def test_running_pods_run_on_and_nothing_else_is_left(node: Node) -> None:
    for name, device in (("stays", "x0"), ("ends", "x1")):
        uid = node.pod(name, (device,))
        node.wait_report(name, uid)

    refused = clean_up(node)
    assert refused.returncode == 2
    assert "an agent of this node is running" in refused.stderr

    node.kill(signal.SIGTERM)
    node.delete("ends")
    node.lab.wait("the pod to be gone", lambda: "ends" not in node.pods(), 30)
    first = clean_up(node)
    assert first.returncode == 3, first.stderr
    assert "kept: container main of pod default/stays: it runs" in first.stderr
    assert "removed: container main of pod default/ends" in first.stderr
    assert ready(node.get("stays")), "the clean-up disturbed a running pod"
    assert len(node.files("/var/run/cdi")) == 1
    assert node.get("stays")["status"]["containerStatuses"][0]["restartCount"] == 0

    node.clear()
    second = clean_up(node)
    assert second.returncode == 0, second.stderr
    assert node.files("/var/run/cdi") == []
    assert node.files("/var/lib/hami") == []
    assert not [name for name in node.files("/var/lib/kubelet/device-plugins") if name.startswith("hami")]

    node.start(name=f"{AGENT}-again")
    uid = node.pod("later", ("x0",))
    assert node.wait_report("later", uid)["status"] == "MATCH"
