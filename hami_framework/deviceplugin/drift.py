# SPDX-License-Identifier: Apache-2.0
"""What the driver measures against what the containers' books say. Pure: everything that was read is passed in.

The driver was asked before the books were read, so a process that the driver knows had its slot before. A process may have
freed memory in between; what is found must therefore be found again at the next look before anything is done about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hami_framework.deviceplugin.attribution import Party
from hami_framework.enforcement.processes import Identity
from hami_framework.enforcement.region import ContainerUsage
from hami_framework.model import Value, show_bytes

TOLERANCE_BYTES = 64 * 2**20
"""Drivers round, and what a context costs differs a little from process to process."""

Key = tuple[str, str]
"""Pod UID and container."""


class Books(Value, frozen=True, kw_only=True):
    """One container's books, and which device of the node each index is."""

    key: Key
    device_ids: tuple[str, ...]
    usage: ContainerUsage

    def held(self, identity: Identity | None, device_id: str) -> int | None:
        """What the process's slot says, None when it has none."""
        slot = next((process for process in self.usage.processes if process.identity == identity), None)
        if slot is None or device_id not in self.device_ids:
            return None
        return slot.devices[self.device_ids.index(device_id)].held_bytes

    def used(self, device_id: str) -> int:
        return self.usage.devices[self.device_ids.index(device_id)].used_bytes if device_id in self.device_ids else 0


class Drift(Value, frozen=True, kw_only=True):
    """One disagreement, and whose it is."""

    key: Key
    kind: str
    """`no-slot`: uses the driver without the library; `more-than-booked`: uses more than it accounted for."""
    device_id: str
    pid: int | None
    message: str


def by_process(device_id: str, measured: Sequence[tuple[int, int, Party]], books: Sequence[Books]) -> Iterator[Drift]:
    """`measured`: host PID, bytes and owner of every process that the driver names on this device and that is one of ours."""
    for pid, memory, party in measured:
        own = [one for one in books if one.key[0] == party.uid and (party.container is None or one.key[1] == party.container)]
        if not own or memory == 0:
            continue  # the pod has no container with a library: nothing is claimed to be held
        entry = next(((one, held) for one in own if (held := one.held(party.identity, device_id)) is not None), None)
        if entry is None:
            message = f"process {pid} holds {show_bytes(memory)} on {device_id} without the library: static, another libc, or the driver used directly"
            yield Drift(key=own[0].key, kind="no-slot", device_id=device_id, pid=pid, message=message)
        elif memory > entry[1] + TOLERANCE_BYTES:
            message = f"process {pid} holds {show_bytes(memory)} on {device_id} and has accounted for {show_bytes(entry[1])}"
            yield Drift(key=entry[0].key, kind="more-than-booked", device_id=device_id, pid=pid, message=message)


def by_device(device_id: str, measured: int, baseline: int, books: Sequence[Books]) -> Drift | None:
    """For a driver that does not say who. `baseline`: what the device uses by itself. Only a container that is alone can be blamed."""
    own = [one for one in books if device_id in one.device_ids]
    booked = sum(one.used(device_id) for one in own)
    if len(own) != 1 or measured <= baseline + booked + TOLERANCE_BYTES:
        return None
    message = f"{show_bytes(measured - baseline)} are in use on {device_id}, and its one container has accounted for {show_bytes(booked)}"
    return Drift(key=own[0].key, kind="more-than-booked", device_id=device_id, pid=None, message=message)


def baselines(before: Mapping[str, int], measured: Mapping[str, int], books: Sequence[Books]) -> dict[str, int]:
    """What each device uses by itself: the least that was ever measured above what the books said."""
    found = dict(before)
    for device_id, used in measured.items():
        excess = max(0, used - sum(one.used(device_id) for one in books))
        found[device_id] = min(found.get(device_id, excess), excess)
    return found
