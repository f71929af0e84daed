# SPDX-License-Identifier: Apache-2.0
"""The judge over promises: reads grants and inventory as plain JSON and adds up by itself, without the product's own arithmetic.

A device's memory, compute, shares and counters are never promised beyond what it has; an exclusive grant is alone; no slot of
kubelet stays taken once no pod is left.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

Json = dict[str, Any]

GRANT = "hami.io/grant"
FINISHED = ("Succeeded", "Failed")
Amounts = dict[str, int]


def live_grants(pods: Iterable[Json]) -> list[Json]:
    """Grants that hold something: of bound pods that have not ended."""
    alive = (pod for pod in pods if pod["spec"].get("nodeName") and pod.get("status", {}).get("phase") not in FINISHED)
    return [json.loads(text) for pod in alive if (text := pod["metadata"].get("annotations", {}).get(GRANT))]


def demand(grant: Json) -> dict[str, Amounts]:
    """Device id → the most that this grant holds of it in any phase of its pod's start (KEP-753)."""
    most: dict[str, Amounts] = defaultdict(lambda: defaultdict(int))
    for phase in _phases(grant):
        now: dict[str, Amounts] = defaultdict(lambda: defaultdict(int))
        for container in phase:
            for device in container.get("devices", ()):
                for what, amount in _cost(device).items():
                    now[device["deviceId"]][what] += amount
        for device_id, amounts in now.items():
            for what, amount in amounts.items():
                most[device_id][what] = max(most[device_id][what], amount)
    return {device: dict(amounts) for device, amounts in most.items()}


def _phases(grant: Json) -> Iterator[list[Json]]:
    beside: list[Json] = []
    for container in grant["containers"]:
        if container.get("kind") == "init":
            yield [*beside, container]
        elif container.get("kind") == "sidecar":
            beside.append(container)
    yield [*beside, *(container for container in grant["containers"] if container.get("kind", "app") == "app")]


def _cost(device: Json) -> Amounts:
    cost = device["offer"].get("cost", {})
    amounts = {
        "memory": int(cost.get("memoryBytes", 0)),
        "cores": int(cost.get("corePercent", 0)),
        "shares": int(cost.get("shares", 1)),
        "units": int(cost.get("units", 0)),
    }
    amounts |= {f"counter {counter['name']}": int(counter["amount"]) for counter in cost.get("counters", ())}
    return amounts | {"exclusive": int(bool(device["offer"].get("exclusive")))}


def over_promised(pods: Iterable[Json], capacities: dict[str, Amounts]) -> list[str]:
    """What is promised beyond what there is, in words; [] when all is well. `capacities`: device id → what it has."""
    held: dict[str, Amounts] = defaultdict(lambda: defaultdict(int))
    holders: dict[str, int] = defaultdict(int)
    for grant in live_grants(pods):
        for device_id, amounts in demand(grant).items():
            holders[device_id] += 1
            for what, amount in amounts.items():
                held[device_id][what] += amount
    problems = []
    for device_id, amounts in held.items():
        if device_id not in capacities:
            problems.append(f"{device_id} is promised and not in the inventory")
            continue
        has = capacities[device_id]
        if amounts.get("exclusive") and holders[device_id] > 1:
            problems.append(f"{device_id} is promised to one alone, and has {holders[device_id]} holders")
        problems += [f"{device_id}: {amount} {what} promised of {has[what]}" for what, amount in amounts.items() if what in has and amount > has[what]]
    return problems


def capacities(inventory: Json) -> dict[str, Amounts]:
    """Device id → what it has, from the NodeInventory as the API server keeps it (`spec.classes`, `spec.devices`)."""
    classes = {each["name"]: each for each in inventory["spec"]["classes"]}
    found = {}
    for device in inventory["spec"]["devices"]:
        capacity = classes[device["classRef"]]["capacity"]
        has = {"memory": int(capacity["memoryBytes"]), "cores": int(capacity.get("corePercent", 100)), "shares": int(capacity.get("shares", 10))}
        has |= {f"counter {counter['name']}": int(counter["amount"]) for counter in capacity.get("counters", ())}
        found[device["id"]] = has | ({"units": int(capacity["units"])} if capacity.get("units") else {})
    return found
