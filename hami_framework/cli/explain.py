# SPDX-License-Identifier: Apache-2.0
"""`hami explain pod NAME`: asks the same engine the same question again, and says what it says in words.

Needs no access to the extender: pods and inventories are all that the engine knows, and anyone may be allowed to read those.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from hami_framework.cli.cluster import connect, given, grant_of, kubeconfig_option, list_inventories, list_pods, live_grants, namespace_option
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.codec.words import sentence, summary
from hami_framework.config import load_settings
from hami_framework.errors import ConfigError, InvalidRequest
from hami_framework.kube.client import KubeClient
from hami_framework.model import PodRequest, Rejection


@click.group()
def command() -> None:
    """Say why."""


@command.command()
@click.argument("name")
@namespace_option
@kubeconfig_option
@click.option("--settings", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The extender's settings file, where it has one.")
@click.option(
    "--plugin",
    "plugin_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A one-file plugin, where the extender has one.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def pod(name: str, namespace: str, kubeconfig: str | None, settings: Path | None, plugin_files: tuple[Path, ...], output: str) -> None:
    """Why pod NAME is where it is, or why it waits."""
    client = connect(kubeconfig)
    pods = list_pods(client)
    wanted = next((pod for pod in pods if pod["metadata"]["name"] == name and pod["metadata"]["namespace"] == namespace), None)
    if wanted is None:
        raise ConfigError(f"there is no pod {namespace}/{name}")
    if wanted["spec"].get("nodeName"):
        click.echo(placed(wanted) if output == "text" else wanted["metadata"].get("annotations", {}).get("hami.io/grant", "null"))
        return
    refused = why_not(client, wanted, pods, settings, plugin_files)
    if output == "json":
        from hami_framework.model import encode

        click.echo(encode(refused).decode())
        return
    click.echo(waiting(wanted, refused))


def placed(pod: dict[str, Any]) -> str:
    """A bound pod in words: node, devices, what each container may use."""
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    grant = grant_of(pod)
    lines = [f"{name} is on {pod['spec']['nodeName']} ({pod.get('status', {}).get('phase', 'unknown')})."]
    if grant is None:
        lines.append(
            "It asks for no accelerator."
            if not pod["metadata"].get("annotations")
            else "It carries no grant: it asks for no accelerator, or was not bound by us."
        )
        return "\n".join(lines)
    lines += [
        f"  {container.kind} container {container.container}: {held.device_name} ({held.device_id}), {given(held)}"
        for container in grant.containers
        for held in container.devices
    ]
    return "\n".join(lines)


def why_not(
    client: KubeClient, pod: dict[str, Any], pods: list[dict[str, Any]], settings_file: Path | None, plugin_files: tuple[Path, ...] = ()
) -> dict[str, tuple[Rejection, ...]]:
    """Node → its refusals; the key "" for what is wrong with the pod itself; empty when it would fit now."""
    from hami_framework.placement.engine import Engine
    from hami_framework.placement.policies import by_name
    from hami_framework.plugins import load_registry

    settings = load_settings(settings_file)
    registry = load_registry(settings.plugins.allow, (*settings.plugins.files, *plugin_files), settings.resources.rename)
    engine = Engine(
        registry.partition, policies=registry.policies(), node_policy=settings.placement.node_policy, device_policy=settings.placement.device_policy
    )
    for inventory in list_inventories(client):
        engine.set_inventory(inventory)
    for grant in live_grants(pods):
        engine.observe(grant)
    try:
        request: PodRequest = read_pod(pod, registry.catalog(), policies=by_name(registry.policies()))
    except InvalidRequest as error:
        return {"": error.rejections}
    if request.empty:
        raise ConfigError(_unknown(pod, registry.catalog()))
    verdict = engine.filter(request, None)
    return {} if verdict.feasible else dict(verdict.rejections)


def _unknown(pod: dict[str, Any], catalog: ResourceCatalog) -> str:
    """Words for a pod none of whose resource names is ours: which it uses, and what was perhaps meant."""
    known = catalog.extended_resources()
    limits = [container.get("resources", {}).get("limits", {}) for container in pod["spec"].get("containers", ())]
    foreign = sorted({name for each in limits for name in each if "/" in name})
    if not foreign:
        return "the pod asks for no accelerator; something else holds it back: `hami get pods -o wide` shows the scheduler's message"
    close = [f"{near[0]!r} for {name!r}" for name in foreign if (near := difflib.get_close_matches(name, known, n=1, cutoff=0.8))]
    hint = f"; did you mean {', '.join(close)}?" if close else "; `hami plugins -o wide` lists the names"
    return f"no installed vendor package declares {', '.join(foreign)}, so nothing of ours looks after this pod{hint}"


def waiting(pod: dict[str, Any], refused: dict[str, tuple[Rejection, ...]]) -> str:
    """A pod without a node in words: what is wrong with it, or each node's refusal with its nearest miss."""
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    if not refused:
        return f"{name} would fit now; the scheduler has not come round to it yet, or something besides accelerators holds it back."
    if "" in refused:
        return "\n".join([f"{name} cannot be scheduled as it is written:", *(f"  {sentence(rejection)}" for rejection in refused[""])])
    everywhere = [rejections for rejections in refused.values() if all(rejection.reason.bad_input for rejection in rejections)]
    if len(everywhere) == len(refused):
        return "\n".join(
            [f"{name} fits nowhere, and never will:", *(f"  {line}" for line in dict.fromkeys(sentence(rejection) for rejection in everywhere[0]))]
        )
    width = max(len(node) for node in refused)
    return "\n".join(
        [f"{name} waits; no node can take it now:", *(f"  {node.ljust(width)}  {summary(rejections)}" for node, rejections in sorted(refused.items()))]
    )
