# SPDX-License-Identifier: Apache-2.0
"""`hami run`: a program on this machine with part of a device, and no Kubernetes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

import click

from hami_framework.cli.local import Memory, machine_option, setting_of, state_option


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--memory", type=Memory(), metavar="AMOUNT", help="Device memory per device, e.g. 4GiB, 3000MiB; with nothing at all asked, whole devices.")
@click.option("--cores", type=click.IntRange(1, 100), metavar="PERCENT", help="Share of each device's compute.")
@click.option("--device", "devices", multiple=True, metavar="DEVICE", help="VENDOR, VENDOR:INDEX, an id, a name or a PCI address; repeat for more.")
@click.option("--count", type=click.IntRange(1, 16), metavar="N", help="How many devices.  [default: 1, or as many as are named]")
@click.option("--dry-run", is_flag=True, help="Say what would be given and how it would be held; run nothing.")
@click.option("--advisory", is_flag=True, help="As root: hold the limit as without root, by the environment alone.")
@click.option("--unheld", is_flag=True, help="Run it even where nothing would hold the limit.")
@click.option("--plugin", "plugin_files", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A one-file plugin.")
@machine_option
@state_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How --dry-run prints its answer.")
@click.argument("program", metavar="-- PROGRAM [ARGUMENT]…", nargs=-1, type=click.UNPROCESSED)
def command(
    memory: int | None,
    cores: int | None,
    devices: tuple[str, ...],
    count: int | None,
    dry_run: bool,
    advisory: bool,
    unheld: bool,
    plugin_files: tuple[Path, ...],
    machine: str | None,
    state_dir: Path | None,
    output: str,
    program: tuple[str, ...],
) -> None:
    """Run PROGRAM with part of a device: hami run --memory 4GiB --cores 30 -- python train.py

    The exit status is the program's. As root the limit is held in a private view of the files (level soft); without root by
    the environment alone (level advisory), which a program could change. `hami ps` shows it, `hami limit` changes it.
    """
    from hami_framework.local import run
    from hami_framework.local.choose import Wanted
    from hami_framework.local.process import FAILED, LaunchFailed
    from hami_framework.plugins import load_registry

    if not program or not program[0]:
        raise click.UsageError("say what to run, after --, e.g.: hami run --memory 4GiB -- python train.py")
    logging.basicConfig(level=logging.ERROR, format="hami: %(message)s")
    run.load_threads()
    registry = load_registry(None, plugin_files)
    setting = setting_of(machine, state_dir, registry)
    as_user = os.geteuid() != 0
    wanted = Wanted(count=count, memory_bytes=memory, core_percent=cores, devices=devices)
    order = run.Order(command=program, wanted=wanted, advisory=advisory or as_user, unheld=unheld, plugin_files=tuple(map(str, plugin_files)))
    logging.disable(logging.WARNING)
    started = asyncio.run(run.begin(order, setting, registry, dry=dry_run))
    if dry_run:
        click.echo(json.dumps(_plain(started), indent=2) if output == "json" else _words(started))
        return
    if order.advisory and started.prepared.level == "advisory":
        why = "without root" if as_user else "with --advisory"
        click.echo(f"hami: {why} the limit is advisory: it holds as long as the program does not work around it", err=True)
    elif started.prepared.level == "advisory":
        click.echo(f"hami: the limit is advisory: {started.prepared.mechanism}", err=True)
    try:
        status = run.perform(started, setting)
    except LaunchFailed as error:
        instead = "; with --advisory it needs none" if started.prepared.private and error.status == FAILED else ""
        click.echo(f"hami: {error}{instead}", err=True)
        status = error.status
    finally:
        asyncio.run(run.end(started, order, setting, registry))
    raise click.exceptions.Exit(status)


def _plain(started: Any) -> dict[str, object]:
    grant, prepared = started.record.grant, started.prepared
    return {
        "devices": [
            {
                "id": held.device_id,
                "name": held.device_name,
                "vendor": held.vendor,
                "mode": held.offer.mode,
                "memoryBytes": held.offer.limit.memory_bytes,
                "corePercent": held.offer.limit.core_percent,
            }
            for held in grant.containers[0].devices
        ],
        "level": {"memory": prepared.level, "compute": prepared.compute},
        "mechanism": prepared.mechanism,
        "environment": prepared.edits.env,
    }


def _words(started: Any) -> str:
    from hami_framework.cli.cluster import given

    grant, prepared = started.record.grant, started.prepared
    lines = [f"{held.device_name} ({held.device_id}): {given(held)}" for held in grant.containers[0].devices]
    return "\n".join([*lines, f"memory held: {prepared.level}, compute held: {prepared.compute} ({prepared.mechanism})"])
