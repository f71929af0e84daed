# SPDX-License-Identifier: Apache-2.0
"""`hami ps`: who holds what on this machine, live."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hami_framework.cli.cluster import running_sandbox
from hami_framework.cli.local import state_option
from hami_framework.cli.show import output_option, show
from hami_framework.model import show_bytes

if TYPE_CHECKING:
    from hami_framework.local.holders import Holder

SHORT = 12
"""Characters of a device's id: the first group of a UUID, and what stands before it."""
CLEAR = "\033[H\033[2J"


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.05, 60), default=1.0, show_default=True, help="Seconds between looks, and over which busyness is measured.")
@state_option
@output_option
def command(watch: bool, interval: float, state_dir: Path | None, output: str) -> None:
    """Local runs and containers of this machine: device, memory used and allowed, compute, processes.

    Containers are those that the node agent prepared here, in the running sandbox too. Runs that were killed are swept away.
    """
    from hami_framework.local import holders, run

    logging.basicConfig(level=logging.WARNING, format="hami: %(message)s")
    states = state_directories(state_dir)
    while True:
        for state in states:
            run.sweep_without_vendors(state)
        found = holders.look(states, interval if watch else min(interval, 0.25))
        if watch and output in ("table", "wide"):
            click.echo(CLEAR, nl=False)
        show(
            shortened(rows(found)) if output == "table" else rows(found),
            ["name", "device", "memory", "cores", "busy", "processes", "level"],
            output,
            wide=["id", "pid", "refused"],
            nothing="nobody holds anything",
        )
        if not watch:
            return
        time.sleep(0 if found else interval)


def state_directories(state_dir: Path | None) -> list[Path]:
    """Where to look: the directory named, or this user's, the agent's, and those of the running sandbox's nodes; played machines below each."""
    from hami_framework.local.vendors import SYSTEM, state_directory

    if state_dir is not None:
        found = [state_dir]
    else:
        found = [state_directory(), SYSTEM]
        sandbox = running_sandbox()
        found += sorted(Path(sandbox["kubeconfig"]).parent.glob("n/*/s")) if sandbox else []
    return list(dict.fromkeys(each for one in found for each in (one, *sorted((one / "machines").glob("*")))))


def shortened(found: list[dict[str, object]]) -> list[dict[str, object]]:
    """Devices by as much of their ids as tells them apart, so that a line fits a terminal; `-o wide` and JSON have the whole."""
    ids = {str(row["device_id"]) for row in found}
    length = next((length for length in (SHORT, 2 * SHORT) if len({each[:length] for each in ids}) == len(ids)), 256)
    return [
        {**row, "device": f"{row['vendor']} {each if len(each) <= length + 1 else each[:length] + '…'}"} for row in found for each in [str(row["device_id"])]
    ]


def rows(found: list[Holder]) -> list[dict[str, object]]:
    """One row per holder and device."""
    return [
        {
            "name": one.name,
            "kind": one.kind,
            "device": held.device,
            "memory": f"{show_bytes(held.memory_used_bytes) if held.memory_used_bytes is not None else '?'} / "
            + (show_bytes(held.memory_limit_bytes) if held.memory_limit_bytes is not None else "all"),
            "cores": f"{held.core_percent:g} %" if held.core_percent is not None else "all",
            "busy": f"{held.busy_percent:g} %" if held.busy_percent is not None else None,
            "processes": list(one.pids),
            "level": one.level,
            "id": one.id,
            "pid": one.pid,
            "refused": held.refusals,
            "problem": one.problem,
            "command": list(one.command),
            "device_id": held.device_id,
            "vendor": held.vendor,
            "memory_limit_bytes": held.memory_limit_bytes,
            "memory_used_bytes": held.memory_used_bytes,
            "high_water_bytes": held.high_water_bytes,
            "core_percent": held.core_percent,
            "busy_percent": held.busy_percent,
        }
        for one in found
        for held in one.holdings
    ]
