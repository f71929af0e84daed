# SPDX-License-Identifier: Apache-2.0
"""sMLU instances: made before a container starts, undone when it is gone; both may be asked for again and again.

An instance bears a name that only its grant has, so what exists is read from the driver and nothing needs to be remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from hami_cambricon import driver
from hami_cambricon.discovery import uuid
from hami_cambricon.driver import CndevError, SMluInstance
from hami_framework import Device, DeviceGrant, Grant, Limit

NO_LIMIT_PERCENT = 100


def made(grant: Grant, devices: Sequence[Device]) -> Mapping[str, tuple[str, ...]]:
    """Device id → the device files of its sMLU instance, making what is not there yet. Raises `CndevError`."""
    return {device.id: tuple(_made(grant, device, held).node_name.decode().split(",")) for device, held in _smlu(grant, devices)}


def destroy(grant: Grant, devices: Sequence[Device]) -> None:
    """Undo `made`; nothing happens where nothing is left: a card that has left the bus took its instances along. Raises `CndevError`."""
    for device, _ in _smlu(grant, devices):
        handle = driver.find(uuid(device))
        if handle is None:
            continue
        for instance in _named(handle, name(grant, device)):
            driver.destroy_smlu_instance(handle, int(device.identity("slot") or 0), instance)


def name(grant: Grant, device: Device) -> str:
    """The instance's name: this container's and no other's, within CNDev's 99 characters."""
    identity = "\0".join((grant.owner.uid, grant.owner.share or "", grant.container, device.id))
    return f"hami-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"


def _smlu(grant: Grant, devices: Sequence[Device]) -> Iterator[tuple[Device, DeviceGrant]]:
    """None for a local run: only a container runtime can give a program the instance instead of the card."""
    if grant.owner.kind == "local":
        return
    held = {device.device_id: device for device in grant.devices if device.offer.mode == "smlu"}
    yield from ((device, held[device.id]) for device in devices if device.id in held)


def _made(grant: Grant, device: Device, held: DeviceGrant) -> SMluInstance:
    handle, wanted = driver.handle(uuid(device)), name(grant, device)
    if not _named(handle, wanted):
        driver.enable_smlu(handle)
        driver.create_smlu_instance(handle, _profile(handle, held.offer.limit), wanted)
    found = _named(handle, wanted)
    if not found:
        raise CndevError("cndevCreateSMluInstanceByProfileId", 14, f"said it made {wanted} on {device.id}, but the card does not list it")
    return found[0]


def _named(handle: int, wanted: str) -> list[SMluInstance]:
    return [instance for instance in driver.smlu_instances(handle) if instance.instance_name.decode() == wanted]


def _profile(handle: int, limit: Limit) -> int:
    """The profile with exactly this quota, new or already there: a card has room for 16 only."""
    quota = NO_LIMIT_PERCENT if limit.core_percent is None else limit.core_percent
    memory = limit.memory_bytes or 0
    for profile in driver.smlu_profiles(handle):
        if (profile.quota[0], profile.memory[0]) == (quota, memory):
            return int(profile.profile_id)
    return driver.create_smlu_profile(handle, quota, memory)
