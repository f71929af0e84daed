# SPDX-License-Identifier: Apache-2.0
"""In which ways a DCU may serve a request: whole, or as a vDCU with memory exact to the MiB and a mask of compute units. Pure.

A vDCU with a compute limit owns its compute units; one without may use them all, so the two kinds never share a card.
"""

from __future__ import annotations

from collections.abc import Iterator

from hami_framework import MIB, Cost, DeviceClass, DeviceRequest, Limit, Offer, Reason, Rejection, round_up, whole


def offers(device_class: DeviceClass, request: DeviceRequest) -> Iterator[Offer | Rejection]:
    """One offer, or the reason why there is none."""
    capacity = device_class.capacity
    wanted = request.memory_bytes or capacity.memory_bytes
    memory_bytes = min(round_up(wanted, MIB), capacity.memory_bytes)
    entire = wanted == capacity.memory_bytes and request.core_percent in (None, 100)
    mode = request.mode or ("whole" if entire else "vdcu" if request.core_percent else "vdcu-memory")
    if request.profile:
        yield Rejection(reason=Reason.PROFILE_UNKNOWN, wanted=request.profile, hint="DCUs have no named profiles: ask for memory and cores")
    elif device_class.mode(mode) is None:
        known = ", ".join(own.name for own in device_class.modes)
        yield Rejection(reason=Reason.MODE_UNSUPPORTED, wanted=mode, hint=f"{device_class.model} can be used as: {known}")
    elif wanted > capacity.memory_bytes:
        hint = "ask for less memory per card"
        yield Rejection(reason=Reason.NOT_OFFERED, dimension="memory_bytes", wanted=wanted, free=capacity.memory_bytes, hint=hint)
    elif mode == "whole":
        yield whole(capacity.memory_bytes)
    elif request.count > 1:
        hint = "ask for one card with these amounts, or for whole cards without dcumem and dcucores"
        yield Rejection(reason=Reason.SHARE_COUNT_FORBIDDEN, dimension="count", wanted=request.count, free=1, hint=hint)
    elif mode == "vdcu":
        yield _masked(memory_bytes, request.core_percent or 100, capacity.units)
    else:
        yield Offer(mode=mode, cost=Cost(memory_bytes=memory_bytes), limit=Limit(memory_bytes=memory_bytes))


def _masked(memory_bytes: int, percent: int, units: int) -> Offer | Rejection:
    """The driver's unit is one compute unit; a percentage is rounded down to whole ones, as HAMi does."""
    owned = units * percent // 100
    if owned == 0:
        least = -(-100 // units)
        return Rejection(reason=Reason.NOT_OFFERED, dimension="core_percent", wanted=percent, hint=f"ask for at least {least} %: one of {units} compute units")
    cost = Cost(memory_bytes=memory_bytes, core_percent=percent, units=owned)
    return Offer(mode="vdcu", cost=cost, limit=Limit(memory_bytes=memory_bytes, core_percent=percent))
