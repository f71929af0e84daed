# SPDX-License-Identifier: Apache-2.0
"""What a way of serving a request takes from a device: the vendor-neutral arithmetic of the five cost shapes.

=====================  =====================================================================================
shape                  expressed as
=====================  =====================================================================================
soft share             `memory_bytes`, `core_percent`, one of the device's `shares`
named template         the same plus `counters` (Ascend vNPU: AI cores, AI CPUs, …)
placed interval        `interval`: a length on a line of the device and the starts allowed (MIG memory slices)
quota in a unit        amounts already rounded by the vendor, plus `profile` limits of the device class (sMLU)
compute-unit bitmap    `units`: so many of the device's compute units, chosen one by one (DCU CU mask)
=====================  =====================================================================================

Sums, intervals and bitmaps are all the engine ever checks; which of them apply, and how a request is rounded,
is the vendor's `hami_partition` to say.
"""

from __future__ import annotations

from hami_framework.model.base import Value


class Counter(Value, frozen=True, kw_only=True):
    """An additive resource of a device beside memory and cores, e.g. `aicpu: 7`."""

    name: str
    amount: int


class Interval(Value, frozen=True, kw_only=True):
    """A need for `size` neighbouring cells on the device's line, beginning at one of `starts`, best first."""

    size: int
    starts: tuple[int, ...]


class Cost(Value, frozen=True, kw_only=True):
    """What one offer takes from one device. All amounts are exact: the vendor has rounded them."""

    memory_bytes: int = 0
    core_percent: int = 0
    """Percent of the device's compute that is promised; 0 promises none (the container may use what is idle)."""
    shares: int = 1
    """How many of `Capacity.shares` this takes; a whole device takes them all through `Offer.exclusive`."""
    counters: tuple[Counter, ...] = ()
    interval: Interval | None = None
    units: int = 0
    """How many compute units of `Capacity.units` this takes."""
