# SPDX-License-Identifier: Apache-2.0
"""`hami get pods|nodes|devices|grants`: what is there, and who holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from hami_framework.cli.cluster import given, kubeconfig_option, list_inventories, list_pods, live_grants, promised, readable_grant
from hami_framework.cli.show import Row, output_option, show
from hami_framework.model import ContainerGrant, DeviceGrant, PodGrant, show_bytes


@click.group()
def command() -> None:
    """Show pods, nodes, devices or grants."""


def _listing(name: str, rows: Callable[..., list[Row]], columns: list[str], wide: list[str], text: str, *, namespaced: bool) -> None:
    """One sub-command: gather rows from the cluster, print them."""

    def run(kubeconfig: str | None, output: str, **chosen: Any) -> None:
        from hami_framework.cli.cluster import connect

        show(rows(connect(kubeconfig), **chosen), columns, output, wide=wide, nothing=f"no {name} found")

    wrapped = output_option(kubeconfig_option(run))
    if namespaced:
        wrapped = click.option("-n", "--namespace", help="Only this namespace; default: all.")(wrapped)
    command.command(name, help=text)(wrapped)


def _pods(client: Any, namespace: str | None) -> list[Row]:
    return [_pod_row(pod) for pod in list_pods(client, namespace)]


def _pod_row(pod: dict[str, Any]) -> Row:
    grant = readable_grant(pod)
    status = pod.get("status", {})
    held = [(container, device) for container in (grant.containers if grant else ()) for device in container.devices]
    return {
        "namespace": pod["metadata"]["namespace"],
        "name": pod["metadata"]["name"],
        "status": status.get("reason") or status.get("phase"),
        "node": pod["spec"].get("nodeName"),
        "devices": [device.device_name for _, device in held],
        "granted": [f"{container.container}: {given(device)}" for container, device in held],
        "message": next((condition.get("message") for condition in status.get("conditions", []) if condition.get("status") == "False"), None),
        "uid": pod["metadata"]["uid"],
    }


def _nodes(client: Any) -> list[Row]:
    return [
        {
            "name": inventory.node,
            "generation": inventory.generation,
            "vendors": [f"{vendor.name} {vendor.version} ({vendor.state})".replace("  ", " ") for vendor in inventory.vendors],
            "devices": len(inventory.devices),
            "healthy": sum(device.health.ok for device in inventory.devices),
            "models": sorted({device.device_class.model for device in inventory.devices}),
        }
        for inventory in list_inventories(client)
    ]


def _devices(client: Any) -> list[Row]:
    found = list_inventories(client)
    grants = [*live_grants(list_pods(client)), *(grant for inventory in found for grant in inventory.held)]
    rows: list[Row] = []
    for inventory in found:
        for device in inventory.devices:
            memory_bytes, core_percent, holders = promised(grants, inventory.node, device)
            capacity = device.device_class.capacity
            rows.append(
                {
                    "node": inventory.node,
                    "name": device.name,
                    "vendor": device.vendor,
                    "model": device.device_class.model,
                    "health": device.health.state,
                    "memory": f"{show_bytes(memory_bytes)} / {show_bytes(capacity.memory_bytes)}",
                    "cores": f"{core_percent} / {capacity.core_percent} %",
                    "holders": f"{holders} / {capacity.shares}",
                    "id": device.id,
                    "numa": device.numa_node,
                    "pci": device.pci_address,
                    "reason": device.health.reason,
                    "memory_bytes": capacity.memory_bytes,
                    "promised_memory_bytes": memory_bytes,
                    "promised_core_percent": core_percent,
                }
            )
    return rows


def _grants(client: Any, namespace: str | None) -> list[Row]:
    local = [grant for inventory in list_inventories(client) for grant in inventory.held if namespace in (None, grant.owner.namespace)]
    grants = [*live_grants(list_pods(client, namespace)), *local]
    return [_grant_row(grant, container, held) for grant in grants for container in grant.containers for held in container.devices]


def _grant_row(grant: PodGrant, container: ContainerGrant, held: DeviceGrant) -> Row:
    return {
        "pod": f"{grant.owner.namespace}/{grant.owner.name}",
        "container": container.container,
        "kind": container.kind,
        "node": grant.node,
        "device": held.device_name,
        "resource": held.resource,
        "granted": given(held),
        "start": held.start,
        "units": held.units,
        "revision": grant.revision,
        "uid": grant.owner.uid,
        "device_id": held.device_id,
        "mode": held.offer.mode,
        "memory_bytes": held.offer.limit.memory_bytes,
        "core_percent": held.offer.limit.core_percent,
    }


_listing(
    "pods",
    _pods,
    ["namespace", "name", "status", "node", "devices"],
    ["granted", "message"],
    "Pods, where they run, and the devices they were given.",
    namespaced=True,
)
_listing("nodes", _nodes, ["name", "devices", "healthy", "models", "generation"], ["vendors"], "Nodes with their inventories.", namespaced=False)
_listing(
    "devices",
    _devices,
    ["node", "name", "model", "health", "memory", "cores", "holders"],
    ["id", "numa", "pci", "reason"],
    "Devices: health, and what is promised of their memory and compute.",
    namespaced=False,
)
_listing(
    "grants", _grants, ["pod", "container", "node", "device", "granted"], ["kind", "resource", "start", "units", "uid"], "Who was given what.", namespaced=True
)
