# SPDX-License-Identifier: Apache-2.0
"""The chart's whole life on a real node, as an administrator lives it: install, a pod, upgrade, doctor, uninstall.

The pod outlives all of it; of ours nothing is left: no object, no definition, no policy, and after `hami agent --clean-up` no file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from e2e.harness.cluster import Cluster, started
from e2e.harness.pods import pod
from e2e.lab import NODE, Lab
from e2e.lab.install import CHART, RELEASE, Installed, install_chart, wait_for_slots
from e2e.lab.programs import NAMESPACE, Workload

# A lab outlives the handles of the processes it started; Python warns of each.
pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
HAMI = [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]
SHARE = {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 30}
NEED_ADMISSION = {
    "amounts-only": ({"hygon.com/dcumem": 2000}, 2000),
    "second-name-hygon": ({"hygon.com/hcunum": 1, "hygon.com/hcumem": 2000, "hygon.com/hcucores": 60}, 2000),
    "second-name-ascend": ({"huawei.com/Ascend910C": 1, "huawei.com/Ascend910C-memory": 16384}, 16384),
}
"""What only our webhook makes right, by HAMi's own examples: no count, or counted by a name that no node offers."""
BY_THEMSELVES = ("events", "events.events.k8s.io", "componentstatuses", "leases.coordination.k8s.io", "controllerrevisions.apps")
"""Kinds that come and go without anybody's doing."""


def everything(lab: Lab) -> set[str]:
    """All objects of the cluster that somebody made, as kind namespace/name."""
    kinds = [kind for kind in lab.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split() if kind not in BY_THEMSELVES]
    listed = lab.kubectl("get", ",".join(kinds), "--all-namespaces", "--ignore-not-found", "-o", "json", timeout=60.0)
    items = json.loads(listed.stdout or '{"items": []}')["items"]
    return {f"{each['kind']} {each['metadata'].get('namespace', '')}/{each['metadata']['name']}" for each in items}


def hami(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HAMI, *arguments, "--kubeconfig", str(lab.kubeconfig)], capture_output=True, text=True, timeout=60, check=False)


def clean_up(installed: Installed) -> subprocess.CompletedProcess[str]:
    """What the administrator runs on the node when the release is gone, with the agent's own root."""
    command = [sys.executable, "-m", "hami_framework.deviceplugin", "--node", NODE, "--root", str(installed.accelerators.root), "--clean-up"]
    return installed.lab.node.run(["env", "PYTHONPATH=" + os.getcwd(), *command], check=False, timeout=60)


def test_install_use_upgrade_and_uninstall_with_a_pod_that_outlives_it_all(fresh_lab: Lab) -> None:
    lab = fresh_lab
    mine = Cluster(install_chart_on(lab), "tenant")
    mine.open()
    before = everything(lab)
    assert "CustomResourceDefinition /nodeinventories.hami.io" in before

    mine.create(pod("stays", SHARE))
    mine.running("stays")
    inside = mine.inside("stays")
    assert (inside.status, inside.memory_mib, inside.core_percent) == ("MATCH", [3000], [30])
    for name, (asked, memory_mib) in NEED_ADMISSION.items():
        mine.create(pod(name, asked))
        mine.running(name)
        assert mine.inside(name).memory_mib == [memory_mib]
        mine.delete(name)
    mine.gone(*NEED_ADMISSION)

    rule = json.dumps([{"match": "lab-*", "memoryOvercommit": 1.5}])
    lab.helm("upgrade", RELEASE, str(CHART), "--namespace", NAMESPACE, "--reuse-values", "--set-json", f"nodes={rule}")
    for program in (mine.installed.agent, mine.installed.scheduler, mine.installed.webhook):
        assert isinstance(program, Workload)
        program.wait_ready()
    assert unharmed(mine)
    # kubelet offers nothing while the agent restarts, and tells of its slots up to 10 s later. A pod with amounts that kube-scheduler refuses
    # in between is not woken by the node's change (NodeResourcesFit counts the amounts against the node there, though it ignores them when it filters).
    wait_for_slots(lab)
    mine.create(pod("after", SHARE))
    mine.running("after")
    assert mine.inside("after").status == "MATCH"
    mine.delete("after")
    mine.gone("after")

    seen = hami(lab, "doctor", "--cluster", "-o", "json")
    assert seen.returncode == 0, [one for one in json.loads(seen.stdout) if one["state"] == "fail"]

    lab.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "60s")
    lab.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", timeout=70.0)
    left = sorted(one for one in everything(lab) if "hami" in one)
    assert left == []
    assert unharmed(mine)

    kept = clean_up(mine.installed)
    assert kept.returncode == 3, kept.stderr
    assert "kept: container main of pod tenant/stays: it runs" in kept.stderr
    mine.delete("stays")
    mine.gone("stays")
    removed = clean_up(mine.installed)
    assert removed.returncode == 0, removed.stderr
    assert lab.node.run(["ls", "/var/run/cdi"]).stdout.split() == []
    mine.client.close()


def install_chart_on(lab: Lab) -> Installed:
    """The chart, as `make cluster` installs it."""
    installed = install_chart(lab)
    assert installed.webhook is not None
    return installed


def unharmed(mine: Cluster) -> bool:
    """The pod runs, and has not been started again."""
    found = mine.pod("stays")
    return started(found) and all(one["restartCount"] == 0 for one in found["status"]["containerStatuses"])
