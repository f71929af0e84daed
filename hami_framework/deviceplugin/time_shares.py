# SPDX-License-Identifier: Apache-2.0
"""The time of devices, dealt out once a look: shares that are lent are raised, and what a kernel costs is corrected by what the device says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from hami_framework.deviceplugin.state import Record
from hami_framework.deviceplugin.watched import NS_PER_SECOND, Watched
from hami_framework.enforcement.control import Control
from hami_framework.enforcement.policy import Compute
from hami_framework.enforcement.sharing import Correction, Tenant, corrected, effective_shares
from hami_framework.model import Usage


class TimeShares:
    """Remembers the correction of each device."""

    def __init__(self) -> None:
        self._corrections: dict[str, Correction] = {}

    def lend(self, live: Sequence[Watched]) -> None:
        """Deal out the time of every device on which a container lends and borrows."""
        for tenants in _by_device(live).values():
            if any(_mode(watched, place) == "work-conserving" for watched, place in tenants):
                shares = effective_shares([_tenant(watched, place) for watched, place in tenants])
                for (watched, place), share in zip(tenants, shares, strict=True):
                    if _mode(watched, place) == "work-conserving":
                        watched.say(partial(Control.set_effective, device=place, milli=share))

    def correct(self, live: Sequence[Watched], measured: Mapping[str, Usage], records: Collection[Record], seconds: float) -> None:
        """Compare each device's utilisation with what was charged in these `seconds`, where everybody on it is charged."""
        for device_id, tenants in _by_device(live).items():
            usage = measured.get(device_id)
            if usage is None or not all(_limit(watched, place) for watched, place in tenants) or _somebody_else_on(device_id, records, tenants):
                continue
            charged = sum(watched.recent_ns[place] for watched, place in tenants) / (seconds * NS_PER_SECOND) * 100
            before = self._corrections.get(device_id, Correction())
            after = self._corrections[device_id] = corrected(before, usage.core_busy_percent, charged)
            if after != before:
                for watched, place in tenants:
                    watched.say(partial(Control.set_gain, device=place, gain=after.gain))


def _somebody_else_on(device_id: str, records: Collection[Record], tenants: Sequence[tuple[Watched, int]]) -> bool:
    """Whether somebody without a library (or not looked at) has a part of the device's time."""
    ours = {watched.key for watched, _ in tenants}
    holders = {(record.owner.uid, record.container) for record in records if record.live and any(device.device_id == device_id for device in record.devices)}
    return not holders <= ours


def _by_device(live: Sequence[Watched]) -> dict[str, list[tuple[Watched, int]]]:
    """Device → its containers, with the index it has in each."""
    found: dict[str, list[tuple[Watched, int]]] = {}
    for watched in live:
        if watched.last is not None and watched.last.usage is not None:
            for place, device_id in enumerate(watched.device_ids):
                found.setdefault(device_id, []).append((watched, place))
    return found


def _mode(watched: Watched, place: int) -> Compute:
    """A container without a compute limit has nothing to lend, and nothing holds it that could be raised."""
    return watched.last.policy.devices[place].compute_mode if watched.last is not None and _limit(watched, place) else "fixed"


def _limit(watched: Watched, place: int) -> int | None:
    return None if watched.last is None else watched.last.policy.devices[place].core_milli


def _tenant(watched: Watched, place: int) -> Tenant:
    assert watched.last is not None
    device = watched.last.policy.devices[place]
    active = watched.recent_ns[place] > 0 or watched.waiting[place]
    return Tenant(guaranteed=device.core_milli or 0, mode=_mode(watched, place), weight=device.weight, priority=device.priority, active=active)
