# SPDX-License-Identifier: Apache-2.0
"""`hami scheduler-config` against the real kube-scheduler: its output is taken as it stands, and the weight decides as it says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.lab import Lab
from e2e.lab.fake_nodes import FakeNodes, running
from e2e.lab.install import extender, install_definitions
from hami_framework.codec.grants import GRANT_ANNOTATION
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import load

PORT = 9591


def written(lab: Lab, file: Path, *arguments: str) -> Path:
    """What the command writes, with the lab's kube-scheduler identity."""
    kubeconfig = json.loads(lab.components.scheduler_config.read_text())["clientConnection"]["kubeconfig"]
    command = [sys.executable, "-c", "from hami_framework.cli.main import main; main()", "scheduler-config", "--mode", "existing", "--kubeconfig", kubeconfig]
    made = subprocess.run([*command, "--url", f"http://127.0.0.1:{PORT}", "-o", str(file), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    return file


@pytest.fixture
def client(control_plane: Lab) -> Iterator[KubeClient]:
    install_definitions(control_plane)
    it = KubeClient(load(str(control_plane.kubeconfig)), threads=4)
    yield it
    it.close()


def scheduled(client: KubeClient, name: str, *, prefer: str | None = None) -> str:
    """The node that the pod went to."""
    affinity = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [prefer]}]}}
            ]
        }
    }
    container = {"name": "main", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "20000"}}}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0, **({"affinity": affinity} if prefer else {})}
    client.create(path("pods", namespace="default"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    deadline = time.monotonic() + 40
    while True:
        pod = client.get(path("pods", namespace="default", name=name))
        if node := pod["spec"].get("nodeName"):
            assert GRANT_ANNOTATION in pod["metadata"]["annotations"]
            return str(node)
        assert time.monotonic() < deadline, pod.get("status")
        time.sleep(0.1)


@pytest.mark.parametrize(("authority", "follows_us"), [("decisive", True), ("advisory", False)])
def test_the_weight_decides_as_it_says(control_plane: Lab, client: KubeClient, tmp_path: Path, authority: str, follows_us: bool) -> None:
    """Ours packs: the second pod belongs beside the first. The pod's own affinity, an in-tree score of 200, wants the empty node."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"placement: {{authority: {authority}}}\n")  # both read it: a decisive extender leaves kube-scheduler no choice
    configuration = written(control_plane, tmp_path / "scheduler.yaml", "--settings", str(settings))
    program = extender(control_plane, ["--settings", str(settings)], name="extender-weights", port=PORT)
    with FakeNodes(client) as nodes, running(client):
        nodes.create(2)
        program.start()
        control_plane.restart("kube-scheduler", config=configuration)
        try:
            used = scheduled(client, "first")
            empty = next(name for name in ("fake-00000", "fake-00001") if name != used)
            assert scheduled(client, "second", prefer=empty) == (used if follows_us else empty)
        finally:
            program.kill(signal.SIGKILL)
            for name in ("first", "second"):
                control_plane.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--ignore-not-found", check=False)
            control_plane.restart("kube-scheduler")
