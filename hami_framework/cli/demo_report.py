# SPDX-License-Identifier: Apache-2.0
"""How the demo looks: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hami_framework.cli.cluster import given, grant_of
from hami_framework.cli.demo_checks import Finding, limits_of

Json = dict[str, Any]
COLOURS = {"Running": "green", "Succeeded": "dim", "Pending": "yellow", "Failed": "red"}


class Report:
    """Where the demo says what it does."""

    def __init__(self, *, interactive: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=not interactive)
        self._interactive = interactive
        self._live: Live | None = None
        self._last = ""

    def say(self, text: str) -> None:
        """One line that stays."""
        self.pause()
        self._console.print(text, markup=False)

    def live(self, pods: Sequence[Json]) -> None:
        """The pods as they are now; on a terminal in place, elsewhere a line when the counts change."""
        if self._interactive:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=10, transient=True)
                self._live.start()
            self._live.update(_pods_table(pods))
            return
        counts = Counter(pod.get("status", {}).get("phase", "Pending") for pod in pods)
        line = ", ".join(f"{number} {phase}" for phase, number in sorted(counts.items())) or "no pods"
        if line != self._last:
            self._last = line
            self._console.print(f"  pods: {line}", markup=False)

    def pause(self) -> None:
        """End the live view, so that other lines can be printed."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self, pods: Sequence[Json], containers: Sequence[Json]) -> None:
        """Pod → node → device → what was granted → what holds it."""
        self.pause()
        table = Table(title="\nWho got what", title_justify="left", box=None, pad_edge=False)
        for column in ("POD", "CONTAINER", "NODE", "DEVICE", "GRANTED", "HELD BY"):
            table.add_column(column, no_wrap=column != "HELD BY", overflow="fold")
        views = {(view["podUID"], view["container"]): view for view in containers}
        for pod in pods:
            for row in _grant_rows(pod, views):
                table.add_row(*row)
        wide = Console(highlight=False, width=None if self._interactive else 200)
        wide.print(table)
        for pod in pods:
            if pod.get("status", {}).get("phase") == "Pending":
                conditions = [condition.get("message", "") for condition in pod["status"].get("conditions", []) if condition["type"] == "PodScheduled"]
                self._console.print(f"{pod['metadata']['name']} waits: {(conditions or ['not looked at yet'])[0].partition('. preemption')[0]}", markup=False)

    def checks(self, findings: Sequence[Finding]) -> None:
        """All that was checked."""
        self.say("\nChecked:")
        for finding in findings:
            self.say(f"  {'✓' if finding.holds else '✗'} {finding.what}")


def _pods_table(pods: Sequence[Json]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("POD", "STATUS", "NODE", "DEVICES"):
        table.add_column(column, no_wrap=True)
    for pod in pods:
        phase = pod.get("status", {}).get("phase", "Pending")
        grant = grant_of(pod)
        devices = [f"{held.device_name} ({given(held)})" for container in (grant.containers if grant else ()) for held in container.devices]
        table.add_row(
            pod["metadata"]["name"],
            f"[{COLOURS.get(phase, 'white')}]{phase}",
            pod["spec"].get("nodeName", ""),
            ", ".join(devices[:2]) + (" …" if len(devices) > 2 else ""),
        )
    return table


def _grant_rows(pod: Json, views: dict[tuple[str, str], Json]) -> list[tuple[str, ...]]:
    grant = grant_of(pod)
    uid, name, node = pod["metadata"]["uid"], pod["metadata"]["name"], pod["spec"].get("nodeName", "")
    return [
        (name, container.container, node, held.device_name, given(held), _held_by(views.get((uid, container.container)), held.vendor))
        for container in (grant.containers if grant else ())
        for held in container.devices
    ]


def _held_by(view: Json | None, vendor: str) -> str:
    """The mechanism and the levels for memory/compute/faults, as the container's own limits file states them."""
    if view is None or view["state"] != "running":
        return "-"
    for enforced in limits_of(view)["enforcement"]:
        if enforced["vendor"] == vendor:
            isolation = enforced["isolation"]
            levels = "/".join(isolation.get(aspect, "advisory") for aspect in ("memory", "compute", "fault"))
            return f"{enforced['mechanism']} ({levels})"
    return "-"
