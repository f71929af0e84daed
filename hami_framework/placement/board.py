# SPDX-License-Identifier: Apache-2.0
"""One device as the engine keeps it: what it has, who holds what on it, and what is free."""

from __future__ import annotations

from collections.abc import Collection

from hami_framework.model import Device
from hami_framework.placement.load import NO_OVERCOMMIT, NOTHING, PLAIN, UNITS, Load, Overcommit, limits_of, together

UNLIMITED = 1 << 62
DISTINCT = "profiles:"
"""Prefix of the dimension "how many more profiles of this mode may live here"."""
PRESENT = "has:"
"""Prefix of the dimension "is this profile on the device already" (1 or 0)."""


class Board:
    """What is promised on one device. Totals are made anew from its holders at every change: releasing is exact by construction."""

    __slots__ = ("broken", "claims", "column", "device", "device_id", "fullness", "held", "holders", "limits", "open", "row")

    def __init__(self, device_id: str, column: int) -> None:
        self.device_id = device_id
        self.column = column
        self.row = -1
        self.device: Device | None = None
        self.limits: dict[str, int] = {}
        self.holders: dict[str, Load] = {}
        self.claims: set[str] = set()
        """Holders that wait for others to leave: they count, and yet what they are promised here beyond the limit breaks nothing."""
        self.held = NOTHING
        self.broken = False
        """Promises that the device, as it now is, cannot keep."""
        self.open = False
        """Whether it may take new grants: there, healthy, and nowhere promised beyond what it has."""
        self.fullness = 0.0
        """Mean of the promised fractions of memory, cores and shares."""

    def describe(self, device: Device | None, overcommit: Overcommit = NO_OVERCOMMIT) -> None:
        """Take what the inventory says; None: the device is gone, and nothing can be promised on it."""
        self.device = device
        self.limits = limits_of(device.device_class, overcommit) if device is not None else {}
        self._total()

    def hold(self, uid: str, load: Load, *, claim: bool = False) -> None:
        self.holders[uid] = load
        if claim:
            self.claims.add(uid)
        self._total()

    def release(self, uid: str) -> None:
        if self.holders.pop(uid, None) is not None:
            self.claims.discard(uid)
            self._total()

    def held_without(self, uids: Collection[str]) -> Load:
        """What everyone but these owners holds."""
        if not any(uid in self.holders for uid in uids):
            return self.held
        return together(load for uid, load in self.holders.items() if uid not in uids)

    def limit(self, key: str) -> int:
        """The limit of a dimension. Counters that the device does not have are 0; modes and profiles without a rule have no limit."""
        found = self.limits.get(key)
        if found is not None:
            return found
        return UNLIMITED if key.startswith(("mode:", "profile:")) else 0

    def value(self, key: str) -> int:
        """What the fleet's grid of this dimension shows for the device: what is free of it."""
        limit = self.limits.get(key)
        if limit is not None:
            return limit - self.held.amount(key)
        if key.startswith(PRESENT):
            mode, _, profile = key.removeprefix(PRESENT).partition("/")
            return int((mode, profile) in self.held.profiles)
        if key.startswith(DISTINCT):
            return self.distinct_left(key.removeprefix(DISTINCT))
        return self.limit(key) - self.held.amount(key)

    def distinct_left(self, mode: str) -> int:
        """How many more profiles of this mode may live on the device."""
        rule = self.device.device_class.mode(mode) if self.device is not None else None
        if rule is None or rule.max_profiles is None:
            return UNLIMITED
        return rule.max_profiles - sum(owner == mode for owner, _ in self.held.profiles)

    @property
    def overdrawn(self) -> tuple[str, ...]:
        """Dimensions in which more is promised than the device has (now)."""
        return tuple(key for key in (*self.held.amounts, UNITS) if self.value(key) < 0)

    def _total(self) -> None:
        self.held = together(self.holders.values())
        self.broken = self._is_broken()
        self.open = self.device is not None and self.device.health.ok and not self.broken
        fractions = (self.held.amount(key) / limit for key in PLAIN if (limit := self.limits.get(key)))
        self.fullness = sum(fractions) / len(PLAIN)

    def _is_broken(self) -> bool:
        if not self.holders:
            return False
        if self.device is None:
            return True
        device_class = self.device.device_class
        firm = self.held_without(self.claims) if self.claims else self.held
        outside = firm.cells >> device_class.capacity.line or firm.units >> device_class.capacity.units
        overdrawn = self.overdrawn and any(self.value(key) + self.held.amount(key) < firm.amount(key) for key in self.overdrawn)
        return bool(outside or overdrawn or any(device_class.mode(mode) is None for mode in firm.modes))
