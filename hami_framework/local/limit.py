# SPDX-License-Identifier: Apache-2.0
"""`hami limit`: what a running program or container may use, changed while it runs.

A local run's record in the ledger is changed first, under the lock and by the same arithmetic that gave it its device, so
that nothing is promised twice; the policy follows, and its processes see it at once. What a pod was granted was promised by
the scheduler: on a node that can only be lowered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from hami_framework.enforcement import container
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.errors import ConfigError
from hami_framework.local import choose, ledger
from hami_framework.local.holders import Holder
from hami_framework.local.vendors import SYSTEM, Setting, Vendors
from hami_framework.model import DeviceGrant, PodGrant, Value, show_bytes
from hami_framework.plugins import Registry


class Change(Value, frozen=True, kw_only=True):
    """What is to hold from now on; None: as before."""

    memory_bytes: int | None = None
    core_percent: int | None = None


async def change_run(holder: Holder, setting: Setting, registry: Registry, change: Change, plugin_files: Sequence[Path] = ()) -> Policy | None:
    """Ledger, then policy. None when nothing keeps books for the run: then the ledger alone was changed. Raises ConfigError."""
    async with Vendors(setting, plugin_files=plugin_files) as vendors:
        inventory = vendors.inventory()
        with ledger.locked(setting.state_directory):
            record = next((one for one in ledger.live(ledger.read(setting.state_directory)) if one.id == holder.id), None)
            if record is None:
                raise ConfigError(f"{holder.id} has ended meanwhile")
            held = record.grant.containers[0].devices
            if any(device.offer.exclusive for device in held):
                raise ConfigError(f"{holder.id} holds whole devices: there is no limit to change; start it again with --memory or --cores")
            wanted = choose.Wanted(
                count=len(held),
                memory_bytes=change.memory_bytes if change.memory_bytes is not None else held[0].offer.limit.memory_bytes,
                core_percent=change.core_percent if change.core_percent is not None else held[0].offer.limit.core_percent,
                devices=tuple(device.device_id for device in held),
            )
            others = choose.others(setting.state_directory, inventory.node, *(() if setting.machine else (SYSTEM,)))
            grant = choose.choose(registry, inventory, others, wanted, record.grant.owner)
            grant = _in_place(grant, held, record.grant.revision + 1)
            ledger.write(setting.state_directory, msgspec.structs.replace(record, grant=grant))
            return _apply(Path(record.directory), grant.containers[0].devices)


def _in_place(grant: PodGrant, held: tuple[DeviceGrant, ...], revision: int) -> PodGrant:
    """The new amounts in the order and under the resource names of the old grant."""
    new = {device.device_id: device.offer for device in grant.containers[0].devices}
    devices = tuple(msgspec.structs.replace(device, offer=new[device.device_id]) for device in held)
    return msgspec.structs.replace(grant, revision=revision, containers=(msgspec.structs.replace(grant.containers[0], devices=devices),))


def _apply(directory: Path, held: tuple[DeviceGrant, ...]) -> Policy | None:
    try:
        policy = container.policy_of(directory)
    except FileNotFoundError:
        return None
    offers = {device.device_id.casefold(): device.offer.limit for device in held}
    devices = []
    for place, device in enumerate(policy.devices):
        limit = next((offers[value.casefold()] for _, value in device.identities if value.casefold() in offers), held[place].offer.limit)
        milli = limit.core_percent * 1000 if limit.core_percent is not None and limit.core_percent < 100 else None
        devices.append(msgspec.structs.replace(device, memory_bytes=limit.memory_bytes, core_milli=milli))
    return container.update(directory, msgspec.structs.replace(policy, devices=tuple(devices)))


def lower_container(holder: Holder, change: Change) -> Policy:
    """A container of a pod: every one of its devices, downwards only. Raises ConfigError saying how to raise."""
    directory = Path(holder.directory)
    try:
        policy = container.policy_of(directory)
    except FileNotFoundError as error:
        raise ConfigError(f"nothing holds limits in {holder.name}: it has no policy to change") from error
    return container.update(directory, msgspec.structs.replace(policy, devices=tuple(_lowered(holder, device, change) for device in policy.devices)))


def _lowered(holder: Holder, device: DevicePolicy, change: Change) -> DevicePolicy:
    how = (
        "on a cluster's node a limit can only be lowered, for the scheduler has promised the rest to others; to raise it, give the pod a larger "
        "request and let it be scheduled again"
    )
    if change.memory_bytes is not None:
        if device.memory_bytes is not None and change.memory_bytes > device.memory_bytes:
            raise ConfigError(f"{holder.name} has {show_bytes(device.memory_bytes)}, {show_bytes(change.memory_bytes)} is more: {how}")
        device = msgspec.structs.replace(device, memory_bytes=change.memory_bytes)
    if change.core_percent is not None:
        if device.core_milli is not None and change.core_percent * 1000 > device.core_milli:
            raise ConfigError(f"{holder.name} has {device.core_milli / 1000:g} % of compute, {change.core_percent} % is more: {how}")
        device = msgspec.structs.replace(device, core_milli=change.core_percent * 1000 if change.core_percent < 100 else device.core_milli)
    return device
