# SPDX-License-Identifier: Apache-2.0
"""`hami scheduler-config`: kube-scheduler's configuration, written or checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--settings", type=FILE, help="Settings file: allowed vendors, renames, placement.authority.")
@click.option("--plugin", "files", multiple=True, type=FILE, help="A one-file plugin to load beside the installed ones.")
@click.option(
    "--mode",
    type=click.Choice(["own", "existing"]),
    default="own",
    show_default=True,
    help="For a scheduler of our own, or for the cluster's (see --merge too).",
)
@click.option("--scheduler-name", default="hami-scheduler", show_default=True, help="Name of our own scheduler's profile: what pods write into schedulerName.")
@click.option("--url", default="http://127.0.0.1:9480", show_default=True, help="Where kube-scheduler reaches the extender.")
@click.option("--ca-file", help="https: the extender's CA, as a path on kube-scheduler's machine.")
@click.option("--cert-file", help="https: kube-scheduler's client certificate (mutual TLS).")
@click.option("--key-file", help="https: its key.")
@click.option("--tls-directory", help="https: directory with ca.crt, tls.crt and tls.key on kube-scheduler's machine, instead of the three options above.")
@click.option("--server-name", help="https: the name in the extender's certificate, where the address is another.")
@click.option("--timeout", default="10s", show_default=True, help="How long kube-scheduler waits for an answer.")
@click.option("--authority", type=click.Choice(["decisive", "advisory"]), help="Overrides placement.authority of the settings.")
@click.option("--lease-namespace", default="hami-system", show_default=True, help="Where a scheduler of our own keeps its Lease.")
@click.option("--kubeconfig", help="clientConnection.kubeconfig of a scheduler of our own; default: its service account.")
@click.option("--kubernetes-version", help="Refuse when this version of Kubernetes cannot take the result.")
@click.option("--merge", type=FILE, help="The cluster's configuration: add our extender to it, and nothing else.")
@click.option("--check", "checked", type=FILE, help="Say what is wrong with this configuration, line by line; exit status 1 when something is.")
@click.option("--format", "format_", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True, help="How to write it.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file; default: print.")
def command(settings: Path | None, files: tuple[Path, ...], authority: Any, merge: Path | None, checked: Path | None, **options: Any) -> None:
    """Print a KubeSchedulerConfiguration made from the installed vendors' resource names."""
    from hami_framework.config import load_settings
    from hami_framework.config.reading import read_document
    from hami_framework.errors import ConfigError
    from hami_framework.plugins import load_registry
    from hami_framework.scheduler import configuration, configuration_check

    if options["kubernetes_version"]:
        configuration.check_kubernetes(options["kubernetes_version"])
    chosen = load_settings(settings)
    registry = load_registry(chosen.plugins.allow, (*chosen.plugins.files, *files), chosen.resources.rename)
    if registry.problems:
        raise ConfigError("; ".join(f"vendor {problem.vendor}: {problem.what}" for problem in registry.problems))
    catalog, authority = registry.catalog(), authority or chosen.placement.authority
    if checked is not None:
        faults = configuration_check.check(checked.read_text(encoding="utf-8"), catalog, authority)
        for fault in faults:
            click.echo(f"{checked}: {fault}")
        if faults:
            raise click.exceptions.Exit(1)
        click.echo(f"{checked}: right for the installed vendors ({', '.join(sorted(registry.vendors)) or 'none'}), authority {authority}")
        return
    existing = None if merge is None else read_document(merge, "the scheduler configuration")
    if existing is not None:
        configuration.check_version(existing)
    tls = _tls(options)
    weight = configuration.weight(authority, (existing or {}).get("profiles") or [{}])
    entry = configuration.extender(catalog, options["url"], weight, tls=tls, timeout=options["timeout"])
    if existing is not None:
        document = configuration.merged(existing, entry)
    elif options["mode"] == "existing":
        document = configuration.for_default_scheduler(entry, kubeconfig=options["kubeconfig"])
    else:
        document = configuration.whole(options["scheduler_name"], entry, lease_namespace=options["lease_namespace"], kubeconfig=options["kubeconfig"])
    _write(document, options["format_"], options["output"])


def _tls(options: dict[str, Any]) -> Any:
    from hami_framework.errors import ConfigError
    from hami_framework.scheduler.configuration import Tls

    ca, certificate, key, name = (options[field] for field in ("ca_file", "cert_file", "key_file", "server_name"))
    if directory := options["tls_directory"]:
        if ca or certificate or key:
            raise ConfigError("--tls-directory stands for --ca-file, --cert-file and --key-file: give it alone")
        ca, certificate, key = (f"{directory.rstrip('/')}/{file}" for file in ("ca.crt", "tls.crt", "tls.key"))
    if (certificate is None) != (key is None):
        raise ConfigError("--cert-file and --key-file belong together: give both")
    if ca is None and (certificate or name):
        raise ConfigError("--cert-file and --server-name need --ca-file")
    return None if ca is None else Tls(ca=ca, certificate=certificate, key=key, server_name=name)


def _write(document: object, format_: str, output: Path | None) -> None:
    import yaml

    text = json.dumps(document, indent=2) + "\n" if format_ == "json" else yaml.safe_dump(document, sort_keys=False, width=160)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
