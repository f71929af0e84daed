# SPDX-License-Identifier: Apache-2.0
"""From a grant and a vendor's interceptor to what holds it: the policy, its files, and the container's mounts.

A vendor only declares its library (`Enforcement.interceptor`): its worker may run as another user, and what a container is
held to is the core's affair. The declaration is kept beside the files, so that the policy can be made anew when the grant
changes while the container runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import structs

from hami_framework.deviceplugin.cdi import replace_file
from hami_framework.deviceplugin.release import container_directory
from hami_framework.enforcement import container as containers
from hami_framework.enforcement.policy import Compute, DevicePolicy, Policy
from hami_framework.errors import FormatError, PluginError
from hami_framework.model import ContainerEdits, ContainerGrant, Device, DeviceGrant, Enforcement, Interceptor, Level, PodGrant, Value, decode, encode

FILE = "interceptors.json"
OPTED_OUT = "the pod opted out of the interceptor (hami.io/enforcement: none)"
MILLI = 1000
WHOLE_PERCENT = 100


class Interceptors(Value, frozen=True, kw_only=True):
    """What the vendors of one container declared, by vendor. Only the agent reads it."""

    by_vendor: dict[str, Interceptor] = msgspec.field(default_factory=dict)


def enforcement_directory(state_directory: Path, uid: str, container: str) -> Path:
    """Where the container's policy and books are; mode 0700, unlike the directory around it that vendors' workers use."""
    return container_directory(state_directory, uid, container) / "enforcement"


def opted_out(answer: Enforcement) -> Enforcement:
    """The answer without its library: what only the library would hold is not held. What the driver holds still is."""
    if answer.interceptor is None:
        return answer
    lowered = {aspect: _without_library(level) for aspect, level in structs.asdict(answer.isolation).items()}
    isolation = msgspec.convert(lowered, type(answer.isolation))
    mechanism = f"nothing: {OPTED_OUT}" if isolation != answer.isolation else f"{answer.mechanism}; {OPTED_OUT}"
    return structs.replace(answer, isolation=isolation, mechanism=mechanism, interceptor=None)


def _without_library(level: Level) -> Level:
    return "advisory" if level == "soft" else level


def put(
    directory: Path,
    pod: PodGrant,
    container: ContainerGrant,
    enforced: Mapping[str, Enforcement],
    devices: Mapping[str, Device],
    compute: Compute,
    libraries: Path,
) -> ContainerEdits:
    """Write (or complete) the files of a container that is about to start. Nothing is written where no vendor declared a library.

    `libraries`: the folder on the host that copies of the libraries are mounted from, see `installed`.

    Raises PluginError when a declaration cannot be followed.
    """
    declared = {vendor: answer.interceptor for vendor, answer in enforced.items() if answer.interceptor is not None}
    if not declared:
        return ContainerEdits()
    edits = ContainerEdits()
    for vendor, interceptor in declared.items():
        if not Path(interceptor.library).is_file():
            problem = f"container {container.container!r}: {interceptor.library} is not there; install the vendor's package anew"
            raise PluginError(vendor, "hami_enforce", problem)
        try:
            policy = policy_of(pod, container, {vendor: interceptor}, devices, compute)
            library = installed(libraries, Path(interceptor.library))
            edits = edits.merged(containers.prepare(directory, policy, [library], interceptor.preload))
        except (FormatError, ValueError) as error:
            raise PluginError(vendor, "hami_enforce", f"container {container.container!r}: {error}") from error
    known = declaration(directory).by_vendor | declared
    replace_file(directory / FILE, encode(Interceptors(by_vendor=known)), 0o600)
    return edits


def installed(libraries: Path, library: Path) -> Path:
    """A copy of the library on the host, under a name that says what is in it.

    The vendor's package may lie in the agent's own image, where a container runtime does not find it; and a package that
    is replaced must not change the library under the containers that run.
    """
    contents = library.read_bytes()
    copy = libraries / hashlib.sha256(contents).hexdigest()[:16] / library.name
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        replace_file(copy, contents, 0o755)
    return copy


def declaration(directory: Path) -> Interceptors:
    """What was declared for the container, nothing when there is no such file. Raises FormatError when it is damaged."""
    path = directory / FILE
    try:
        return decode(path.read_bytes(), Interceptors)
    except FileNotFoundError:
        return Interceptors()
    except msgspec.DecodeError as error:
        raise FormatError(f"{path}: {error}") from error


def policy_of(
    pod: PodGrant, container: ContainerGrant, interceptors: Mapping[str, Interceptor], devices: Mapping[str, Device], compute: Compute = "fixed"
) -> Policy:
    """What the container is held to on the devices of these vendors: every one of them, since a device without a record is refused."""
    held = [grant for grant in container.devices if grant.vendor in interceptors]
    return Policy(
        container=f"{pod.owner.uid}/{container.container}",
        devices=tuple(_device(grant, interceptors[grant.vendor], devices.get(grant.device_id), compute) for grant in held),
    )


def _device(grant: DeviceGrant, interceptor: Interceptor, device: Device | None, compute: Compute) -> DevicePolicy:
    """A whole device has no limit but its own. That no share is above its device is the last fence's to see to; the policy's own check does too."""
    limit = grant.offer.limit
    capacity = None if device is None else device.device_class.capacity.memory_bytes
    share = not grant.offer.exclusive or grant.offer.mode == "share"
    memory = limit.memory_bytes if share else None
    percent = limit.core_percent if share and limit.core_percent != WHOLE_PERCENT else None
    return DevicePolicy(
        vendor=grant.vendor,
        identities=interceptor.identities_of(grant.device_id),
        memory_bytes=memory,
        capacity_bytes=capacity,
        context_bytes=interceptor.context_bytes_of(grant.device_id),
        core_milli=None if percent is None else percent * MILLI,
        compute_mode=compute,
        weight=percent or 1,
    )
