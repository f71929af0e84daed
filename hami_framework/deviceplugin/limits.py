# SPDX-License-Identifier: Apache-2.0
"""What a container is told about its own limits, in a root-owned file that it can read and not change.

Environment variables can be overridden by the pod; a read-only mount cannot. The file is complete (all devices of the
container, whatever vendor), and `HAMI_GRANT` names whose it is.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from hami_framework.deviceplugin.cdi import replace_file
from hami_framework.errors import FormatError
from hami_framework.model import ContainerEdits, ContainerGrant, Enforcement, Isolation, Limit, Mount, Owner, PodGrant, Value, decode, encode

log = logging.getLogger(__name__)

FILE = "limits.json"
CONTAINER_PATH = "/run/hami/limits.json"


class DeviceLimit(Value, frozen=True, kw_only=True):
    """One device of the container, and how much of it may be used."""

    id: str
    name: str
    vendor: str
    resource: str
    mode: str
    profile: str | None = None
    start: int | None = None
    units: str | None = None
    limit: Limit = Limit()


class Held(Value, frozen=True, kw_only=True):
    """What holds the limits on one vendor's devices."""

    vendor: str
    isolation: Isolation
    mechanism: str


class Limits(Value, frozen=True, kw_only=True):
    """The contents of the file."""

    version: str = "1"
    owner: Owner
    container: str
    node: str
    revision: int
    devices: tuple[DeviceLimit, ...]
    enforcement: tuple[Held, ...] = ()


def write(directory: Path, pod: PodGrant, container: ContainerGrant, enforced: dict[str, Enforcement]) -> None:
    """Write (or complete) the container's file; what was noted before about other vendors of the same grant stays."""
    held = {one.vendor: one for one in _earlier(directory / FILE, pod)}
    held |= {vendor: Held(vendor=vendor, isolation=answer.isolation, mechanism=answer.mechanism) for vendor, answer in enforced.items()}
    replace_file(directory / FILE, encode(_limits(pod, container, held)))


def change(directory: Path, pod: PodGrant, container: ContainerGrant) -> None:
    """Say the limits of a changed grant to a container that runs: in place, since its mount is of this very file.

    One write, and never a shorter file than there was (JSON does not mind the spaces): a reader has the old text or the new
    one. Raises FormatError, FileNotFoundError.
    """
    path = directory / FILE
    held = {one.vendor: one for one in read(path).enforcement}
    data = encode(_limits(pod, container, held))
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, data.ljust(os.fstat(descriptor).st_size), 0)
    finally:
        os.close(descriptor)


def _limits(pod: PodGrant, container: ContainerGrant, held: dict[str, Held]) -> Limits:
    return Limits(
        owner=pod.owner,
        container=container.container,
        node=pod.node,
        revision=pod.revision,
        devices=tuple(
            DeviceLimit(
                id=device.device_id,
                name=device.device_name,
                vendor=device.vendor,
                resource=device.resource,
                mode=device.offer.mode,
                profile=device.offer.profile,
                start=device.start,
                units=device.units,
                limit=device.offer.limit,
            )
            for device in container.devices
        ),
        enforcement=tuple(held[vendor] for vendor in sorted(held)),
    )


def read(path: Path) -> Limits:
    """The contents of a limits file; raises FormatError."""
    try:
        return decode(path.read_bytes(), Limits)
    except msgspec.DecodeError as error:
        raise FormatError(f"{path}: {error}") from error


def _earlier(path: Path, pod: PodGrant) -> tuple[Held, ...]:
    if not path.exists():
        return ()
    try:
        limits = read(path)
    except FormatError as error:
        log.warning("%s; it is written anew", error)
        return ()
    return limits.enforcement if (limits.owner, limits.revision) == (pod.owner, pod.revision) else ()


def edits(directory: Path, pod: PodGrant, container: ContainerGrant, mounted_at: str = CONTAINER_PATH) -> ContainerEdits:
    """What every container with a grant gets from the core."""
    return ContainerEdits(
        env={"HAMI_GRANT": f"{pod.owner.uid}/{container.container}"},
        mounts=(Mount(host_path=str(directory / FILE), container_path=mounted_at),),
    )
