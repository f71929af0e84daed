# SPDX-License-Identifier: Apache-2.0
"""Whose devices each container asks for, as far as raw JSON tells before anything is completed or refused."""

from __future__ import annotations

from hami_framework.codec import quantity
from hami_framework.codec.containers import Group, asks_amounts, by_family
from hami_framework.codec.podspec import Json, Place, places, spelled
from hami_framework.codec.resources import ResourceCatalog, Role


def vendors_asked(pod: Json, catalog: ResourceCatalog) -> dict[str, frozenset[str]]:
    """Container (by its JSON pointer) → vendors whose devices it asks for; `NEUTRAL_VENDOR` stands for "any"."""
    return {place.pointer: _vendors(place, catalog) for place in places(pod)}


def whole_devices(group: Group) -> int:
    """How many whole devices are asked; 0 when that cannot be told."""
    counts = [item.raw for item in group if item.meaning.role is Role.COUNT]
    try:
        return quantity.whole(counts[0]) if len(counts) == 1 else 0
    except ValueError:
        return 0


def _vendors(place: Place, catalog: ResourceCatalog) -> frozenset[str]:
    return frozenset(group[0].meaning.family.vendor for group in by_family(spelled(place, "limits", catalog)) if _asks(group))


def _asks(group: Group) -> bool:
    return asks_amounts(group) or whole_devices(group) > 0 or any(item.meaning.role is Role.PROFILE for item in group)
