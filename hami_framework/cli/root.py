# SPDX-License-Identifier: Apache-2.0
"""The command group. Sub-commands are imported by name when they are asked for, so that `hami --help` stays quick."""

from __future__ import annotations

import importlib

import click

from hami_framework.cli.main import COMMANDS, DAEMONS


class Lazy(click.Group):
    """A group whose commands live in `hami_framework.cli.<name>` as the object `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name in DAEMONS:  # reached only by completion and help; running goes past click
            from hami_framework.cli.daemon import Daemon

            return Daemon(name)
        command: click.Command = importlib.import_module(f"hami_framework.cli.{name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
def root() -> None:
    """Share, schedule and fence any accelerator, whoever makes it."""
