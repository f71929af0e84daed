# SPDX-License-Identifier: Apache-2.0
"""`hami version`."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """Versions of the core, of the hook specification, and of each vendor's package."""
    from importlib_metadata import version

    from hami_framework.hookspecs import SPEC_VERSION
    from hami_framework.plugins import find_sources

    click.echo(f"hami-framework {version('hami-framework')} (hook specification {SPEC_VERSION})")
    for source in find_sources()[0]:
        click.echo(f"{source.package} {source.version} (vendor {source.vendor})")
