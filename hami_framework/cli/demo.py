# SPDX-License-Identifier: Apache-2.0
"""`hami demo`: brings up a mixed-vendor cluster, schedules real manifests, breaks things on the way, and checks everything it did."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hami_framework.cli.cluster import grant_of, list_inventories, list_pods, run_to_the_end
from hami_framework.cli.demo_checks import Finding, check_cluster, check_nothing_leaked
from hami_framework.cli.demo_limits import LimitsAct
from hami_framework.cli.demo_report import Report, device_label
from hami_framework.cli.manifests import Applier, read_manifests
from hami_framework.errors import ConfigError
from hami_framework.kube import credentials
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError

if TYPE_CHECKING:
    from hami_framework.sandbox.cluster import Cluster

HOPELESS = "never-fits"
JOB = "all-the-mlus"
WAITING = "waits-for-mlus"
VICTIM_NODE = "dgx-1"
SICK_NODE, SICK_DEVICE = "hgx-1", "0"
SETTLE_SECONDS = 60.0


@click.command()
@click.option(
    "--examples",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("examples/demo"),
    show_default=True,
    help="Folder with nodes.yaml and the manifests.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what the stand-ins do.")
def command(examples: Path, verbose: bool) -> None:
    """Six nodes of four vendors, two dozen pods, a device that fails, an agent killed with kill -9.

    The agents, the extender and the vendors' packages are the product's own; API server, kubelet, runtime and silicon are stand-ins.
    The exit status says whether every check held.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    nodes_file = examples / "nodes.yaml"
    if not nodes_file.exists():
        raise ConfigError(f"{nodes_file} is missing: run the demo in a checkout, or name the folder with --examples")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # the kubelet doubles lose agents on purpose; gRPC would tell of each
    begun = time.monotonic()
    findings = run_to_the_end(_run(nodes_file, examples))
    bad = [finding for finding in findings if not finding.holds]
    click.echo(f"\n{len(findings) - len(bad)} of {len(findings)} checks hold, {time.monotonic() - begun:.0f} s.")
    if bad:
        raise click.exceptions.Exit(1)


async def _run(nodes_file: Path, examples: Path) -> list[Finding]:
    from hami_framework.plugins import load_registry
    from hami_framework.sandbox.cluster import Cluster
    from hami_framework.sandbox.nodes import load_nodes
    from hami_framework.testing.fakes import build_libraries

    registry = load_registry()
    specs = load_nodes(nodes_file, registry.machines())
    report = Report(interactive=sys.stdout.isatty())
    report.say(f"Vendors installed: {', '.join(f'{vendor.name} {vendor.source.version}' for vendor in registry.vendors.values())}")
    report.say(f"Bringing up {len(specs)} nodes: {', '.join(spec.name for spec in specs)} …")
    async with Cluster(specs, build=build_libraries, registry=registry) as cluster:
        client = await asyncio.to_thread(lambda: KubeClient(credentials.load(str(cluster.kubeconfig))))
        try:
            return await Demo(cluster, client, report, examples).play()
        except TimeoutError as error:
            report.say(f"\n{error}\nThe agents' and the extender's last words:\n{cluster.last_words()}")
            return [Finding(holds=False, what=str(error))]
        finally:
            client.close()


class Demo:
    """The play, act by act."""

    def __init__(self, cluster: Cluster, client: KubeClient, report: Report, examples: Path) -> None:
        self._cluster = cluster
        self._client = client
        self._report = report
        self._examples = examples
        self._findings: list[Finding] = []
        self._restarted = ("", "")
        """Pod UID and name of the container that died with the agent."""
        self._waited = False
        """Whether the pod that waits its turn was seen waiting while the job ran."""

    async def play(self) -> list[Finding]:
        """All acts; what was checked, and whether it held."""
        self._report.say("Everything is up: API server, extender, a kubelet and a node agent for each node.\n")
        await self._apply()
        await self._kill_an_agent()
        await self._settle()
        await self._fail_a_device()
        await self._hold_limits()
        await self._check()
        await self._wait_for_the_job()
        await self._clean_up()
        return self._findings

    async def _apply(self) -> None:
        applier = Applier(self._client)
        manifests = list(read_manifests([self._examples]))
        for _, manifest in manifests:
            await asyncio.to_thread(applier.apply, manifest, "default")
        self._report.say(f"Applied {len(manifests)} manifests written with HAMi's resource names, from {self._examples}.")

    async def _kill_an_agent(self) -> None:
        """Once kubelet has admitted what was bound there (before, kubelet itself would fail those pods for good), while containers start or run."""

        def admitted(pods: list[dict[str, Any]]) -> bool:
            asked = [pod for pod in pods if pod["metadata"]["name"] not in (HOPELESS, WAITING)]
            return bool(asked) and all("startTime" in pod.get("status", {}) for pod in asked)

        pods = await self._until(admitted, "not all pods were admitted by kubelet")
        victim = next(pod for pod in pods if pod["spec"].get("nodeName") == VICTIM_NODE and pod["status"].get("phase") == "Running")
        pid = self._cluster.kill_agent(VICTIM_NODE)
        self._report.say(
            f"kill -9 of the agent of {VICTIM_NODE} (pid {pid}); a container of {victim['metadata']['name']} dies with it and must get its own grant again."
        )
        self._restarted = victim["metadata"]["uid"], victim["spec"]["containers"][0]["name"]
        self._cluster.nodes[VICTIM_NODE].kubelet.restart_container(*self._restarted)

    async def _settle(self) -> None:
        """All pods run but the hopeless one and the one that waits its turn."""

        def settled(pods: list[dict[str, Any]]) -> bool:
            open_ = {pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") not in ("Running", "Succeeded")}
            running = {(view["podUID"], view["container"]) for view in self._cluster.containers() if view["state"] == "running"}
            return bool(pods) and open_ <= {HOPELESS, WAITING} and self._restarted in running

        await self._until(settled, "not all pods came to run")
        self._find(self._waited, f"{WAITING} waits while another holds the devices it needs")

    async def _fail_a_device(self) -> None:
        device = self._cluster.fail_device(SICK_NODE, SICK_DEVICE)
        took = await self._until_health(device.id, ok=False)
        self._find(took <= 2.0, f"{device_label(device)} of {SICK_NODE} failed: seen in the inventory after {took:.1f} s (at most 2)")
        self._cluster.recover_device(SICK_NODE, SICK_DEVICE)
        took = await self._until_health(device.id, ok=True)
        self._find(took <= 2.0, f"{device_label(device)} of {SICK_NODE} recovered: seen in the inventory after {took:.1f} s (at most 2)")

    async def _hold_limits(self) -> None:
        """Two real processes on one device: one wants more than its share."""
        self._report.say("\nLimits that hold: two pods run a real program (examples/demo/allocate.py) on one GPU, and greedy wants more than it was granted.")
        act = LimitsAct(self._cluster, self._client, self._examples)
        findings = await act.play()
        for line in act.story():
            self._report.say(f"  {line}")
        self._note(findings)

    async def _check(self) -> None:
        pods, inventories = await asyncio.to_thread(list_pods, self._client), await asyncio.to_thread(list_inventories, self._client)
        self._report.table(pods, inventories, self._cluster.containers())
        self._report.say("\nChecked while all of them run:")
        self._note(check_cluster(pods, inventories, self._cluster.containers()))
        hopeless = next(pod for pod in pods if pod["metadata"]["name"] == HOPELESS)
        self._find("memory-too-large" in _message(hopeless), f"{HOPELESS} is refused for good, and told so: memory-too-large")

    async def _wait_for_the_job(self) -> None:
        await self._until(
            lambda pods: any(pod["metadata"]["name"] == WAITING and pod["status"].get("phase") == "Running" for pod in pods), f"{WAITING} never came to run"
        )
        self._find(True, f"{WAITING} runs now that the job has ended")
        pods, inventories = await asyncio.to_thread(list_pods, self._client), await asyncio.to_thread(list_inventories, self._client)
        self._note(check_cluster(pods, inventories, self._cluster.containers()))

    async def _clean_up(self) -> None:
        for plural, group in (("deployments", "apps"), ("jobs", "batch"), ("pods", "")):
            for item in (await asyncio.to_thread(self._client.list, path(plural, group=group, namespace="default")))["items"]:
                await self._delete(path(plural, group=group, namespace="default", name=item["metadata"]["name"]))
        await self._until(lambda pods: not pods, "pods were left after they were deleted")
        self._report.say("\nEverything was deleted:")
        for _ in range(int(SETTLE_SECONDS / 0.2)):
            if all(finding.holds for finding in check_nothing_leaked(self._cluster)):
                break
            await asyncio.sleep(0.2)
        self._note(check_nothing_leaked(self._cluster))

    async def _delete(self, address: str) -> None:
        """What is gone already (a deployment takes its pods with it) is what was wanted."""
        try:
            await asyncio.to_thread(self._client.delete, address)
        except ApiError as error:
            if not error.not_found:
                raise

    def _find(self, holds: bool, what: str) -> None:
        self._note([Finding(holds=holds, what=what)])

    def _note(self, findings: list[Finding]) -> None:
        """Remember what was checked, and show it: now, and only once."""
        self._findings += findings
        self._report.checks(findings)

    async def _until(self, condition: Callable[[list[dict[str, Any]]], bool], otherwise: str) -> list[dict[str, Any]]:
        """Poll the pods, showing them, until the condition holds. Raises `TimeoutError`."""
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            pods = await asyncio.to_thread(list_pods, self._client)
            self._report.live(pods)
            self._waited = self._waited or _waits_its_turn(pods)
            if condition(pods):
                self._report.pause()
                return pods
            if time.monotonic() > end:
                self._report.pause()
                open_ = [
                    f"{pod['metadata']['name']}: {_message(pod) or pod.get('status')}"
                    for pod in pods
                    if grant_of(pod) is None or pod["status"].get("phase") != "Running"
                ]
                raise TimeoutError("\n  ".join([f"{otherwise} within {SETTLE_SECONDS:.0f} s:", *open_]))
            await asyncio.sleep(0.1)

    async def _until_health(self, device_id: str, *, ok: bool) -> float:
        begun = time.monotonic()
        while time.monotonic() - begun < SETTLE_SECONDS:
            inventories = await asyncio.to_thread(list_inventories, self._client)
            found = next(inventory.device(device_id) for inventory in inventories if inventory.node == SICK_NODE)
            if found is not None and found.health.ok is ok:
                return time.monotonic() - begun
            await asyncio.sleep(0.05)
        raise TimeoutError(f"the health of {device_id} never changed in the inventory")


def _waits_its_turn(pods: list[dict[str, Any]]) -> bool:
    """At one look: the job's pod runs, and the one that needs its devices has no node."""
    job = any(pod["metadata"]["name"].startswith(JOB) and pod.get("status", {}).get("phase") == "Running" for pod in pods)
    return job and any(pod["metadata"]["name"] == WAITING and pod["spec"].get("nodeName") is None for pod in pods)


def _message(pod: dict[str, Any]) -> str:
    conditions = pod.get("status", {}).get("conditions", [])
    return next((str(condition.get("message", "")) for condition in conditions if condition.get("type") == "PodScheduled"), "")
