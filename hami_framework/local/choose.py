# SPDX-License-Identifier: Apache-2.0
"""Which devices a local run gets: the extender's own engine and arithmetic, asked for one machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from hami_framework.codec.words import sentence
from hami_framework.errors import ConfigError
from hami_framework.local import ledger
from hami_framework.model import (
    NEUTRAL,
    ContainerRequest,
    Device,
    DeviceRequest,
    Inventory,
    Owner,
    PodGrant,
    PodRequest,
    Rejection,
    ResourceRequest,
    Selector,
    Value,
)
from hami_framework.plugins import Registry

SHARE = "share"


class Wanted(Value, frozen=True, kw_only=True):
    """What the user asked for, per device."""

    count: int | None = None
    """None: one, or as many as devices are named."""
    memory_bytes: int | None = None
    core_percent: int | None = None
    devices: tuple[str, ...] = ()
    """`VENDOR`, `VENDOR:INDEX`, a device's id, name or PCI address."""


def others(setting_directory: Path, node: str, *extra: Path) -> tuple[PodGrant, ...]:
    """Everything that is held on this machine, by pods and by local runs, under one node's name."""
    found: dict[str, PodGrant] = {}
    for directory in dict.fromkeys((setting_directory, *extra)):
        for grant in (*ledger.agent_grants(directory), *ledger.live_grants(directory)):
            found[grant.owner.uid] = msgspec.structs.replace(grant, node=node)
    return tuple(found.values())


def choose(registry: Registry, inventory: Inventory, held: Iterable[PodGrant], wanted: Wanted, owner: Owner) -> PodGrant:
    """The grant. Raises ConfigError with the reason in words: an unknown device, too much asked, or no room now."""
    from hami_framework.placement.engine import Engine

    named = [_find(name, inventory.devices) for name in wanted.devices]
    vendors = {device.vendor for devices in named for device in devices}
    if len(vendors) > 1:
        raise ConfigError(f"devices of several vendors ({', '.join(sorted(vendors))}) cannot be had in one run: name devices of one vendor")
    alone = [devices[0].id for devices in named if len(devices) == 1 and len(inventory.devices) > 1]
    if twice := next((each for each in alone if alone.count(each) > 1), None):
        raise ConfigError(f"device {twice} is named twice: once is enough; for more devices of a vendor say --count")
    ids = tuple(dict.fromkeys(device.id for devices in named for device in devices))
    count = wanted.count or max(1, len(wanted.devices))
    engine = Engine(registry.partition, policies=registry.policies())
    engine.set_inventory(inventory)
    for grant in held:
        if grant.owner.uid != owner.uid:
            engine.observe(grant)
    refused: Sequence[Rejection] = ()
    for mode in _modes(wanted, inventory.devices):
        request = DeviceRequest(count=count, memory_bytes=wanted.memory_bytes, core_percent=wanted.core_percent, mode=mode)
        asked = ResourceRequest(resource=_resource(registry, vendors), request=request, selector=Selector(vendors=tuple(vendors), use_ids=ids))
        container = ContainerRequest(name=ledger.CONTAINER, requests=(asked,))
        answer = engine.reserve(PodRequest(uid=owner.uid, namespace=owner.namespace, name=owner.name, containers=(container,)), inventory.node)
        if isinstance(answer, PodGrant):
            return msgspec.structs.replace(answer, owner=owner)
        refused = answer
    lines = dict.fromkeys(sentence(msgspec.structs.replace(one, container=None, resource=None)) for one in refused)
    raise ConfigError("this machine cannot give that: " + "; ".join(lines) + ". `hami ps` shows who holds what")


def _modes(wanted: Wanted, devices: Sequence[Device]) -> tuple[str | None, ...]:
    """Amounts are exact in a plain share, and rounded up to a template in a partition: the share first, where there is one."""
    amounts = wanted.memory_bytes is not None or wanted.core_percent is not None
    return (SHARE, None) if amounts and any(device.device_class.mode(SHARE) for device in devices) else (None,)


def _resource(registry: Registry, vendors: set[str]) -> str:
    """The vendor's own name for a count of its devices, as its hooks expect it; the neutral one where any vendor will do."""
    loaded = registry.vendors.get(next(iter(vendors))) if vendors else None
    return loaded.resources[0].count if loaded is not None and loaded.resources else NEUTRAL.count


def _find(wanted: str, devices: Sequence[Device]) -> list[Device]:
    """The devices a word means. Raises ConfigError listing what there is."""
    vendor, colon, index = wanted.partition(":")
    found = [device for device in devices if device.vendor == wanted]
    if not found and colon:
        found = [device for device in devices if device.vendor == vendor and str(device.index) == index]
    if not found:
        found = [device for device in devices if wanted.strip().casefold() in device.ids]
    if found:
        return found
    known = ", ".join(f"{device.vendor}:{device.index} ({device.device_class.model}, {device.id})" for device in devices)
    raise ConfigError(f"this machine has no device {wanted!r}; it has {known}")
