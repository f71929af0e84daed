# SPDX-License-Identifier: Apache-2.0
"""In which ways a card may serve a request: whole, or as an sMLU instance that the driver holds to its quota. Pure.

An sMLU instance has memory in steps of 256 MiB and compute in steps of 1 %; a container has at most one. The card keeps
16 different pairs of (compute, memory) at a time, which is why an offer names its pair as the profile.
"""

from __future__ import annotations

from collections.abc import Iterator

from hami_cambricon.names import MEMORY_UNIT_BYTES
from hami_framework import MIB, Cost, DeviceClass, DeviceRequest, Limit, Offer, Reason, Rejection, round_up, whole


def offers(device_class: DeviceClass, request: DeviceRequest) -> Iterator[Offer | Rejection]:
    """The one offer there is, or the reason why there is none."""
    capacity = device_class.capacity
    mode = request.mode or ("whole" if request.whole else "smlu")
    wanted = capacity.memory_bytes // MEMORY_UNIT_BYTES * MEMORY_UNIT_BYTES if request.memory_bytes is None else request.memory_bytes
    if device_class.mode(mode) is None:
        known = ", ".join(own.name for own in device_class.modes)
        yield Rejection(reason=Reason.MODE_UNSUPPORTED, wanted=mode, hint=f"{device_class.model} can be used as: {known}")
    elif wanted > capacity.memory_bytes:
        yield Rejection(reason=Reason.NOT_OFFERED, dimension="memory_bytes", wanted=wanted, free=capacity.memory_bytes, hint="ask for less memory per device")
    elif mode == "whole" or round_up(wanted, MEMORY_UNIT_BYTES) > capacity.memory_bytes:
        yield whole(capacity.memory_bytes, shares=capacity.shares)
    elif request.count > 1:
        hint = "ask for whole devices (leave memory and cores out), or for one device per container"
        yield Rejection(reason=Reason.SHARE_COUNT_FORBIDDEN, wanted=request.count, free=1, hint=hint, message="a container has at most one sMLU instance")
    else:
        yield _smlu(round_up(wanted, MEMORY_UNIT_BYTES), 100 if request.whole else request.core_percent)


def _smlu(memory_bytes: int, core_percent: int | None) -> Offer:
    """Cores left out set no limit: the instance's quota is all of the compute, of which nothing is promised."""
    return Offer(
        mode="smlu",
        profile=f"{100 if core_percent is None else core_percent}_{memory_bytes // MIB}",
        cost=Cost(memory_bytes=memory_bytes, core_percent=core_percent or 0),
        limit=Limit(memory_bytes=memory_bytes, core_percent=core_percent),
        exclusive=core_percent == 100,
    )
