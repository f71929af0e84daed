# SPDX-License-Identifier: Apache-2.0
"""Acme XPU: cards listed by the driver in a text file, shares held by the driver's own quota."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hami_framework import (
    MIB,
    Capacity,
    ContainerEdits,
    Device,
    DeviceClass,
    DeviceNode,
    DeviceRequest,
    Enforcement,
    Grant,
    Health,
    Host,
    Isolation,
    Machine,
    Mode,
    Offer,
    Reason,
    Rejection,
    ResourceNames,
    hookimpl,
    round_up,
    share,
    whole,
)

HAMI_SPEC_VERSION = "1"
HELD = Isolation(memory="hard", compute="soft")


@hookimpl
def hami_resources() -> ResourceNames:
    return ResourceNames(count="acme.example/xpu", memory="acme.example/xpumem", cores="acme.example/xpucores")


@hookimpl
def hami_discover(host: Host) -> Iterator[Device]:
    cards = configparser.ConfigParser()
    cards.read(os.environ.get("ACME_CARDS", host.path("/proc/acme/cards")))
    for index, section in enumerate(cards.sections()):
        card = cards[section]
        yield Device(
            id=card["serial"],
            index=index,
            device_class=DeviceClass(
                model=card["model"],
                types=("XPU",),
                capacity=Capacity(memory_bytes=int(card["memory_mib"]) * MIB, shares=8),
                modes=(Mode(name="whole", isolation=HELD), Mode(name="share", isolation=HELD)),
            ),
            numa_node=card.getint("numa", fallback=None),
            health=Health() if card["health"] == "ok" else Health(state="unhealthy", reason=card["health"]),
            identities=(("minor", card["minor"]),),
        )


@hookimpl
def hami_partition(device_class: DeviceClass, request: DeviceRequest) -> list[Offer | Rejection]:
    memory_bytes = device_class.capacity.memory_bytes
    if request.whole:
        return [whole(memory_bytes)]
    wanted = round_up(request.memory_bytes or memory_bytes, 64 * MIB)
    if wanted > memory_bytes:
        return [Rejection(reason=Reason.MEMORY, wanted=wanted, free=memory_bytes, dimension="memory_bytes")]
    return [share(wanted, request.core_percent)]


@hookimpl
def hami_allocate(devices: Sequence[Device]) -> ContainerEdits:
    nodes = tuple(DeviceNode(path=f"/dev/acme{device.identity('minor')}") for device in devices)
    return ContainerEdits(env={"ACME_VISIBLE_DEVICES": ",".join(device.id for device in devices)}, device_nodes=nodes)


@hookimpl
def hami_enforce(grant: Grant) -> Enforcement:
    quota = ",".join(f"{held.device_id}:{held.offer.cost.memory_bytes // MIB}" for held in grant.devices)
    return Enforcement(isolation=HELD, mechanism="the driver's quota", edits=ContainerEdits(env={"ACME_QUOTA_MIB": quota}))


@hookimpl
def hami_machines() -> list[Machine]:
    state = (Path(__file__).parent / "acme-box.ini").read_text()
    return [Machine(name="acme-box", description="2 x Acme XPU, 16 GiB", state=state, environment={"ACME_CARDS": "{state}"})]
