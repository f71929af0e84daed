# SPDX-License-Identifier: Apache-2.0
"""Puts the framework into a running lab: `install_chart` as users do it, `install_processes` for tests that want speed.

`python -m e2e.lab.install` (`make cluster`) brings the lab up and installs the chart. Both ways give the node fake accelerators
of four vendors (`accelerators.py`) and the programs as handles that can be killed and started (`programs.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.lab import images, welcome
from e2e.lab.accelerators import Accelerators, accelerators, fit_out
from e2e.lab.build import ROOT
from e2e.lab.cluster import WORKER, Lab
from e2e.lab.components import NODE
from e2e.lab.machine import LabError
from e2e.lab.programs import NAMESPACE, Process, Program, Workload
from hami_framework.codec import inventories
from hami_framework.config import Settings
from hami_framework.plugins import load_registry
from hami_framework.scheduler import configuration

CHART = ROOT / "deploy" / "chart"
VALUES = Path(__file__).with_name("values.yaml")
RELEASE = "hami"
EXTENDER_PORT = 9480
AGENT_ENVIRONMENT = {"PYTHONOPTIMIZE": "2", "MALLOC_ARENA_MAX": "1", "PYTHONDONTWRITEBYTECODE": "1"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Installed:
    """The framework in a lab."""

    lab: Lab
    accelerators: Accelerators
    agent: Program
    scheduler: Program
    """Its extender: a process beside kube-scheduler, or the Deployment."""
    webhook: Program | None = None
    """With the chart only."""

    def reboot_node(self) -> None:
        """Power-cycle the node, drivers included. A plain agent starts again with it, before kubelet, as a host service would."""
        self.lab.node.off()
        self.lab.node.boot(self.lab.network_pid)
        fit_out(self.lab)
        if isinstance(self.agent, Process):
            self.agent.start(wait=False)
        for component in WORKER:
            self.lab.start(component)


# -- as plain processes ----------------------------------------------------------------------------------------------


def install_processes(
    lab: Lab,
    *,
    agent_arguments: Sequence[str] = (),
    extender_arguments: Sequence[str] = (),
    agent_environment: Mapping[str, str] | None = None,
    wait: bool = True,
) -> Installed:
    """The agent as a service of the node, the extender beside kube-scheduler, no webhook. Idempotent for a lab where they run. Raises LabError."""
    machines = fit_out(lab)
    install_definitions(lab)
    parts = Installed(lab, machines, agent(lab, agent_arguments, agent_environment), extender(lab, extender_arguments))
    assert isinstance(parts.scheduler, Process)
    assert isinstance(parts.agent, Process)
    if not parts.agent.alive:
        parts.agent.start(wait=False)
    configured = scheduler_configuration(lab)
    if not parts.scheduler.alive:
        parts.scheduler.start()
        lab.restart("kube-scheduler", config=configured)
    parts.agent.wait_ready()
    if wait:
        wait_for_slots(lab)
    return parts


def install_definitions(lab: Lab) -> None:
    """The namespace and the inventory's definition, and wait until the API server serves it."""
    lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, inventories.CRD)
    lab.kubectl("wait", "--for=condition=Established", f"crd/{inventories.CRD['metadata']['name']}", "--timeout=20s")


def agent(lab: Lab, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Process:
    """The handle of the node's agent as a plain process; `start` starts it."""
    machines = accelerators(lab)
    argv = [
        *(sys.executable, "-m", "hami_framework.deviceplugin", "--node", NODE, "--kubeconfig", str(lab.inside_kubeconfig)),
        *("--root", str(machines.root), *machines.worker_arguments(), *arguments),
    ]

    def published() -> bool:
        return lab.kubectl("get", inventories.PLURAL, NODE, check=False).returncode == 0

    return Process(lab, "hami-agent", lab.node, argv, {**_environment(lab), **AGENT_ENVIRONMENT, **(environment or {})}, published)


def extender(lab: Lab, arguments: Sequence[str] = (), *, name: str = "hami-scheduler", port: int = EXTENDER_PORT, health_port: int | None = None) -> Process:
    """The handle of an extender as a plain process beside the control plane. Several: other names and ports. `health_port`: its probes, if elsewhere."""
    argv = [sys.executable, "-m", "hami_framework.scheduler", "--kubeconfig", str(lab.inside_kubeconfig), "--port", str(port), *arguments]
    ask = (
        "import http.client, sys\n"
        "c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=2)\n"
        "c.request('GET', '/readyz')\n"
        "sys.exit(c.getresponse().status != 200)"
    )

    def ready() -> bool:
        return lab.control.run([sys.executable, "-S", "-c", ask, str(health_port or port)], check=False).returncode == 0

    return Process(lab, name, lab.control, argv, _environment(lab), ready)


def _environment(lab: Lab) -> dict[str, str]:
    return {**lab.components.environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def scheduler_configuration(lab: Lab, *, port: int = EXTENDER_PORT, settings: Settings | None = None) -> Path:
    """A kube-scheduler configuration with the extender of `install_processes`, as `hami scheduler-config --merge` writes it; answers its file."""
    existing = json.loads(lab.components.scheduler_config.read_text())
    weight = configuration.weight((settings or Settings()).placement.authority, existing.get("profiles") or ())
    entry = configuration.extender(load_registry().catalog(), f"http://127.0.0.1:{port}", weight)
    file = lab.directory / "config" / f"kube-scheduler-hami-{port}.json"
    file.write_text(json.dumps(configuration.merged(existing, entry), indent=1))
    return file


# -- by the chart ----------------------------------------------------------------------------------------------------


def install_chart(lab: Lab, values: Json | None = None, *, release: str = RELEASE, wait: bool = True, say: Callable[[str], None] = lambda _: None) -> Installed:
    """`helm upgrade --install` of deploy/chart with the lab's values and these. `say` is told each step.

    Raises LabError with helm's words and what the pods say.
    """
    machines = fit_out(lab)
    say("accelerators of four vendors plugged in (fakes)")
    lab.load_image(images.product())
    lab.load_image(images.scheduler(lab.options.kubernetes))
    say("images of this checkout made and loaded")
    file = lab.directory / "values.json"
    file.write_text(json.dumps(merged(lab_values(lab, machines), values or {})))
    command = ["upgrade", "--install", release, str(CHART), "--namespace", NAMESPACE, "--create-namespace", "--values", str(VALUES), "--values", str(file)]
    lab.helm(*command)
    say("chart installed; its pods start")
    parts = chart_parts(lab, machines)
    if wait:
        for program in (parts.scheduler, parts.webhook, parts.agent):
            if isinstance(program, Workload):
                program.wait_ready()
                say(f"{program.name} ready")
        wait_for_slots(lab)
    return parts


def chart_parts(lab: Lab, machines: Accelerators) -> Installed:
    """Handles of what the chart made."""
    webhook = Workload(lab, "deployment", "hami-webhook", "webhook", "app.kubernetes.io/component=webhook")
    has_webhook = lab.kubectl("get", "deployment", webhook.name, "--namespace", NAMESPACE, check=False).returncode == 0
    return Installed(
        lab,
        machines,
        Workload(lab, "daemonset", "hami-agent", "agent", "app.kubernetes.io/component=agent"),
        Workload(lab, "deployment", "hami-scheduler", "extender", "app.kubernetes.io/component=scheduler"),
        webhook if has_webhook else None,
    )


def lab_values(lab: Lab, machines: Accelerators) -> Json:
    """What only the running lab knows: where its machine files are, which kube-scheduler it has."""
    folder = str(machines.directory)
    repository, _, tag = images.scheduler_name(lab.options.kubernetes).rpartition(":")
    # The tag is the same for each build: pods are made anew when what is behind it has changed.
    mark = {"podAnnotations": {"lab.hami.io/image": images.product_digest()}}
    return {
        "vendors": {vendor: {"env": environment} for vendor, environment in machines.environments().items()},
        "agent": {
            **mark,
            "extraArgs": [f"--root={machines.root}"],
            "extraVolumes": [{"name": "lab-machines", "hostPath": {"path": folder, "type": "Directory"}}],
            "extraVolumeMounts": [{"name": "lab-machines", "mountPath": folder}],
        },
        "scheduler": {**mark, "kubeScheduler": {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}},
        "webhook": mark,
    }


def merged(first: Any, second: Any) -> Any:
    """`second` over `first`, mapping by mapping; lists are joined."""
    if isinstance(first, dict) and isinstance(second, dict):
        return {
            key: merged(first[key], second[key]) if key in first and key in second else (second if key in second else first)[key] for key in {**first, **second}
        }
    if isinstance(first, list) and isinstance(second, list):
        return first + second
    return second


# -- both ------------------------------------------------------------------------------------------------------------


def wait_for_slots(lab: Lab, seconds: float = 60.0) -> float:
    """Until kubelet has told the API server of every vendor's slots (its node status may be 10 s late). Answers how long it took."""
    wanted = ("hami.io/accelerator", "nvidia.com/gpu", "huawei.com/Ascend910B3", "cambricon.com/vmlu", "hygon.com/dcunum")

    def told() -> bool:
        allocatable = lab.get("node", NODE)["status"].get("allocatable", {})
        return all(int(allocatable.get(name, 0)) > 0 for name in wanted)

    return lab.wait(f"node {NODE} to offer {', '.join(wanted)}", told, seconds)


def main() -> int:
    """`make cluster`. Exit status 0, or 1 with one message."""
    parser = argparse.ArgumentParser(
        prog="python -m e2e.lab.install", description="A real one-node Kubernetes with the framework and fake accelerators of four vendors."
    )
    parser.add_argument("--name", default="default", help="which lab (%(default)s)")
    parser.add_argument("--kubernetes", metavar="1.N", help="minor version (default: the newest)")
    parser.add_argument("--processes", action="store_true", help="agent and extender as plain processes, without the chart")
    options = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.1f} s  {text}", file=sys.stderr, flush=True)

    try:
        _bring_up(options, say)
    except LabError as error:
        print(f"make cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _bring_up(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    lab = Lab.up(options.name, kubernetes=options.kubernetes, say=lambda text: say(text.partition(" s  ")[2]))
    if options.processes:
        install_processes(lab)
    else:
        install_chart(lab, say=say)
    say("the node offers its accelerators")
    print(welcome.words(lab, lab.get("node", NODE)["status"]["allocatable"]))


if __name__ == "__main__":
    sys.exit(main())
