# SPDX-License-Identifier: Apache-2.0
"""`hami doctor`: what is installed here, or in a cluster, what is missing, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import click

from hami_framework.cli.doctor_cluster import look, shown
from hami_framework.cli.show import output_option, show
from hami_framework.model import to_builtins

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--plugin", "plugin_files", multiple=True, type=FILE, help="A one-file plugin to look at too.")
@click.option("--root", default="/", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Prefix of the configuration files that are read.")
@click.option("--cluster", is_flag=True, help="Look at an installation in a cluster instead of at this machine.")
@click.option("--kubeconfig", help="The cluster to look at; default: the running sandbox, else what kubectl would use.")
@click.option("--context", help="That context of the kubeconfig.")
@click.option("-n", "--namespace", default="hami-system", show_default=True, help="Where the framework is installed.")
@click.option("--scheduler-config", type=FILE, help="A KubeSchedulerConfiguration to look at too.")
@click.option("--settings", type=FILE, help="The settings file of the installation: its overcommitment is counted in, its node rules are checked.")
@output_option
def command(
    plugin_files: tuple[Path, ...],
    root: Path,
    cluster: bool,
    kubeconfig: str | None,
    context: str | None,
    namespace: str,
    scheduler_config: Path | None,
    settings: Path | None,
    output: str,
) -> None:
    """Look at packages, interceptor libraries, permissions, container runtimes, CDI and the kernel; change nothing.

    With --cluster: versions, the custom resource, permissions, scheduler, webhook, policies, agents, other device plugins, what pods were
    promised, and clocks.

    The exit status is 1 when something is broken (fail); what is merely weaker than it could be is a warning.
    """
    if cluster:
        look(kubeconfig, context, namespace, scheduler_config, settings, plugin_files, output)
        return
    if given := [name for name, value in (("--kubeconfig", kubeconfig), ("--context", context), ("--scheduler-config", scheduler_config)) if value]:
        raise click.UsageError(f"{given[0]} is for a cluster: add --cluster")
    import logging

    from hami_framework.local import doctor
    from hami_framework.plugins import load_registry

    logging.disable(logging.WARNING)  # the registry's problems are lines of the answer
    checks = doctor.examine(load_registry(None, plugin_files), root)
    if output in ("json", "yaml"):
        show([{"do": "", **dict(to_builtins(check))} for check in checks], [], output)  # type: ignore[call-overload]
    else:
        for check in checks:
            click.echo(f"{shown(check.state)}  {check.what}: {check.found}")
            if check.do:
                click.echo(f"      → {check.do}")
    if any(check.state == "fail" for check in checks):
        raise click.exceptions.Exit(1)
