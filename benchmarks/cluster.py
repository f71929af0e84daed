# SPDX-License-Identifier: Apache-2.0
"""The cluster that the benchmarks of the extender ask about: five kinds of device, resident pods on every one of them."""

from __future__ import annotations

import gc
import random
import time

from hami_framework.model import (
    GIB,
    Capacity,
    ContainerGrant,
    ContainerRequest,
    Cost,
    Counter,
    Device,
    DeviceClass,
    DeviceGrant,
    DeviceRequest,
    Interval,
    Inventory,
    Limit,
    Mode,
    Offer,
    Owner,
    PartitionProfile,
    PodGrant,
    Rejection,
    ResourceRequest,
    Selector,
    share,
    whole,
)
from hami_framework.placement.engine import Engine

SHARED = DeviceClass(model="shared-80", vendor="one", capacity=Capacity(memory_bytes=80 * GIB), types=("big",))
SMALL = DeviceClass(model="shared-40", vendor="one", capacity=Capacity(memory_bytes=40 * GIB))
PLACED = DeviceClass(
    model="placed-80",
    vendor="two",
    capacity=Capacity(memory_bytes=80 * GIB, shares=7, line=8),
    modes=(Mode(name="whole"), Mode(name="cut", max_instances=7)),
    profiles=(PartitionProfile(name="3g", mode="cut", cost=Cost()),),
)
TEMPLATES = DeviceClass(
    model="template-64",
    vendor="three",
    capacity=Capacity(memory_bytes=64 * GIB, counters=(Counter(name="core", amount=20), Counter(name="cpu", amount=7))),
    modes=(Mode(name="whole"), Mode(name="cut", max_instances=7)),
)
MASKED = DeviceClass(model="masked-64", vendor="four", capacity=Capacity(memory_bytes=64 * GIB, units=120), modes=(Mode(name="whole"), Mode(name="cut")))
CLASSES = (SHARED, SMALL, PLACED, TEMPLATES, MASKED)


def partition(device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
    """One rule for each of the five cost shapes."""
    capacity = device_class.capacity
    if request.whole:
        return (whole(capacity.memory_bytes),)
    memory = request.memory_bytes or capacity.memory_bytes // 4
    cores = request.core_percent or 0
    limit = Limit(memory_bytes=memory, core_percent=cores or None)
    if device_class is PLACED:
        return (Offer(mode="cut", profile="3g", limit=limit, cost=Cost(memory_bytes=memory, interval=Interval(size=2, starts=(0, 2, 4, 6)))),)
    if device_class is TEMPLATES:
        counters = (Counter(name="core", amount=5), Counter(name="cpu", amount=1))
        return (Offer(mode="cut", profile="vir05", limit=limit, cost=Cost(memory_bytes=16 * GIB, counters=counters)),)
    if device_class is MASKED:
        return (Offer(mode="cut", limit=limit, cost=Cost(memory_bytes=memory, units=(cores or 10) * 120 // 100)),)
    return (share(memory, cores or None),)


def inventory(number: int, devices: int) -> Inventory:
    device_class = CLASSES[number % len(CLASSES)]
    node = f"node-{number:05d}"
    return Inventory(
        node=node, devices=tuple(Device(id=f"{node}-{index}", name=f"{node}-{index}", index=index, device_class=device_class) for index in range(devices))
    )


def resident(number: int, where: Inventory, rng: random.Random) -> PodGrant:
    """A pod that lives on the device with this number of the node, with one start-up phase."""
    device = where.devices[number % len(where.devices)]
    offer = next(
        offer
        for offer in partition(device.device_class, DeviceRequest(memory_bytes=rng.choice((2, 4, 8)) * GIB, core_percent=rng.choice((5, 10, 20))))
        if isinstance(offer, Offer)
    )
    interval = offer.cost.interval
    held = DeviceGrant(
        device_id=device.id,
        device_name=device.name,
        vendor=device.vendor,
        resource="x/count",
        offer=offer,
        start=interval.starts[0] if interval else None,
        units=hex((1 << offer.cost.units) - 1) if offer.cost.units else None,
    )
    owner = Owner(kind="pod", uid=f"resident-{number}", namespace="default", name=f"resident-{number}")
    return PodGrant(owner=owner, node=where.node, containers=(ContainerGrant(container="main", devices=(held,)),))


def shapes(count: int, rng: random.Random) -> list[tuple[ContainerRequest, ...]]:
    """Different requests: shares, percentages, several devices, one vendor or any, two containers."""
    found = []
    for number in range(count):
        request = DeviceRequest(
            count=rng.choice((1, 1, 1, 2, 4)),
            memory_bytes=(1 + number % 40) * GIB // 2 + number * 1024 * 1024,
            core_percent=rng.choice((None, 5, 10, 25, 50)),
        )
        vendors = rng.choice(((), ("one",), ("one",), ("two",), ("three",), ("four",)))
        wanted = ResourceRequest(resource="x/count", request=request, selector=Selector(vendors=vendors))
        names = ("main", "helper") if number % 10 == 0 else ("main",)
        found.append(tuple(ContainerRequest(name=name, requests=(wanted,)) for name in names))
    return found


def build(nodes: int, devices: int, pods: int, rng: random.Random) -> tuple[Engine, float]:
    """An engine with resident pods, and how long it took to rebuild from inventories and grants, in seconds."""
    inventories = [inventory(number, devices) for number in range(nodes)]
    grants = [resident(number, inventories[number // devices % nodes], rng) for number in range(pods)]
    gc.collect()
    begin = time.perf_counter()
    engine = Engine(partition)
    for each in inventories:
        engine.set_inventory(each)
    for grant in grants:
        engine.observe(grant)
    return engine, time.perf_counter() - begin
