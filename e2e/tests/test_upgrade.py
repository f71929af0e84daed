# SPDX-License-Identifier: Apache-2.0
"""Agent and extender of neighbouring releases side by side, forth and back, under running pods."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.faults.stand import VENDOR as EXTENDERS_VENDOR
from e2e.harness.node_agent import AGENT, ENVIRONMENT, VENDOR, XPU, Node, container, pod, ready
from e2e.harness.previous import ROOT, sources
from e2e.lab import NODE, Lab, build
from e2e.lab.components import CONTAINERD_SOCKET
from hami_framework.codec.grants import GRANT_ANNOTATION
from hami_framework.scheduler.liveness import GOODBYE_SECONDS

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab.up("upgrade", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES")) as lab, Node(lab) as own:
        own.prepare()
        yield own


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = sources(tmp_path_factory.mktemp("previous"))
    for release in (folder, ROOT):
        found = subprocess.run(
            [sys.executable, "-c", "import hami_framework; print(hami_framework.__file__)"],
            env={**os.environ, "PYTHONPATH": str(release), "PYTHONSAFEPATH": "1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert Path(found.stdout.strip()).is_relative_to(release), "this Python does not take the release's sources"
    return folder


# PYTHONSAFEPATH: else -m puts the current directory, which may be this checkout, before PYTHONPATH.


def start(node: Node, release: Path) -> None:
    """The agent of that release, in the place of the one that ran."""
    if node.lab.node.alive(AGENT):
        node.kill(signal.SIGTERM)
    seen = node.registrations()
    command = [sys.executable, "-m", "hami_framework.deviceplugin", "--node", NODE, "--kubeconfig", str(node.lab.inside_kubeconfig)]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(release), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}
    node.lab.node.spawn(AGENT, [*command, "--plugin", str(VENDOR), "--allow", "acme"], env=environment, log=node.log)
    node.lab.wait("the agent to be registered", lambda: node.registrations() > seen, 20, every=0.05)
    node.wait_allocatable(128)
    time.sleep(2.0)  # the node's status lags by 10 s: what it says may still be of the agent before; an extender goes by the sign of life


@contextmanager
def extender(node: Node, release: Path, log: Path) -> Iterator[int]:
    """The extender of that release; its port."""
    words = ["--kubeconfig", str(node.lab.kubeconfig), "--port", "0", "--plugin", str(EXTENDERS_VENDOR)]
    environment = {**os.environ, "PYTHONPATH": str(release), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}
    with log.open("a") as errors:
        child = subprocess.Popen([sys.executable, "-m", "hami_framework.scheduler", *words], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline().rpartition(":")[2])
        node.lab.wait("the extender to be ready", lambda: ask(port, "readyz") == "ok\n", 20)
        yield port
    finally:
        child.terminate()
        child.wait(20)
        if child.stdout is not None:
            child.stdout.close()


def ask(port: int, verb: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET" if body is None else "POST", f"/{verb}", None if body is None else json.dumps(body))
        text = connection.getresponse().read().decode()
        return text if body is None else json.loads(text)
    finally:
        connection.close()


def place(node: Node, port: int, name: str) -> str:
    """A pod of one share, placed by the extender as kube-scheduler would; its UID."""
    one = container("main", 1)
    one["resources"]["limits"]["acme.com/xpumem"] = "1024"
    uid = node.create(pod(name, [one]))
    document = node.get(name)
    deadline = time.monotonic() + GOODBYE_SECONDS + 10
    while True:
        found = ask(port, "filter", {"Pod": document, "NodeNames": [NODE]})
        if found["NodeNames"] == [NODE]:
            break
        # After a rollback the newer agent's goodbye counts for a while.
        assert found["FailedNodes"] == {NODE: "node-silent"}, found
        assert time.monotonic() < deadline, found
        time.sleep(1.0)
    ask(port, "prioritize", {"Pod": document, "NodeNames": [NODE]})
    assert ask(port, "bind", {"PodName": name, "PodNamespace": "default", "PodUID": uid, "Node": NODE})["Error"] == ""
    return uid


def test_agent_and_extender_of_neighbouring_releases_go_together(node: Node, previous: Path, tmp_path: Path) -> None:
    uids: dict[str, str] = {}
    ways = {"old-old": (previous, previous), "new-old": (ROOT, previous), "new-new": (ROOT, ROOT), "old-new": (previous, ROOT), "back": (previous, previous)}
    for name, (agents, extenders) in ways.items():
        start(node, agents)
        with extender(node, extenders, tmp_path / "extender.log") as port:
            uids[name] = place(node, port, name)
            node.wait_running(*uids)
            assert (node.wait_report(name, uids[name])["status"], name) == ("MATCH", name)
            held = {grant["owner"]["uid"] for grant in map(json.loads, grants(node))}
            assert held == set(uids.values()), "the extender's writes are not what runs"
    for name in uids:
        assert all(status["restartCount"] == 0 for status in node.get(name)["status"]["containerStatuses"]), f"{name} was restarted by an upgrade"


def grants(node: Node) -> list[str]:
    return [one["metadata"]["annotations"][GRANT_ANNOTATION] for one in node.pods().values()]


def test_a_container_of_the_previous_release_restarts_under_this_one_and_back(node: Node, previous: Path) -> None:
    node.clear()
    start(node, previous)
    uid = node.pod("restarts", ("x1",))
    node.wait_report("restarts", uid)
    for number, release in enumerate((ROOT, previous), start=2):
        start(node, release)
        end_container(node, "restarts")
        # kubelet keeps the logs of the last two starts only, so the newest report counts, and not how many there are.

        def back(wanted: int = number - 1) -> bool:
            return restarts(node) == wanted and ready(node.get("restarts"))

        node.lab.wait(f"start {number}", back, 60)
        report = node.reports("restarts", uid)[-1]
        assert (report["status"], report["env"]["ACME_DEVICES"]) == ("MATCH", "x1")
    node.clear()
    assert XPU in node.node()["status"]["allocatable"]


def restarts(node: Node) -> int:
    return int(node.get("restarts")["status"]["containerStatuses"][0]["restartCount"])


def end_container(node: Node, name: str) -> None:
    """Its first process dies; kubelet starts the container again."""
    status = node.get(name)["status"]["containerStatuses"][0]
    identity = status["containerID"].rpartition("/")[2]
    ctr = [str(build.common() / "ctr"), "--address", CONTAINERD_SOCKET]
    node.lab.node.run([*ctr, "--namespace", "k8s.io", "task", "kill", "--signal", "SIGKILL", identity])
