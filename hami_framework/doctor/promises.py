# SPDX-License-Identifier: Apache-2.0
"""What was promised to pods: is there a grant where there must be one, do the sums hold, who waits, what was left behind?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.config.settings import NodeRule, Settings
from hami_framework.doctor.cluster import Cluster, Json, name_of, seconds
from hami_framework.doctor.finding import Finding, fail, ok, some, warn
from hami_framework.doctor.nodes import SIGN_OF_LIFE, readable, slot_names
from hami_framework.errors import FormatError
from hami_framework.model import Device, PodGrant, show_bytes

ENDED = ("Succeeded", "Failed")
OUR_REASONS = ("DevicesUnavailable", "InvalidDeviceRequest", "BadGrant", "GrantRefused")
"""Reasons of the events that extender and agent write."""


def live(cluster: Cluster) -> list[Json]:
    """Pods that are on a node and have not ended."""
    return [pod for pod in cluster.list("pods") if (pod.get("spec") or {}).get("nodeName") and (pod.get("status") or {}).get("phase") not in ENDED]


def grant_of(pod: Json) -> PodGrant | str | None:
    """The grant that a bound pod carries, what is wrong with it, or None."""
    text = (pod["metadata"].get("annotations") or {}).get(GRANT_ANNOTATION)
    if text is None:
        return None
    try:
        grant = decode_grant(text)
    except FormatError as error:
        return str(error)
    if (grant.owner.uid, grant.node) != (pod["metadata"]["uid"], pod["spec"]["nodeName"]):
        return "it was made for another pod or node: copied or forged, and worth nothing"
    return grant


def asks(pod: Json, names: frozenset[str]) -> bool:
    """Whether a container of the pod asks for a slot."""
    containers = (*(pod["spec"].get("initContainers") or ()), *(pod["spec"].get("containers") or ()))
    return any(not names.isdisjoint((container.get("resources") or {}).get("limits") or {}) for container in containers)


def ungranted(cluster: Cluster, catalog: ResourceCatalog) -> Iterator[Finding]:
    """Pods on a node that asked for devices and have no grant: somebody else bound them. And grants that are no grants."""
    bare, wrong, names = [], [], slot_names(cluster, catalog)
    for pod in live(cluster):
        found = grant_of(pod)
        if isinstance(found, str):
            wrong.append(f"{name_of(pod)}: {found}")
        elif found is None and asks(pod, names):
            bare.append((name_of(pod), pod["spec"].get("schedulerName", "default-scheduler")))
    if bare:
        by = some(scheduler for _, scheduler in bare)
        do = f"{by} bound them without asking our extender: configure it with `hami scheduler-config`, or use our own scheduler; then delete the pods"
        yield fail("grants", f"{len(bare)} bound pods asked for devices and have no grant", do, some(name for name, _ in bare))
    for text in sorted(wrong)[:5]:
        yield fail("grants", text, "delete the pod; see that the policies are installed")
    if not bare and not wrong and cluster.known("pods"):
        yield ok("grants", f"{sum(isinstance(grant_of(pod), PodGrant) for pod in live(cluster))} pods hold devices")


@dataclass
class _Load:
    """What all pods together were promised of one device."""

    memory_bytes: int = 0
    core_percent: int = 0
    shares: int = 0
    exclusive: int = 0
    holders: list[str] = field(default_factory=list)


def loads(grants: list[tuple[str, PodGrant]]) -> dict[tuple[str, str], _Load]:
    """Sums by node and device. A pod counts with the most that it holds in any phase of its start-up."""
    total: dict[tuple[str, str], _Load] = defaultdict(_Load)
    for name, grant in grants:
        most: dict[str, list[int]] = {}
        for phase in grant.phases:
            now: dict[str, list[int]] = {}
            for container in phase:
                for held in container.devices:
                    sums = now.setdefault(held.device_id, [0, 0, 0, 0])
                    for index, amount in enumerate((held.offer.cost.memory_bytes, held.offer.cost.core_percent, held.offer.cost.shares)):
                        sums[index] += amount
                    sums[3] |= int(held.offer.exclusive)
            for device_id, sums in now.items():
                most[device_id] = [max(pair) for pair in zip(most.get(device_id, [0, 0, 0, 0]), sums, strict=True)]
        for device_id, (memory, cores, shares, exclusive) in most.items():
            load = total[(grant.node, device_id)]
            load.memory_bytes += memory
            load.core_percent += cores
            load.shares += shares
            load.exclusive += exclusive
            load.holders.append(name)
    return total


def sums(cluster: Cluster, given: Settings | None) -> Iterator[Finding]:
    """Is more promised of any device than it has (times what the operator allows: published by the agent, else by the settings given)?"""
    good, _ = readable(cluster)
    labels = {node["metadata"]["name"]: node["metadata"].get("labels") or {} for node in cluster.list("nodes")}
    grants = [(name_of(pod), grant) for pod in live(cluster) if isinstance(grant := grant_of(pod), PodGrant)]
    grants += [(f"run {grant.owner.uid}", grant) for inventory in good.values() for grant in inventory.held]
    broken = False
    for (node, device_id), load in sorted(loads(grants).items()):
        device = good[node].device(device_id) if node in good else None
        if device is None:
            if node in good:
                broken = True
                yield warn(
                    "promises",
                    f"device {device_id} is held, but no longer published",
                    "its pods keep it; delete them when the device is gone for good",
                    f"node {node}: {some(load.holders)}",
                )
            continue
        rule = given.node_rule(node, labels.get(node, {})) if given is not None else NodeRule()
        for text in _excess(device, load, rule):
            broken = True
            do = "find out who placed them (two schedulers or extenders?), then delete the youngest of these pods"
            if given is None:
                do += "; with --settings FILE the doctor counts your overcommitment in"
            yield fail("promises", f"{device.name}: {text}", do, f"node {node}: {some(load.holders)}")
    if grants and not broken:
        yield ok("promises", "no device is promised beyond what it has")


def _excess(device: Device, load: _Load, rule: NodeRule) -> Iterator[str]:
    capacity, terms = device.device_class.capacity, device.device_class.terms
    memory = round(capacity.memory_bytes * ((terms.memory_percent or 0) / 100 or rule.memory_overcommit))
    cores = round(capacity.core_percent * ((terms.core_percent or 0) / 100 or rule.core_overcommit))
    if load.exclusive and len(load.holders) > 1:
        yield f"held exclusively, and by {len(load.holders)} pods"
    if load.memory_bytes > memory:
        yield f"{show_bytes(load.memory_bytes)} of memory are promised, it has {show_bytes(memory)}"
    if load.core_percent > cores:
        yield f"{load.core_percent} % of compute are promised, it has {cores} %"


def waiting(cluster: Cluster) -> Iterator[Finding]:
    """Pods that wait, with the latest word of ours on each."""
    pending = {
        pod["metadata"]["uid"]: name_of(pod)
        for pod in cluster.list("pods")
        if (pod.get("status") or {}).get("phase", "Pending") == "Pending" and not pod["metadata"].get("deletionTimestamp")
    }
    latest: dict[str, Json] = {}
    for event in sorted(cluster.list("events"), key=_when):
        if event.get("reason") in OUR_REASONS and (event.get("involvedObject") or {}).get("uid") in pending:
            latest[event["involvedObject"]["uid"]] = event
    by_word: dict[str, list[str]] = {}
    for uid, event in latest.items():
        by_word.setdefault(f"{event['reason']}: {event.get('message', '')}", []).append(pending[uid])
    for word, names in sorted(by_word.items(), key=lambda pair: -len(pair[1]))[:10]:
        yield warn(
            "waiting pods", f"{len(names)} × {word}", "docs/reasons.md says what each word means; `hami explain pod NAME` tells of every node", some(names)
        )


def _when(event: Json) -> float:
    return seconds(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")) or 0.0


def leftovers(cluster: Cluster) -> Iterator[Finding]:
    """Objects of ours that belong to nodes that are gone."""
    if not cluster.known("nodes") or not cluster.list("nodes"):
        return
    nodes = {node["metadata"]["name"] for node in cluster.list("nodes")}
    old = [item["metadata"]["name"] for item in cluster.list("inventories") if item["metadata"]["name"] not in nodes]
    if old:
        yield warn("leftovers", "inventories of nodes that are gone", f"kubectl delete nodeinventory {' '.join(sorted(old)[:5])}", some(old))
    signs = [
        one["metadata"]["name"]
        for one in cluster.list("leases")
        if (one["metadata"].get("labels") or {}).get(SIGN_OF_LIFE) and one["metadata"]["name"].removeprefix("node-") not in nodes
    ]
    if signs:
        yield warn(
            "leftovers", "signs of life of nodes that are gone", f"kubectl -n {cluster.namespace} delete lease {' '.join(sorted(signs)[:5])}", some(signs)
        )
