# SPDX-License-Identifier: Apache-2.0
"""Which slots a node offers for each resource, what they are called, and which of them are well. Pure.

A slot is a token: kubelet counts slots and hands them to containers, and which device stands behind one is decided by the
container's own grant, never by the slot's name. Names therefore depend on the resource and a number alone and stay the
same when devices come, go or change places.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from hami_framework.errors import ConfigError
from hami_framework.model import NEUTRAL, Device, DeviceClass, ResourceNames, Value, VendorInfo

MESSAGE_LIMIT_BYTES = 3_670_016
"""3.5 MiB. kubelet's gRPC client refuses messages over 4 MiB, and only its own log says so (kubernetes/kubernetes#109304)."""

_NOT_LABEL = re.compile(r"[^a-z0-9-]+")


class Part(Value, frozen=True, kw_only=True):
    """What one device adds to a resource."""

    device_id: str
    shares: int
    healthy: bool


class Pool(Value, frozen=True, kw_only=True):
    """One resource name and the devices behind it."""

    resource: str
    vendor: str
    """Who declares the name; empty for the neutral resource."""
    parts: tuple[Part, ...] = ()
    minimum_count: int = 1
    remembered: int = 0
    """Slots to keep offering while the vendor has not answered yet since the agent started."""

    @property
    def total(self) -> int:
        return max(self.remembered, sum(part.shares for part in self.parts))

    @property
    def well(self) -> int:
        """How many slots the healthy devices stand for."""
        return self.total - sum(part.shares for part in self.parts if not part.healthy)


class Slot(Value, frozen=True, kw_only=True):
    """One token as kubelet sees it."""

    id: str
    healthy: bool = True


def contested(vendors: Iterable[VendorInfo]) -> dict[str, tuple[str, ...]]:
    """Resource names that several vendors declare, with those vendors: none of them can be registered rightly."""
    claims: dict[str, set[str]] = {NEUTRAL.count: {"hami (the neutral resource)"}}
    for vendor in vendors:
        for family in vendor.resources:
            for resource in family.slot_resources:
                claims.setdefault(resource, set()).add(vendor.name)
    return {resource: tuple(sorted(owners)) for resource, owners in claims.items() if len(owners) > 1}


def pools(vendors: Iterable[VendorInfo], devices: Mapping[str, Sequence[Device]]) -> dict[str, Pool]:
    """Every resource this node registers, contested names left out. `devices`: vendor name → its devices."""
    vendors = sorted(vendors, key=lambda vendor: vendor.name)
    refused = contested(vendors)
    found = {pool.resource: pool for vendor in vendors for pool in _vendor_pools(vendor, devices.get(vendor.name, ())) if pool.resource not in refused}
    everything = [device for vendor in vendors for device in devices.get(vendor.name, ())]
    found[NEUTRAL.count] = Pool(resource=NEUTRAL.count, vendor="", parts=_parts(everything, None))
    return found


def with_memory(found: Mapping[str, Pool], offered: Iterable[tuple[str, str, int]], states: Mapping[str, str]) -> dict[str, Pool]:
    """The same after a restart of the agent, while some vendors have not told their resources. `offered`: resource, vendor, slots.

    A pod that kubelet admits again after a reboot fails for good when its slot is missing, but one whose PreStart fails is
    tried again; so the slots of a vendor that is still starting are offered as they were, and those of one that came back
    broken are offered as unhealthy.
    """
    result = dict(found)
    for resource, vendor, count in offered:
        waiting = "starting" in (states.get(vendor), *(states.values() if not vendor else ()))
        if waiting:
            known = result.get(resource, Pool(resource=resource, vendor=vendor))
            result[resource] = Pool(resource=resource, vendor=vendor, parts=known.parts, minimum_count=known.minimum_count, remembered=count)
        elif resource not in result and states.get(vendor) == "quarantined":
            result[resource] = Pool(resource=resource, vendor=vendor, parts=(Part(device_id=vendor, shares=count, healthy=False),))
    return result


def _vendor_pools(vendor: VendorInfo, devices: Sequence[Device]) -> Iterable[Pool]:
    for family in vendor.resources:
        own = [device for device in devices if _belongs(device.device_class, family)]
        yield Pool(resource=family.count, vendor=vendor.name, parts=_parts(own, None), minimum_count=family.minimum_count)
        for resource, profile in family.profiles.items():
            yield Pool(resource=resource, vendor=vendor.name, parts=_parts(own, profile))


def _belongs(device_class: DeviceClass, family: ResourceNames) -> bool:
    return not family.types or any(device_class.answers_to(type_name) for type_name in family.types)


def _parts(devices: Iterable[Device], profile: str | None) -> tuple[Part, ...]:
    counted = ((device, _shares(device.device_class, profile)) for device in devices)
    return tuple(Part(device_id=device.id, shares=shares, healthy=device.health.ok) for device, shares in counted if shares)


def _shares(device_class: DeviceClass, profile: str | None) -> int:
    """How many containers can hold something of one device through this resource."""
    if profile is None:
        return device_class.capacity.shares
    cut = next((cut for cut in device_class.profiles if cut.name == profile), None)
    if cut is None:
        return 0
    return cut.max_instances or device_class.capacity.shares


def slot_prefix(resource: str) -> str:
    """What every slot of a resource begins with: readable, a DNS label, and told apart from all other resources by a digest."""
    readable = _NOT_LABEL.sub("-", resource.rpartition("/")[2].lower()).strip("-")[:40].rstrip("-")
    digest = hashlib.sha256(resource.encode()).hexdigest()[:8]
    return f"{readable}-{digest}" if readable else f"slot-{digest}"


def slot_id(resource: str, number: int) -> str:
    """The name of the `number`-th slot of a resource; the same on every node and after every restart."""
    return f"{slot_prefix(resource)}-{number}"


def slots(pool: Pool, occupied: Mapping[str, frozenset[str]]) -> tuple[Slot, ...]:
    """The complete list for kubelet. `occupied`: slot → the devices that its grant names (empty when they are not known).

    - A slot whose grant names a device that failed or vanished is unhealthy.
    - Free slots turn unhealthy, highest number first, until only as many are healthy as the healthy devices stand for.
    - A slot of a healthy grant never turns unhealthy, and an occupied slot stays listed even when the node has shrunk:
      kubelet fails a pod for good when the slot it recorded is missing.
    """
    sound = {part.device_id for part in pool.parts if part.healthy}
    numbered = [slot_id(pool.resource, number) for number in range(pool.total)]
    own = {slot: held for slot, held in occupied.items() if slot.startswith(slot_prefix(pool.resource) + "-")}
    failed = {part.device_id for part in pool.parts if not part.healthy}
    broken = {slot for slot, held in own.items() if (held & failed if pool.remembered else not held <= sound)}
    ids = numbered + sorted(own.keys() - set(numbered))
    free = [slot for slot in reversed(numbered) if slot not in own]
    surplus = max(0, len(ids) - len(broken) - pool.well)
    broken.update(free[:surplus])
    return tuple(Slot(id=slot, healthy=slot not in broken) for slot in ids)


def message_bytes(listed: Sequence[Slot]) -> int:
    """Upper bound of the size of the ListAndWatch message for these slots: id, health word and three field headers each."""
    return sum(len(slot.id) + len("Unhealthy") + 8 for slot in listed)


def check_size(pool: Pool, listed: Sequence[Slot]) -> None:
    """Raises ConfigError when kubelet could not receive the list."""
    size = message_bytes(listed)
    if size > MESSAGE_LIMIT_BYTES:
        raise ConfigError(
            f"resource {pool.resource}: {len(listed)} slots make a message of {size} bytes, over the {MESSAGE_LIMIT_BYTES} that kubelet surely takes; "
            f"lower `shares` of vendor {pool.vendor or 'devices'}"
        )
