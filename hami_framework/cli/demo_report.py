# SPDX-License-Identifier: Apache-2.0
"""How the demo looks: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hami_framework.cli.cluster import given, grant_of
from hami_framework.cli.demo_checks import Finding, limits_of
from hami_framework.model import Device, Inventory

Json = dict[str, Any]
HELD_BY = "HELD BY (memory/compute/faults)"
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

    def table(self, pods: Sequence[Json], inventories: Sequence[Inventory], containers: Sequence[Json]) -> None:
        """Pod → node → device → what was granted → what holds it."""
        self.pause()
        table = Table(box=None, pad_edge=False)
        for column in ("POD", "CONTAINER", "NODE", "DEVICE", "GRANTED", HELD_BY):
            table.add_column(column, no_wrap=column != HELD_BY, overflow="fold")
        labels = {device.id: device_label(device) for inventory in inventories for device in inventory.devices}
        views = {(view["podUID"], view["container"]): view for view in containers}
        for pod in pods:
            for row in _grant_rows(pod, views, labels):
                table.add_row(*row)
        self.say("\nWho got what")
        if self._interactive:
            self._console.print(table)
        else:
            self._print_plain(table)
        self._console.print()
        for pod in pods:
            if pod.get("status", {}).get("phase") == "Pending":
                conditions = [condition.get("message", "") for condition in pod["status"].get("conditions", []) if condition["type"] == "PodScheduled"]
                self._console.print(
                    f"{pod['metadata']['name']} has no node: {(conditions or ['not looked at yet'])[0].partition('. preemption')[0]}", markup=False
                )

    def _print_plain(self, table: Table) -> None:
        """Lines as long as they need to be, without blanks behind them: made for logs and pipes."""
        wide = Console(highlight=False, width=1000)
        with wide.capture() as capture:
            wide.print(table)
        for line in capture.get().splitlines():
            self._console.print(line.rstrip(), markup=False)

    def checks(self, findings: Sequence[Finding]) -> None:
        """What was just checked, a line each."""
        self.pause()
        for finding in findings:
            mark, style = ("✓", "green") if finding.holds else ("✗", "bold red")
            self._console.print(Text.assemble("  ", (mark, style), f" {finding.what}"))


def _pods_table(pods: Sequence[Json]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("POD", "STATUS", "NODE", "DEVICES"):
        table.add_column(column, no_wrap=True)
    for pod in pods:
        phase = pod.get("status", {}).get("phase", "Pending")
        grant = grant_of(pod)
        devices = [f"{held.vendor} {given(held)}" for container in (grant.containers if grant else ()) for held in container.devices]
        table.add_row(
            pod["metadata"]["name"],
            f"[{COLOURS.get(phase, 'white')}]{phase}",
            pod["spec"].get("nodeName", ""),
            ", ".join(devices[:2]) + (" …" if len(devices) > 2 else ""),
        )
    return table


def device_label(device: Device) -> str:
    """A device as people speak of it: model and index on its node."""
    return f"{device.device_class.model} #{device.index}"


def _grant_rows(pod: Json, views: dict[tuple[str, str], Json], labels: dict[str, str]) -> list[tuple[str, ...]]:
    grant = grant_of(pod)
    uid, name, node = pod["metadata"]["uid"], pod["metadata"]["name"], pod["spec"].get("nodeName", "")
    return [
        (
            name,
            container.container,
            node,
            labels.get(held.device_id, held.device_name),
            given(held),
            _held_by(views.get((uid, container.container)), held.vendor),
        )
        for container in (grant.containers if grant else ())
        for held in container.devices
    ]


def _held_by(view: Json | None, vendor: str) -> str:
    """The mechanism and its levels (one where all are equal), as the container's own limits file states them."""
    if view is None or view["state"] != "running":
        return "-"
    for enforced in limits_of(view)["enforcement"]:
        if enforced["vendor"] == vendor:
            isolation = enforced["isolation"]
            levels = [isolation.get(aspect, "advisory") for aspect in ("memory", "compute", "fault")]
            return f"{enforced['mechanism']} ({'/'.join(levels if len(set(levels)) > 1 else levels[:1])})"
    return "-"
