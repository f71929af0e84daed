# SPDX-License-Identifier: Apache-2.0
"""What is held on one device, and the arithmetic of it.

A `Load` is additive amounts by dimension, two bit sets (cells of the line, compute units) and the modes and profiles
in use. Loads at the same time add up; loads of different start-up phases of one pod are the maximum per dimension
and the union of the bit sets. That is all the arithmetic there is; vendors' rules are in the costs already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hami_framework.model import ContainerGrant, Cost, DeviceClass, DeviceGrant, Offer, PodGrant

MEMORY = "memory_bytes"
CORES = "core_percent"
SHARES = "shares"
UNITS = "units"
PLAIN = (MEMORY, CORES, SHARES)
"""The dimensions that every device has."""


def counter_key(name: str) -> str:
    return f"counter:{name}"


def mode_key(name: str) -> str:
    return f"mode:{name}"


def profile_key(name: str) -> str:
    return f"profile:{name}"


@dataclass(frozen=True, slots=True)
class Overcommit:
    """How much more than its capacity a node's devices may promise, in percent of the capacity; 100 is none."""

    memory_percent: int = 100
    core_percent: int = 100


NO_OVERCOMMIT = Overcommit()


@dataclass(frozen=True, slots=True)
class Load:
    """What somebody holds on one device."""

    amounts: Mapping[str, int] = field(default_factory=dict)
    cells: int = 0
    units: int = 0
    modes: frozenset[str] = frozenset()
    profiles: frozenset[tuple[str, str]] = frozenset()
    """(mode, profile) pairs that exist because of it."""
    exclusive: bool = False

    def amount(self, key: str) -> int:
        """How much of this dimension; 0 when it holds none."""
        return self.units.bit_count() if key == UNITS else self.amounts.get(key, 0)


NOTHING = Load()


def together(loads: Iterable[Load]) -> Load:
    """Loads that exist at the same time: amounts add up."""
    return _merged(loads, at_once=True)


def either(loads: Iterable[Load]) -> Load:
    """Loads of which one exists at a time (start-up phases): the maximum per dimension, the union of the bit sets."""
    return _merged(loads, at_once=False)


def _merged(loads: Iterable[Load], *, at_once: bool) -> Load:
    several = tuple(loads)
    if len(several) < 2:
        return several[0] if several else NOTHING
    amounts: dict[str, int] = {}
    cells = units = 0
    for load in several:
        cells |= load.cells
        units |= load.units
        for key, amount in load.amounts.items():
            known = amounts.get(key, 0)
            amounts[key] = known + amount if at_once else max(known, amount)
    return Load(
        amounts=amounts,
        cells=cells,
        units=units,
        modes=frozenset().union(*(load.modes for load in several)),
        profiles=frozenset().union(*(load.profiles for load in several)),
        exclusive=any(load.exclusive for load in several),
    )


def cost_amounts(cost: Cost) -> dict[str, int]:
    """The additive dimensions of a cost that are not zero."""
    amounts = {MEMORY: cost.memory_bytes, CORES: cost.core_percent, SHARES: cost.shares}
    for counter in cost.counters:
        amounts[counter_key(counter.name)] = counter.amount
    return {key: amount for key, amount in amounts.items() if amount}


def offer_load(offer: Offer, *, start: int | None = None, units: int = 0) -> Load:
    """What taking this offer holds on the device, with its interval at `start` and these compute units."""
    amounts = cost_amounts(offer.cost)
    amounts[mode_key(offer.mode)] = 1
    profiles: frozenset[tuple[str, str]] = frozenset()
    if offer.profile is not None:
        amounts[profile_key(offer.profile)] = 1
        profiles = frozenset({(offer.mode, offer.profile)})
    cells = cell_bits(start, offer.cost.interval.size) if offer.cost.interval is not None and start is not None else 0
    return Load(amounts=amounts, cells=cells, units=units, modes=frozenset({offer.mode}), profiles=profiles, exclusive=offer.exclusive)


def cell_bits(start: int, size: int) -> int:
    """The cells of an interval as a bit set; bit 0 is the first cell of the line."""
    return ((1 << size) - 1) << start


def grant_load(grant: DeviceGrant) -> Load:
    """What one device grant holds on its device."""
    return offer_load(grant.offer, start=grant.start, units=int(grant.units, 16) if grant.units else 0)


def pod_loads(grant: PodGrant) -> dict[str, Load]:
    """What a pod holds on each device (by device id): the maximum over its start-up phases."""
    phases = grant.phases
    if len(phases) == 1:
        return {device: together(loads) for device, loads in _by_device(phases[0]).items()}
    by_device: dict[str, list[Load]] = {}
    for phase in phases:
        for device, loads in _by_device(phase).items():
            by_device.setdefault(device, []).append(together(loads))
    return {device: either(loads) for device, loads in by_device.items()}


def _by_device(containers: Iterable[ContainerGrant]) -> dict[str, list[Load]]:
    loads: dict[str, list[Load]] = {}
    for container in containers:
        for grant in container.devices:
            loads.setdefault(grant.device_id, []).append(grant_load(grant))
    return loads


def limits_of(device_class: DeviceClass, overcommit: Overcommit = NO_OVERCOMMIT) -> dict[str, int]:
    """How much of each dimension a device of this class may promise. A mode or profile that is missing here has no limit.

    `overcommit` is for nodes whose agent has published no terms of its own.
    """
    capacity, terms = device_class.capacity, device_class.terms
    limits = {
        MEMORY: capacity.memory_bytes * (terms.memory_percent or overcommit.memory_percent) // 100,
        CORES: capacity.core_percent * (terms.core_percent or overcommit.core_percent) // 100,
        SHARES: capacity.shares,
        UNITS: capacity.units,
    }
    limits.update({counter_key(counter.name): counter.amount for counter in capacity.counters})
    limits.update({mode_key(mode.name): mode.max_instances for mode in device_class.modes if mode.max_instances is not None})
    limits.update({profile_key(profile.name): profile.max_instances for profile in device_class.profiles if profile.max_instances is not None})
    return limits
