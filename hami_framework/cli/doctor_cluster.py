# SPDX-License-Identifier: Apache-2.0
"""`hami doctor --cluster`: reads an installation through the API server, and prints what the checks find."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hami_framework.cli.show import show
from hami_framework.model import to_builtins

if TYPE_CHECKING:
    from hami_framework.codec.resources import ResourceCatalog
    from hami_framework.scheduler.configuration import Authority

TIMEOUT_SECONDS = 5.0
"""For each connect, send and receive."""


def look(
    kubeconfig: str | None, context: str | None, namespace: str, scheduler_config: Path | None, settings: Path | None, plugin_files: Sequence[Path], output: str
) -> None:
    """The exit status is 1 when something is broken. Raises ConfigError, Unavailable."""
    import logging

    from hami_framework import doctor
    from hami_framework.cli.cluster import running_sandbox
    from hami_framework.config.reading import read_document
    from hami_framework.config.settings import load_settings
    from hami_framework.doctor.configuration import configuration
    from hami_framework.doctor.nodes import slot_names
    from hami_framework.doctor.reading import read
    from hami_framework.kube import credentials
    from hami_framework.kube.client import KubeClient
    from hami_framework.plugins import load_registry

    logging.disable(logging.WARNING)  # what it warned of is a line of the answer
    given = load_settings(settings) if settings is not None else None
    catalog = load_registry(None, plugin_files, given.resources.rename if given is not None else None).catalog()
    sandbox = running_sandbox() if kubeconfig is None and context is None else None
    known = credentials.load(kubeconfig, context) if sandbox is None else credentials.Credentials(server=sandbox["api"])
    client = KubeClient(known, timeout_seconds=TIMEOUT_SECONDS, read_attempts=2, user_agent="hami-doctor")
    try:
        cluster = asyncio.run(read(client, catalog, namespace))
    finally:
        client.close()
    findings = doctor.examine(cluster, catalog, given)
    if scheduler_config is not None:
        document = read_document(scheduler_config, "the scheduler configuration")
        faults = _faults(scheduler_config.read_text(encoding="utf-8"), catalog, given.placement.authority if given is not None else None)
        # Names that a package here declares are in the faults already, with their lines.
        findings += configuration(document, slot_names(cluster, catalog) - {*catalog.extended_resources()}, str(scheduler_config), faults)
    if output in ("json", "yaml"):
        show([{"where": "", "do": "", **dict(to_builtins(finding))} for finding in findings], [], output)  # type: ignore[call-overload]
    else:
        for finding in findings:
            where = f" [{finding.where}]" if finding.where else ""
            click.echo(f"{shown(finding.state)}  {finding.what}: {finding.found}{where}")
            if finding.do:
                click.echo(f"      → {finding.do}")
    if any(finding.state == "fail" for finding in findings):
        raise click.exceptions.Exit(1)


def _faults(text: str, catalog: ResourceCatalog, authority: Authority | None) -> list[str]:
    """What is wrong with the configuration. Without settings the authority is not known, and one under which less is wrong is meant."""
    from hami_framework.scheduler.configuration_check import check

    tried: tuple[Authority, ...] = (authority,) if authority is not None else ("decisive", "advisory")
    return [str(fault) for fault in min((check(text, catalog, each) for each in tried), key=len)]


def shown(state: str) -> str:
    """The state in its colour."""
    return click.style(state.ljust(4), fg={"ok": "green", "warn": "yellow", "fail": "red"}[state])
