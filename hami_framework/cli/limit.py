# SPDX-License-Identifier: Apache-2.0
"""`hami limit`: change what a running program or container may use."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hami_framework.cli.local import Memory, running, setting_of, state_option
from hami_framework.cli.ps import state_directories
from hami_framework.errors import ConfigError
from hami_framework.model import show_bytes

if TYPE_CHECKING:
    from hami_framework.enforcement.policy import Policy
    from hami_framework.local.holders import Holder
    from hami_framework.local.limit import Change


@click.command()
@click.argument("target", metavar="CONTAINER|PID", shell_complete=running)
@click.option("--memory", type=Memory(), metavar="AMOUNT", help="Device memory per device from now on, e.g. 6GiB.")
@click.option("--cores", type=click.IntRange(1, 100), metavar="PERCENT", help="Share of each device's compute from now on.")
@state_option
def command(target: str, memory: int | None, cores: int | None, state_dir: Path | None) -> None:
    """Change the limit of a running program: an id or PID of `hami ps`, or namespace/pod/container.

    A local run may be raised where there is room. A pod's container can be set anywhere up to what it was granted, and keeps it
    when it starts again; more than that is the scheduler's to give.
    """
    from hami_framework.local import holders, limit

    logging.basicConfig(level=logging.ERROR, format="hami: %(message)s")
    if memory is None and cores is None:
        raise click.UsageError("say what to change: --memory AMOUNT, --cores PERCENT, or both")
    change = limit.Change(memory_bytes=memory, core_percent=cores)
    where = {one.id: (state, one) for state in state_directories(state_dir) for one in holders.look([state], 0)}
    holder = holders.find([one for _, one in where.values()], target)
    state = where[holder.id][0]
    try:
        policy = _changed(holder, state, change)
    except PermissionError as error:
        raise ConfigError(f"{holder.name} is another user's ({error.filename} cannot be written): run this as root") from error
    for device in policy.devices:
        amount = show_bytes(device.memory_bytes) if device.memory_bytes is not None else "all its memory"
        share = f"{device.core_milli / 1000:g} %" if device.core_milli is not None else "all its compute"
        click.echo(f"{holder.name}: {device.vendor} {device.identities[0][1]}: {amount}, {share} (generation {policy.generation})")
    over = [
        held
        for held in holder.holdings
        if held.memory_used_bytes is not None and change.memory_bytes is not None and held.memory_used_bytes > change.memory_bytes
    ]
    for held in over:
        click.echo(f"hami: it holds {show_bytes(held.memory_used_bytes or 0)} on {held.device} now: it keeps that and gets no more until it is below", err=True)


def _changed(holder: Holder, state: Path, change: Change) -> Policy:
    """Raises ConfigError, PermissionError."""
    from hami_framework.local import ledger, limit
    from hami_framework.plugins import load_registry

    if holder.kind == "pod":
        return limit.change_container(holder, state, change)
    files = next(([Path(file) for file in one.plugin_files] for one in ledger.read(state) if one.id == holder.id), [])
    registry = load_registry(None, files)
    played = state.parent.name == "machines"
    setting = setting_of(state.name if played else None, state.parents[1] if played else state, registry)
    policy = asyncio.run(limit.change_run(holder, setting, registry, change, files))
    if policy is None:
        raise ConfigError(f"the ledger says so now, but nothing holds limits in {holder.id}: its processes are not told")
    return policy
