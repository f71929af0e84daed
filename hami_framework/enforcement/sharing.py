# SPDX-License-Identifier: Apache-2.0
"""How a device's time is dealt out among containers, and how the cost that the libraries measure is put right. Pure functions.

All shares are thousandths of a percent of one device, as in the policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from hami_framework.enforcement.control import GAIN_LIMITS
from hami_framework.enforcement.layout import MILLI_PERCENT
from hami_framework.enforcement.policy import Compute
from hami_framework.model import Value

FLOOR_MILLI = 1_000
"""1 %: what a container is left with however little it does, so that it can show that it wants more."""

PROPORTIONAL = 0.10
INTEGRAL = 0.02
"""Per look (a second). Utilisation comes as whole percents over windows of its own, so a quicker answer would follow the noise."""
LARGEST_ERROR = 0.5


class Tenant(Value, frozen=True, kw_only=True):
    """One container on one device."""

    guaranteed: int
    mode: Compute = "fixed"
    weight: int = 1
    priority: int = 0
    """0 is the highest."""
    active: bool = True
    """It has used, or waited for, the device since the last look."""


def effective_shares(tenants: Sequence[Tenant], whole: int = MILLI_PERCENT) -> tuple[int, ...]:
    """The share that each tenant is held to now.

    A fixed tenant has its own share, always. The idle share of work-conserving ones, and what nobody was promised, is lent
    to the active ones: to those of the highest priority first, among them by weight, to none more than the whole. An active
    tenant never has less than it was promised, nobody less than the floor (or than it was promised, where that is less),
    and the sum is never more than the device has. Where more was promised than there is nothing is lent.
    """
    if sum(tenant.guaranteed for tenant in tenants) > whole:
        return tuple(tenant.guaranteed for tenant in tenants)
    shares = [tenant.guaranteed if tenant.active or tenant.mode == "fixed" else min(tenant.guaranteed, FLOOR_MILLI) for tenant in tenants]
    borrowers = [place for place, tenant in enumerate(tenants) if tenant.active and tenant.mode == "work-conserving"]
    free = whole - sum(shares)
    for priority in sorted({tenants[place].priority for place in borrowers}):
        free = _lend(shares, [place for place in borrowers if tenants[place].priority == priority], tenants, free, whole)
    return tuple(shares)


def _lend(shares: list[int], borrowers: list[int], tenants: Sequence[Tenant], free: int, whole: int) -> int:
    """Deal out by weight; what a tenant that has everything cannot take goes to the others. Answers what is left."""
    while free > 0 and (open_ := [place for place in borrowers if shares[place] < whole]):
        weight = sum(tenants[place].weight for place in open_)
        parts = {place: min(whole - shares[place], free * tenants[place].weight // weight) for place in open_}
        if not any(parts.values()):
            break  # less than one thousandth of a percent for each
        for place, part in parts.items():
            shares[place] += part
            free -= part
    return free


class Correction(Value, frozen=True, kw_only=True):
    """What is remembered of a device from look to look."""

    integral: float = 0.0
    gain: float = 1.0


def corrected(before: Correction, measured_percent: float | None, charged_percent: float | None) -> Correction:
    """One slow step of a PI controller: the gain rises while the device is busier than the libraries have charged for.

    Nothing is learnt from a device that cannot say, that did nothing, or that nobody was charged for.
    """
    if not measured_percent or not charged_percent:
        return before
    error = max(-LARGEST_ERROR, min(LARGEST_ERROR, measured_percent / charged_percent - 1))
    low, high = GAIN_LIMITS
    integral = max(low - 1, min(high - 1, before.integral + INTEGRAL * error))  # kept within what the gain can use: no wind-up
    return Correction(integral=integral, gain=max(low, min(high, 1 + integral + PROPORTIONAL * error)))
