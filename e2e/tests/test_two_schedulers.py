# SPDX-License-Identifier: Apache-2.0
"""A second kube-scheduler that knows nothing of the extender binds pods to the same devices: nobody gets what is not theirs, and it is said."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.harness.cluster import Cluster, phase
from e2e.harness.pods import pod
from e2e.lab import Lab
from e2e.lab.install import Installed

Json = dict[str, Any]
HAMI = [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]
SECOND = "second-scheduler"
WHOLE = {"nvidia.com/gpu": 1}


@pytest.fixture
def second_scheduler(installed: Installed) -> Iterator[str]:
    """Its name in `spec.schedulerName`."""
    lab: Lab = installed.lab
    config = lab.directory / "config" / f"{SECOND}.json"
    document = json.loads(lab.components.scheduler_config.read_text()) | {"profiles": [{"schedulerName": SECOND}]}
    config.write_text(json.dumps(document))
    lab.control.spawn(SECOND, [*lab.components.kube_scheduler(config), "--secure-port", "10359"], log=lab.logs / f"{SECOND}.log")
    yield SECOND
    lab.control.kill(SECOND, signal.SIGTERM)


def test_what_a_scheduler_without_the_extender_binds_does_not_start_and_is_told(cluster: Cluster, second_scheduler: str) -> None:
    cluster.create(pod("mine", WHOLE), pod("stray", WHOLE, schedulerName=second_scheduler))
    cluster.running("mine")
    cluster.until("the other scheduler to bind its pod", lambda: bool(cluster.pod("stray")["spec"].get("nodeName")), 20)
    cluster.until(
        "the pod's author to be told",
        lambda: any("not bound by the hami scheduler extender" in event["message"] for event in cluster.events("stray")),
        40,
        otherwise=lambda: cluster.explain("stray"),
    )
    assert phase(cluster.pod("stray")) == "Pending", "its containers wait: no container ever runs with a device that was not promised to it"
    found = subprocess.run(
        [*HAMI, "doctor", "--cluster", "--kubeconfig", str(cluster.lab.kubeconfig), "-o", "json"], capture_output=True, text=True, timeout=60, check=False
    )
    lines: list[Json] = [one for one in json.loads(found.stdout) if one["what"] == "grants" and one["state"] != "ok"]
    assert found.returncode == 1
    assert any(one["where"] == f"{cluster.namespace}/stray" and SECOND in one["do"] for one in lines), lines
    cluster.create(pod("next", WHOLE))
    cluster.running("next")
