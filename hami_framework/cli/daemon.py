# SPDX-License-Identifier: Apache-2.0
"""The long-lived programs as shell completion sees them. They read their own command lines; here their options are only told."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import click

from hami_framework.cli.main import COMMANDS, DAEMONS


class Daemon(click.Command):
    """Its options are those of the program's own parser, which is imported when somebody completes one."""

    def __init__(self, name: str) -> None:
        super().__init__(name, short_help=COMMANDS[name], add_help_option=False)
        self.module = DAEMONS[name]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options that are not hidden."""
        parser: argparse.ArgumentParser = importlib.import_module(self.module).parser()
        return [_option(action) for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]


def _option(action: argparse.Action) -> click.Option:
    kind: click.ParamType[Any] = click.STRING
    if action.choices is not None:
        kind = click.Choice([str(choice) for choice in action.choices])
    elif action.type is Path:
        kind = click.Path()
    # argparse's help has `%(default)s` in it, which only its own formatter fills in
    help_text = (action.help or "") % {"default": action.default}
    return click.Option(list(action.option_strings), type=kind, is_flag=True if action.nargs == 0 else None, multiple=True, help=help_text)
