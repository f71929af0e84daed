# SPDX-License-Identifier: Apache-2.0
"""The last fence: no grant takes effect that, with what is live on this node, exceeds a device. Pure.

The extender has reserved before it bound, so this should never refuse; it is what stands when two extenders run, a
reservation was lost, or an annotation was forged. It adds up what the grants say and knows no vendor rule.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hami_framework.model import Device, DeviceGrant, PodGrant, Reason, Rejection, Value, show_bytes

Dimensions = Mapping[str, int]

_REASONS = {"memory_bytes": Reason.MEMORY, "core_percent": Reason.CORES, "shares": Reason.SHARES, "units": Reason.UNITS, "line": Reason.PLACEMENT}


class Overcommit(Value, frozen=True, kw_only=True):
    """How much of its hardware a node may promise, in percent; the same figures as the extender's for this node.

    The terms on a device's class come before these.
    """

    memory_percent: int = 100
    core_percent: int = 100


def check(pod: PodGrant, live: Iterable[PodGrant], devices: Mapping[str, Device], overcommit: Overcommit) -> tuple[Rejection, ...]:
    """Why `pod` cannot stand beside `live`; empty when it can. `devices`: id → device of this node."""
    others = [grant for grant in live if grant.owner.uid != pod.owner.uid]
    refused: list[Rejection] = []
    for device_id in sorted({device.device_id for container in pod.containers for device in container.devices}):
        device = devices.get(device_id)
        if device is None:
            refused.append(Rejection(reason=Reason.ID, device=device_id, message=f"this node has no device {device_id}"))
        else:
            refused.extend(_check_device(device, pod, others, overcommit))
    return tuple(refused)


def _check_device(device: Device, pod: PodGrant, others: Sequence[PodGrant], overcommit: Overcommit) -> Iterable[Rejection]:
    if above := tuple(_check_limits(device, _on_device(pod, device.id))):
        yield from above
        return
    wanted = _peak(pod, device.id)
    taken: Tally[str] = Tally()
    for other in others:
        taken.update(_peak(other, device.id))
    for dimension, capacity in _capacity(device, overcommit).items():
        if wanted.get(dimension, 0) > capacity - taken[dimension]:
            yield Rejection(
                reason=_REASONS.get(dimension, Reason.COUNTER),
                device=device.name or device.id,
                dimension=dimension,
                wanted=wanted[dimension],
                free=max(0, capacity - taken[dimension]),
                message=", ".join(_local_runs(others, device.id)),
            )
    neighbours = [grant for other in others for grant in _on_device(other, device.id)]
    yield from _check_company(device, list(_on_device(pod, device.id)), neighbours)


def _local_runs(others: Iterable[PodGrant], device_id: str) -> Iterator[str]:
    """Who holds something there that the scheduler may not have known of yet."""
    for other in others:
        if other.owner.kind == "local" and any(True for _ in _on_device(other, device_id)):
            yield f"the local run {other.owner.uid} ({other.owner.name}) holds {_peak(other, device_id)['memory_bytes']} bytes"


def _check_limits(device: Device, own: Iterable[DeviceGrant]) -> Iterable[Rejection]:
    """However much a node promises in all: nobody can be held to more than the device has."""
    capacity = device.device_class.capacity.memory_bytes
    for grant in own:
        limit = grant.offer.limit.memory_bytes
        if limit is not None and limit > capacity:
            message = f"the grant's limit of {show_bytes(limit)} is above the device, which has {show_bytes(capacity)}"
            yield Rejection(reason=Reason.MEMORY, device=device.name or device.id, dimension="memory_bytes", wanted=limit, free=capacity, message=message)


def _check_company(device: Device, own: Sequence[DeviceGrant], neighbours: Sequence[DeviceGrant]) -> Iterable[Rejection]:
    """Exclusiveness, modes, and the places of partitions."""
    name = device.name or device.id
    if neighbours and any(grant.offer.exclusive for grant in (*own, *neighbours)):
        yield Rejection(reason=Reason.EXCLUSIVE, device=name, message="one of the grants on the device is exclusive")
        return
    for grant in own:
        for other in neighbours:
            if not _modes_agree(device, grant.offer.mode, other.offer.mode):
                yield Rejection(reason=Reason.MODE_TAKEN, device=name, wanted=grant.offer.mode, free=other.offer.mode)
                return
            if _cells(grant) & _cells(other):
                yield Rejection(reason=Reason.PLACEMENT, device=name, wanted=grant.start, message="the interval overlaps another grant's")
                return
            if _bitmap(grant) & _bitmap(other):
                yield Rejection(reason=Reason.UNITS, device=name, wanted=grant.units, free=other.units)
                return


def _modes_agree(device: Device, one: str, other: str) -> bool:
    """Equal modes do; different ones when either says that it bears the other."""
    return one == other or any(
        mode is not None and name in mode.coexists for mode, name in ((device.device_class.mode(one), other), (device.device_class.mode(other), one))
    )


def _peak(pod: PodGrant, device_id: str) -> Dimensions:
    """What a pod takes of a device at its worst start-up phase, per dimension."""
    peak: dict[str, int] = {}
    for phase in pod.phases:
        total: Tally[str] = Tally()
        for container in phase:
            for grant in container.devices:
                if grant.device_id == device_id:
                    total.update(_cost(grant))
        for dimension, amount in total.items():
            peak[dimension] = max(peak.get(dimension, 0), amount)
    return peak


def _cost(grant: DeviceGrant) -> Dimensions:
    cost = grant.offer.cost
    amounts = {"memory_bytes": cost.memory_bytes, "core_percent": cost.core_percent, "shares": cost.shares, "units": cost.units}
    amounts["line"] = cost.interval.size if cost.interval else 0
    return amounts | {counter.name: counter.amount for counter in cost.counters}


def _capacity(device: Device, overcommit: Overcommit) -> Dimensions:
    capacity, terms = device.device_class.capacity, device.device_class.terms
    amounts = {
        "memory_bytes": capacity.memory_bytes * (terms.memory_percent or overcommit.memory_percent) // 100,
        "core_percent": capacity.core_percent * (terms.core_percent or overcommit.core_percent) // 100,
        "shares": capacity.shares,
        "units": capacity.units,
        "line": capacity.line,
    }
    return amounts | {counter.name: counter.amount for counter in capacity.counters}


def _on_device(pod: PodGrant, device_id: str) -> Iterable[DeviceGrant]:
    return (grant for container in pod.containers for grant in container.devices if grant.device_id == device_id)


def _cells(grant: DeviceGrant) -> frozenset[int]:
    interval = grant.offer.cost.interval
    if interval is None or grant.start is None:
        return frozenset()
    return frozenset(range(grant.start, grant.start + interval.size))


def _bitmap(grant: DeviceGrant) -> int:
    return int(grant.units, 16) if grant.units else 0
