# SPDX-License-Identifier: Apache-2.0
"""What `hami run`, `ps` and `limit` share: where local runs are kept, and amounts as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hami_framework.local.vendors import Setting, played, state_directory
from hami_framework.plugins import Registry

F = TypeVar("F", bound=Callable[..., Any])

UNITS = {"": 1, "b": 1, "ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


def state_option(function: F) -> F:
    """Adds `--state-dir`."""
    return click.option(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="HAMI_STATE_DIR",
        help="Where local runs are noted; default: the agent's /var/lib/hami for root, ~/.local/state/hami otherwise.",
    )(function)


def machine_option(function: F) -> F:
    """Adds `--machine`."""
    text = "Try it without hardware, on a machine that a package can play (`hami sandbox machines`)."
    return click.option("--machine", metavar="NAME", help=text, shell_complete=_machines)(function)


def _machines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from hami_framework.plugins import load_registry

    return sorted(name for name in load_registry(None, []).machines() if name.startswith(incomplete))


def running(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """What runs here, for the shell to complete."""
    from hami_framework.cli.ps import state_directories
    from hami_framework.local import holders

    found = (source.holder for state in state_directories(ctx.params.get("state_dir")) for source in holders.sources(state))
    return sorted(name for one in found for name in {one.id if one.kind == "local" else one.name} if name.startswith(incomplete))


def setting_of(machine: str | None, state_dir: Path | None, registry: Registry) -> Setting:
    """This machine, or the one to be played."""
    directory = (state_dir or state_directory()).absolute()
    if machine is None:
        return Setting(state_directory=directory)
    from hami_framework.testing.fakes import build_libraries

    return played(directory, machine, registry, build_libraries)


class Memory(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """`4GiB` on the command line, bytes in the program."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_memory(value)
        except click.BadParameter as error:
            self.fail(error.message, param, ctx)


def parse_memory(text: str) -> int:
    """Bytes of `4GiB`, `3000Mi`, `1.5g`. Raises BadParameter."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    if found is None or found[2].casefold() not in UNITS or (not found[2] and not text.strip()[-1].isdigit()):
        raise click.BadParameter(f"{text!r} is not an amount of memory: write a number and a unit, e.g. 4GiB or 3000MiB")
    amount = int(float(found[1]) * UNITS[found[2].casefold()]) if "." in found[1] else int(found[1]) * UNITS[found[2].casefold()]
    if amount < 1024**2:
        raise click.BadParameter(f"{text!r} is {amount} bytes: less than one MiB is no use; did you forget the unit, as in 4GiB?")
    return amount
