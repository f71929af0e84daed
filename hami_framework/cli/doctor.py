# SPDX-License-Identifier: Apache-2.0
"""`hami doctor`: what is installed here, what is missing, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import click

from hami_framework.cli.show import output_option, show
from hami_framework.model import to_builtins


@click.command()
@click.option("--plugin", "plugin_files", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A one-file plugin to look at too.")
@click.option("--root", default="/", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Prefix of the configuration files that are read.")
@output_option
def command(plugin_files: tuple[Path, ...], root: Path, output: str) -> None:
    """Look at packages, interceptor libraries, permissions, container runtimes, CDI and the kernel; change nothing.

    The exit status is 1 when something is broken (fail); what is merely weaker than it could be is a warning.
    """
    import logging

    from hami_framework.local import doctor
    from hami_framework.plugins import load_registry

    logging.disable(logging.WARNING)  # the registry's problems are lines of the answer
    checks = doctor.examine(load_registry(None, plugin_files), root)
    if output in ("json", "yaml"):
        show([{"do": "", **dict(to_builtins(check))} for check in checks], [], output)  # type: ignore[call-overload]
    else:
        for check in checks:
            click.echo(f"{_shown(check.state)}  {check.what}: {check.found}")
            if check.do:
                click.echo(f"      → {check.do}")
    if any(check.state == "fail" for check in checks):
        raise click.exceptions.Exit(1)


def _shown(state: str) -> str:
    return click.style(state.ljust(4), fg={"ok": "green", "warn": "yellow", "fail": "red"}[state])
