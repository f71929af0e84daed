# SPDX-License-Identifier: Apache-2.0
"""What the demo checks about itself: every container sees its own grant, nothing is promised twice, nothing is left over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hami_framework.cli.cluster import grant_of, live_grants, promised
from hami_framework.model import Inventory

if TYPE_CHECKING:
    from hami_framework.sandbox.cluster import Cluster

Json = dict[str, Any]


class Finding(NamedTuple):
    """One thing that was checked."""

    holds: bool
    what: str


def check_cluster(pods: Sequence[Json], inventories: Sequence[Inventory], containers: Sequence[Json]) -> list[Finding]:
    """Right now: edits against grants, promises against capacity."""
    by_uid = {pod["metadata"]["uid"]: pod for pod in pods}
    running = [container for container in containers if container["state"] == "running" and container["slots"]]
    wrong = [problem for container in running if (problem := wrong_edits(container, by_uid.get(container["podUID"])))]
    over = over_promised(pods, inventories)
    return [
        Finding(not wrong, f"each of {len(running)} containers sees its own grant and no other" + "".join(f"\n      {problem}" for problem in wrong)),
        Finding(not over, "no device has more promised than it has" + "".join(f"\n      {problem}" for problem in over)),
    ]


def wrong_edits(container: Json, pod: Json | None) -> str:
    """What is wrong with what this container sees; empty when it is exactly its own grant."""
    name = f"{container['namespace']}/{container['pod']} {container['container']}"
    if pod is None:
        return f"{name} runs, but its pod is gone"
    grant = grant_of(pod)
    own = grant.container(container["container"]) if grant else None
    if grant is None or own is None:
        return f"{name} sees devices but was granted none"
    if container["env"].get("HAMI_GRANT") != f"{container['podUID']}/{container['container']}":
        return f"{name} sees the grant {container['env'].get('HAMI_GRANT')}"
    limits = limits_of(container)
    seen = sorted(device["id"] for device in limits["devices"])
    given = sorted(device.device_id for device in own.devices)
    return "" if seen == given else f"{name} was given {given} but sees {seen}"


def limits_of(container: Json) -> Json:
    """The limits file mounted into the container, as the process inside would read it."""
    mount = next(mount for mount in container["mounts"] if mount["containerPath"].endswith("limits.json"))
    limits: Json = json.loads(Path(mount["hostPath"]).read_text())
    return limits


def over_promised(pods: Sequence[Json], inventories: Sequence[Inventory]) -> list[str]:
    """Devices with more promised than they have, in words."""
    grants = live_grants(list(pods))
    problems = []
    for inventory in inventories:
        for device in inventory.devices:
            memory_bytes, core_percent, holders = promised(grants, inventory.node, device)
            capacity = device.device_class.capacity
            if memory_bytes > capacity.memory_bytes or core_percent > capacity.core_percent or holders > capacity.shares:
                problems.append(f"{inventory.node} {device.name}: {memory_bytes} bytes, {core_percent} %, {holders} holders promised")
    return problems


def check_nothing_leaked(cluster: Cluster) -> list[Finding]:
    """With every pod gone: no CDI spec, no container directory, no running container is left on any node."""
    specs = [str(file) for node in cluster.nodes.values() for file in (node.directory / "c").glob("*.json")]
    directories = [str(folder) for node in cluster.nodes.values() for folder in (node.directory / "s" / "containers").glob("*")]
    running = [container for container in cluster.containers() if container["state"] == "running"]
    left = specs + directories + [f"{container['pod']} {container['container']}" for container in running]
    return [Finding(not left, "nothing is left on any node: no container, no CDI spec, no grant" + "".join(f"\n      {item}" for item in left[:5]))]
