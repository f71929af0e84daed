# SPDX-License-Identifier: Apache-2.0
"""`hami limit`: what a running program or container may use, changed while it runs.

A local run's record in the ledger is changed first, under the lock and by the same arithmetic that gave it its device, so
that nothing is promised twice; the policy follows, and its processes see it at once. What a pod was granted was promised by
the scheduler: on its node it can be set anywhere below that, and the agent is told, so that it stays when the container
starts again (see `override`). The scheduler goes on counting what was granted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from hami_framework.enforcement import container
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.errors import ConfigError
from hami_framework.local import choose, ledger, override
from hami_framework.local.holders import Holder
from hami_framework.local.vendors import SYSTEM, Setting, Vendors
from hami_framework.model import DeviceGrant, Limit, PodGrant, Value, show_bytes
from hami_framework.plugins import Registry


class Change(Value, frozen=True, kw_only=True):
    """What is to hold from now on; None: as before."""

    memory_bytes: int | None = None
    core_percent: int | None = None


async def change_run(holder: Holder, setting: Setting, registry: Registry, change: Change, plugin_files: Sequence[Path] = ()) -> Policy | None:
    """Ledger, then policy. None when nothing keeps books for the run: then the ledger alone was changed. Raises ConfigError."""
    async with Vendors(setting, sorted({held.vendor for held in holder.holdings}), plugin_files) as vendors:
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


def change_container(holder: Holder, state: Path, change: Change) -> Policy:
    """A container of a pod: every one of its devices, anywhere up to what it was granted. Raises ConfigError saying how to get more.

    The agent's file comes first, so that a container that starts again meanwhile has the new limit.
    """
    directory = Path(holder.directory)
    try:
        policy = container.policy_of(directory)
    except FileNotFoundError as error:
        raise ConfigError(f"nothing holds limits in {holder.name}: it has no policy to change") from error
    uid, _, name = holder.id.partition("/")
    grant = next((one for one in ledger.agent_grants(state) if one.owner.uid == uid), None)
    held = grant.container(name) if grant is not None else None
    if grant is None or held is None:
        raise ConfigError(f"the agent's records in {state} do not say what {holder.name} was granted: nothing is changed")
    earlier = override.read(directory, grant.revision) or override.Override(revision=grant.revision)
    wanted = msgspec.structs.replace(
        earlier,
        memory_bytes=change.memory_bytes if change.memory_bytes is not None else earlier.memory_bytes,
        core_percent=change.core_percent if change.core_percent is not None else earlier.core_percent,
    )
    granted = tuple(_granted(holder, device, held.devices) for device in policy.devices)
    for device in granted:
        _within(holder, device, change)
    override.write(directory, wanted)
    return container.update(directory, msgspec.structs.replace(policy, devices=tuple(wanted.over(device) for device in granted)))


def _granted(holder: Holder, device: DevicePolicy, held: Sequence[DeviceGrant]) -> DevicePolicy:
    """The device's record as the agent writes it from the grant: a whole device has no limit but its own."""
    values = {value.casefold() for _, value in device.identities}
    own = [grant for grant in held if grant.vendor == device.vendor]
    grant = next((grant for grant in own if grant.device_id.casefold() in values), own[0] if len(own) == 1 else None)
    if grant is None:
        raise ConfigError(f"{holder.name}: its policy speaks of {device.identities[0][1]}, which its grant does not name: nothing is changed")
    limit = Limit() if grant.offer.exclusive and grant.offer.mode != "share" else grant.offer.limit
    milli = limit.core_percent * override.MILLI if limit.core_percent is not None and limit.core_percent < 100 else None
    return msgspec.structs.replace(device, memory_bytes=limit.memory_bytes, core_milli=milli)


def _within(holder: Holder, device: DevicePolicy, change: Change) -> None:
    how = "the scheduler has promised the rest of the device to others. To raise it, give the pod a larger request and let it be scheduled again"
    memory = device.memory_bytes if device.memory_bytes is not None else device.capacity_bytes
    if change.memory_bytes is not None and memory is not None and change.memory_bytes > memory:
        raise ConfigError(f"{holder.name} was granted {show_bytes(memory)}, and {show_bytes(change.memory_bytes)} is more: {how}")
    if change.core_percent is not None and device.core_milli is not None and change.core_percent * override.MILLI > device.core_milli:
        raise ConfigError(f"{holder.name} was granted {device.core_milli / override.MILLI:g} % of compute, and {change.core_percent} % is more: {how}")
