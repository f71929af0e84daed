# SPDX-License-Identifier: Apache-2.0
"""Which resource names are ours, whose they are, and what each one counts.

The core knows the neutral names only; every other name is declared by a vendor's `hami_resources`. One name has one
meaning: two vendors that claim the same name are refused, both named, because nothing else would be fair.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from hami_framework.errors import ConfigError
from hami_framework.model import NEUTRAL, ResourceNames, Value

NEUTRAL_VENDOR = ""
"""Stands for "any vendor" where a family's vendor is named."""

# Kubernetes' qualified name with a prefix: a DNS subdomain, a slash, and a name of at most 63 characters.
_EXTENDED_RESOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class Role(StrEnum):
    """What the number behind a resource name means."""

    COUNT = "count"
    PROFILE = "profile"
    MEMORY = "memory"
    MEMORY_PERCENT = "memory-percent"
    CORES = "cores"
    PRIORITY = "priority"

    @property
    def counts_devices(self) -> bool:
        """True for the names that kubelet calls the node agent for."""
        return self in (Role.COUNT, Role.PROFILE)

    @property
    def amount(self) -> bool:
        """True for the amounts per device."""
        return self in (Role.MEMORY, Role.MEMORY_PERCENT, Role.CORES)


class Family(Value, frozen=True, kw_only=True):
    """A count and the amounts that go with it, declared by one vendor (or by nobody in particular: the neutral one)."""

    vendor: str
    names: ResourceNames

    @property
    def neutral(self) -> bool:
        return self.vendor == NEUTRAL_VENDOR

    @property
    def roles(self) -> dict[str, Role]:
        """The family's own names (no aliases) and what each of them counts."""
        names = self.names
        optional = {names.memory: Role.MEMORY, names.memory_percent: Role.MEMORY_PERCENT, names.cores: Role.CORES, names.priority: Role.PRIORITY}
        amounts = {name: role for name, role in optional.items() if name is not None}
        return {names.count: Role.COUNT, **amounts, **dict.fromkeys(names.profiles, Role.PROFILE)}


class Meaning(Value, frozen=True, kw_only=True):
    """What one spelling of a resource name stands for."""

    family: Family
    role: Role
    name: str
    """The name as the family declares it; another one than the spelling asked for, when that is an alias."""


class Clash(Value, frozen=True, kw_only=True):
    """One name that was claimed more than once, and by whom (`hami.io/…` itself is claimed by "the core")."""

    name: str
    vendors: tuple[str, ...]

    @property
    def message(self) -> str:
        """Who quarrels about what, and the way out."""
        return f"resource name {self.name} is claimed by {' and by '.join(self.vendors)}: rename one of them in the settings, or leave one package out"


def clashes(families: Iterable[tuple[str, ResourceNames]]) -> tuple[Clash, ...]:
    """Names (aliases included) that are claimed more than once, among these families and the neutral one."""
    claims: dict[str, list[str]] = {}
    for family in (*_families(families), Family(vendor=NEUTRAL_VENDOR, names=NEUTRAL)):
        for name in (*family.roles, *family.names.aliases):
            claims.setdefault(name, []).append(family.vendor or "the core")
    return tuple(Clash(name=name, vendors=tuple(vendors)) for name, vendors in claims.items() if len(vendors) > 1)


def malformed(vendor: str, names: ResourceNames) -> tuple[str, ...]:
    """What is wrong with one vendor's declaration by itself, in words."""
    roles = Family(vendor=vendor, names=names).roles
    amounts = (names.memory, names.memory_percent, names.cores, names.priority)
    claimed = Counter(name for name in (names.count, *amounts, *names.profiles, *names.aliases) if name is not None)
    problems = [f"{name!r} is not the name of an extended resource (write domain/name)" for name in claimed if _EXTENDED_RESOURCE.fullmatch(name) is None]
    problems += [f"{name} is declared for {times} things" for name, times in claimed.items() if times > 1]
    problems += [f"alias {spelling} stands for {name}, which is not declared" for spelling, name in names.aliases.items() if name not in roles]
    problems += [f"{what} must be at least 1" for what in ("memory_unit_bytes", "minimum_count") if getattr(names, what) < 1]
    return tuple(f"vendor {vendor}, resources of {names.count}: {problem}" for problem in problems)


def renamed(names: ResourceNames, renames: Mapping[str, str]) -> ResourceNames:
    """The same family under the operator's names (settings: declared name → name to use). Names not listed stay."""

    def new(name: str) -> str:
        return renames.get(name, name)

    def new_or_none(name: str | None) -> str | None:
        return None if name is None else new(name)

    return msgspec.structs.replace(
        names,
        count=new(names.count),
        memory=new_or_none(names.memory),
        memory_percent=new_or_none(names.memory_percent),
        cores=new_or_none(names.cores),
        priority=new_or_none(names.priority),
        aliases={new(spelling): new(name) for spelling, name in names.aliases.items()},
        profiles={new(resource): profile for resource, profile in names.profiles.items()},
    )


class ResourceCatalog:
    """All resource names that mean something here: the vendors' families and the neutral one.

    `families`: (vendor, names) pairs, renames applied. `vendors`: every vendor that may be named in `hami.io/vendors`,
    also those without names of their own. Raises `ConfigError` when a name is malformed, claimed twice, or an alias
    leads nowhere; ask `malformed` and `clashes` beforehand to leave out only those at fault.
    """

    def __init__(self, families: Iterable[tuple[str, ResourceNames]] = (), *, vendors: Iterable[str] = ()) -> None:
        declared = _families(families)
        problems = [clash.message for clash in clashes((family.vendor, family.names) for family in declared)]
        problems += [problem for family in declared for problem in malformed(family.vendor, family.names)]
        if problems:
            raise ConfigError("; ".join(problems))
        self.families = (*declared, Family(vendor=NEUTRAL_VENDOR, names=NEUTRAL))
        self.vendors = tuple(sorted({*vendors, *(family.vendor for family in declared)}))
        self._meanings = {spelling: meaning for family in self.families for spelling, meaning in _meanings(family)}

    def meaning(self, name: str) -> Meaning | None:
        """What this resource name stands for; None when it is not one of ours."""
        return self._meanings.get(name)

    def slot_resources(self) -> tuple[str, ...]:
        """The names that node agents register with kubelet: counts and profiles of every family."""
        return tuple(name for family in self.families for name in family.names.slot_resources)

    def extended_resources(self) -> tuple[str, ...]:
        """Every name of ours, aliases too: what the extender's `managedResources` has to list."""
        return tuple(self._meanings)

    def amount_resources(self) -> tuple[str, ...]:
        """Amounts and aliases: no node ever advertises them, so kube-scheduler must be told `ignoredByScheduler`."""
        slots = set(self.slot_resources())
        return tuple(name for name in self._meanings if name not in slots)


def _families(families: Iterable[tuple[str, ResourceNames]]) -> tuple[Family, ...]:
    return tuple(Family(vendor=vendor, names=names) for vendor, names in families)


def _meanings(family: Family) -> Iterable[tuple[str, Meaning]]:
    roles = family.roles
    for name, role in roles.items():
        yield name, Meaning(family=family, role=role, name=name)
    for spelling, name in family.names.aliases.items():
        yield spelling, Meaning(family=family, role=roles[name], name=name)
