# SPDX-License-Identifier: Apache-2.0
"""The cluster as the command line sees it: which API server, and what pods, inventories and grants say together."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant
from hami_framework.errors import ConfigError, FormatError, HamiError
from hami_framework.kube import credentials
from hami_framework.kube.client import KubeClient, path
from hami_framework.model import Device, DeviceGrant, Inventory, PodGrant, show_bytes

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

FINISHED = ("Succeeded", "Failed")


def kubeconfig_option(function: F) -> F:
    """Adds `--kubeconfig`."""
    return click.option("--kubeconfig", envvar="KUBECONFIG", help="The cluster to speak to; default: the running sandbox, else what kubectl would use.")(
        function
    )


def namespace_option(function: F) -> F:
    """Adds `-n/--namespace`."""
    return click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of the pod.")(function)


def running_sandbox_file() -> Path:
    """Where `hami sandbox up` leaves word of itself."""
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "hami" / "sandbox.json"


def running_sandbox() -> dict[str, Any] | None:
    """What the running sandbox left word of (`api`, `kubeconfig`, `pid`), or None when none runs."""
    try:
        found: Any = json.loads(running_sandbox_file().read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, dict) or not {"api", "kubeconfig", "pid"} <= found.keys():
        return None  # cut short by a full disk or a kill: nobody can be found by it
    sandbox: dict[str, Any] = found
    return sandbox if alive(sandbox["pid"]) else None


def alive(pid: int) -> bool:
    """True while the process runs; one that has ended and was not yet asked for its status by its parent does not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def connect(kubeconfig: str | None) -> KubeClient:
    """A client for the cluster named, for the running sandbox, or for what kubectl would use. Raises `ConfigError`."""
    sandbox = running_sandbox() if kubeconfig is None else None
    try:
        known = credentials.load(kubeconfig) if sandbox is None else credentials.Credentials(server=sandbox["api"])
        return KubeClient(known, on_warning=lambda text: click.echo(f"Warning: {text}", err=True))
    except HamiError as error:
        raise ConfigError(f"no cluster to speak to ({error}); start one with `hami sandbox up`, or name one with --kubeconfig") from error


def run_to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` for work that SIGTERM cancels: it takes everything down, and the command ends with the status that shells give such an end."""
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:
        raise click.exceptions.Exit(128 + signal.SIGTERM) from None


def list_inventories(client: KubeClient) -> list[Inventory]:
    """Every node's inventory, by node name."""
    listed = client.list(path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION))
    return sorted((inventories.from_object(item) for item in listed["items"]), key=lambda inventory: inventory.node)


def list_pods(client: KubeClient, namespace: str | None = None) -> list[dict[str, Any]]:
    """Pods as plain objects, oldest first."""
    pods: list[dict[str, Any]] = client.list(path("pods", namespace=namespace))["items"]
    return sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))


def grant_of(pod: dict[str, Any]) -> PodGrant | None:
    """The grant in the pod's annotation; None when it has none. Raises `FormatError` with the pod's name.

    Binding writes it. On a pod without a node it was written by somebody else, and promises nothing.
    """
    text = pod["metadata"].get("annotations", {}).get(GRANT_ANNOTATION)
    if text is None or not pod["spec"].get("nodeName"):
        return None
    try:
        return decode_grant(text)
    except FormatError as error:
        raise FormatError(f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}: {error}") from error


def readable_grant(pod: dict[str, Any]) -> PodGrant | None:
    """As `grant_of`, but a grant that cannot be read is told of and left out: one damaged pod must not hide the others."""
    try:
        return grant_of(pod)
    except FormatError as error:
        click.echo(f"Warning: {error}", err=True)
        return None


def live_grants(pods: list[dict[str, Any]]) -> list[PodGrant]:
    """The grants that hold something: of pods that have not ended."""
    grants = (readable_grant(pod) for pod in pods if pod.get("status", {}).get("phase") not in FINISHED)
    return [grant for grant in grants if grant is not None]


def promised(grants: list[PodGrant], node: str, device: Device) -> tuple[int, int, int]:
    """Memory in bytes, compute in percent, and holders, promised of one device: the most that each owner holds in any phase of its start-up."""
    memory_bytes = core_percent = holders = 0
    for grant in grants:
        phases = [[held.offer.cost for container in phase for held in container.devices if held.device_id == device.id] for phase in grant.phases]
        if grant.node == node and any(phases):
            memory_bytes += max(sum(cost.memory_bytes for cost in phase) for phase in phases)
            core_percent += max(sum(cost.core_percent for cost in phase) for phase in phases)
            holders += 1
    return memory_bytes, core_percent, holders


def given(held: DeviceGrant) -> str:
    """What was given of a device, in a few words: "3000 MiB, 30 %", "whole, 40.0 GiB"."""
    limit = held.offer.limit
    words = [held.offer.profile or ("whole" if held.offer.exclusive else held.offer.mode)]
    words += [show_bytes(limit.memory_bytes)] if limit.memory_bytes is not None else []
    words += [f"{limit.core_percent} %"] if limit.core_percent is not None and not held.offer.exclusive else []
    return ", ".join(words)
