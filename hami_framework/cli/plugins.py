# SPDX-License-Identifier: Apache-2.0
"""`hami plugins`: who is installed."""

from __future__ import annotations

from pathlib import Path

import click

from hami_framework.cli.show import output_option, show


@click.command()
@click.option(
    "--plugin",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A one-file plugin to load beside the installed ones.",
)
@click.option("--settings", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Settings file with the allow-list and renames.")
@output_option
def command(files: tuple[Path, ...], settings: Path | None, output: str) -> None:
    """List vendors: package, version, hook specification, hooks, state, resource names.

    The exit status is 1 when a plugin could not be loaded.
    """
    from hami_framework.config import load_settings
    from hami_framework.plugins import load_registry

    chosen = load_settings(settings)
    registry = load_registry(chosen.plugins.allow, (*chosen.plugins.files, *files), chosen.resources.rename)
    rows: list[dict[str, object]] = [
        {
            "vendor": vendor.name,
            "package": vendor.source.package,
            "version": vendor.source.version,
            "spec": vendor.spec_version,
            "state": "ready",
            "resources": [family.count for family in vendor.resources],
            "hooks": [hook.removeprefix("hami_") for hook in vendor.hooks],
            "amounts": [name for family in vendor.resources for name in (family.memory, family.memory_percent, family.cores) if name],
            "reason": None,
        }
        for vendor in registry.vendors.values()
    ]
    rows += [{"vendor": problem.vendor, "package": problem.package, "state": "refused", "reason": problem.what} for problem in registry.problems]
    columns = ["vendor", "package", "version", "spec", "state", "hooks", "resources"]
    show(
        rows,
        columns if not registry.problems else [*columns[:5], "reason", *columns[5:]],
        output,
        wide=["amounts"],
        nothing="no vendor's package is installed: pip install hami-framework-…",
    )
    if registry.problems:
        raise click.exceptions.Exit(1)
