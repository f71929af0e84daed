# SPDX-License-Identifier: Apache-2.0
"""One way a device can serve a request, with its exact cost."""

from __future__ import annotations

from hami_framework.model.base import Value
from hami_framework.model.cost import Cost


class Limit(Value, frozen=True, kw_only=True):
    """What must hold at run time; None is no limit."""

    memory_bytes: int | None = None
    core_percent: int | None = None


class Offer(Value, frozen=True, kw_only=True):
    """One way a device may serve one request. The vendor decided the rules; the engine does the arithmetic."""

    mode: str
    cost: Cost
    limit: Limit = Limit()
    """The most the container may use."""
    guaranteed: Limit | None = None
    """The least it can count on; None: the same as `limit`."""
    profile: str | None = None
    """Name of the partition profile to be made, where there is one."""
    exclusive: bool = False
    """True: nobody else may hold anything on the device."""


def whole(memory_bytes: int, *, shares: int = 1) -> Offer:
    """The offer of a whole device of this size, exclusively: mode `whole`, no limit beyond the hardware's own."""
    return Offer(
        mode="whole",
        exclusive=True,
        cost=Cost(memory_bytes=memory_bytes, core_percent=100, shares=shares),
        limit=Limit(memory_bytes=memory_bytes, core_percent=100),
    )


def share(memory_bytes: int, core_percent: int | None = None, *, mode: str = "share") -> Offer:
    """The offer of a plain share: so much memory, so much compute (None: no compute limit, none promised)."""
    return Offer(
        mode=mode, cost=Cost(memory_bytes=memory_bytes, core_percent=core_percent or 0), limit=Limit(memory_bytes=memory_bytes, core_percent=core_percent)
    )
