# SPDX-License-Identifier: Apache-2.0
"""`hami interceptor`: what the libraries that hold limits cover. The tables are the SDK's; this only asks it."""

from __future__ import annotations

import importlib
from typing import Any

import click

from hami_framework.cli.show import output_option, show
from hami_framework.errors import ConfigError

COLUMNS = ("api", "version", "exported", "classified", "must_hook", "hooked", "tested")


@click.group()
def command() -> None:
    """The libraries that hold limits inside a container's processes."""


def _apis(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _sdk("native").api_names() if name.startswith(incomplete)]


@command.command()
@click.option("--api", "apis", multiple=True, metavar="API", help="Only this driver API, e.g. cuda; repeat for more.", shell_complete=_apis)
@output_option
def coverage(apis: tuple[str, ...], output: str) -> None:
    """For each driver API and version: symbols exported, classified, to be hooked, hooked, tested.

    The exit status is 1 when a symbol is unclassified, or must be hooked and is not; it is named then.
    """
    tables, spec, native = (_sdk(name) for name in ("coverage", "spec", "native"))
    known = native.api_names()
    if unknown := [name for name in apis if name not in known]:
        raise ConfigError(f"the SDK has no API {unknown[0]!r}; it has {', '.join(known)}")
    try:
        rows = tables.table([spec.load(name) for name in apis] if apis else None)
    except _sdk("errors").InterceptorError as error:
        raise ConfigError(f"the SDK's tables cannot be read: {error}") from error
    plain = [tables.as_json(row) for row in rows]
    show(plain, COLUMNS, output, wide=["unclassified", "unhooked", "untested"], nothing="the SDK lists no driver version")
    bad = [row for row in rows if not row.complete]
    for row in bad:
        missing = [("not classified", row.unclassified), ("not hooked", row.unhooked)]
        for what, symbols in missing:
            if symbols:
                click.echo(f"{row.api} {row.version}: {len(symbols)} {what}: {', '.join(symbols[:10])}{' …' if len(symbols) > 10 else ''}", err=True)
    if bad:
        raise click.exceptions.Exit(1)


def _sdk(name: str) -> Any:
    try:
        return importlib.import_module(f"hami_interceptor.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError("the interceptor SDK is not installed, and the tables are its: pip install hami-interceptor-sdk") from error
