# SPDX-License-Identifier: Apache-2.0
"""One container's directory on the host, and what of it the container sees.

    <directory>/                0700 when it is made here: nobody else on the host comes through it
        policy/                 0755, mounted read-only at /run/hami/policy
            policy.bin          0644, replaced by rename
            control.bin         0644, written in place
        state/                  0755, mounted read-write at /run/hami/state
            state.bin           0666, allocated in full
        ld.so.preload           0644, mounted read-only over /etc/ld.so.preload

Why these modes: the processes of the container may have any user id, or a user namespace in which the host's root is
nobody, so the one file they all write is open to all; it is the *way* to it that is closed. From the host it leads through
a directory of mode 0700, and from another container there is none, since only this container's mount ends there. A
read-only root file system does not matter: the mounts are not part of it. `state/` itself is not writable but by root, so
that a process without privileges can neither replace the file nor leave others beside it. Directories are mounted rather
than single files because a file that is replaced by rename would stay the old one behind a mount of its own.

Records are matched by vendor and identity, and never change their place: processes that run have the index in their hands.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from msgspec import structs

from hami_framework.enforcement import policy as policies
from hami_framework.enforcement import region
from hami_framework.enforcement.control import FILE as CONTROL_FILE
from hami_framework.enforcement.control import Control, following
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.errors import FormatError
from hami_framework.model import ContainerEdits, Mount

log = logging.getLogger(__name__)

POLICY = "policy"
STATE = "state"
PRELOAD = "ld.so.preload"

CONTAINER_ROOT = "/run/hami"
"""Compiled into the library: what a container's environment says is not asked."""
PRELOAD_LIST = "/etc/ld.so.preload"


def prepare(directory: Path, policy: Policy, libraries: Sequence[str | Path], preload: Literal["file", "env"] = "file") -> ContainerEdits:
    """Put everything in place for a container that is about to start, and say what it must see.

    What another vendor of the same container has put there is completed, not replaced. Doing it again is harmless: the
    books are begun anew if no process of the container is left, a suspension is over, and the generation goes up.
    Raises FormatError when the policy cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (POLICY, STATE):
        place = directory / name
        place.mkdir(exist_ok=True)
        place.chmod(0o755)
    _fresh_state(state_path(directory))
    _put(directory, _completed(_earlier(directory), policy), beginning=True)
    return _edits(directory, [Path(library) for library in libraries], preload)


def update(directory: Path, policy: Policy) -> Policy:
    """Change what a running container is held to; its processes see it at once. Records that `policy` leaves out stay as they are.

    The answer is what was written, with its generation. Raises FormatError, FileNotFoundError (no container was prepared there).
    """
    return _put(directory, _completed(policies.read(directory / POLICY), policy), beginning=False)


def policy_of(directory: Path) -> Policy:
    """What the container is held to. Raises FormatError, FileNotFoundError."""
    return policies.read(directory / POLICY)


def control_of(directory: Path) -> Control:
    """The agent's word to the container, to be closed after use. Raises FormatError, FileNotFoundError."""
    return Control.open(control_path(directory))


def control_path(directory: Path) -> Path:
    return directory / POLICY / CONTROL_FILE


def state_path(directory: Path) -> Path:
    return directory / STATE / region.FILE


def _put(directory: Path, wanted: Policy, *, beginning: bool) -> Policy:
    """The policy first and the word that it is there after it: whoever sees the word finds the policy."""
    path = control_path(directory)
    try:
        control = Control.open(path)
    except FileNotFoundError:
        policies.write(directory / POLICY, wanted)
        Control.create(path, wanted.generation).close()
        return wanted
    with control:
        numbered = structs.replace(wanted, generation=following(wanted.generation - 1, control.generation))
        policies.write(directory / POLICY, numbered)
        if beginning:
            control.forget()
        control.set_generation(numbered.generation)
    return numbered


def _earlier(directory: Path) -> Policy | None:
    """What was written before; a damaged file (the disk's doing: nobody else can write it) is replaced, loudly."""
    try:
        return policies.read(directory / POLICY)
    except FileNotFoundError:
        return None
    except FormatError as error:
        log.error("%s; it is written anew", error)
        (directory / POLICY / policies.FILE).unlink()
        return None


def _completed(earlier: Policy | None, wanted: Policy) -> Policy:
    """`wanted` over what is there: known devices keep their place, new ones come after them."""
    if earlier is None:
        return structs.replace(wanted, generation=1)
    devices = list(earlier.devices)
    for device in wanted.devices:
        place = next((place for place, known in enumerate(devices) if same_device(known, device)), None)
        if place is None:
            devices.append(device)
        else:
            devices[place] = device
    return structs.replace(wanted, devices=tuple(devices), generation=earlier.generation + 1)


def same_device(one: DevicePolicy, other: DevicePolicy) -> bool:
    """True when both are of one vendor and share a name: a device that got one more name is the same device."""
    return one.vendor == other.vendor and bool(_names(one) & _names(other))


def _names(device: DevicePolicy) -> set[tuple[str, str]]:
    return {(kind.casefold(), value.casefold()) for kind, value in device.identities}


def _fresh_state(path: Path) -> None:
    """Begin the books anew unless a process of the container still writes them."""
    try:
        living = [process for process in region.Region(path).usage().processes if process.alive]
    except (FileNotFoundError, FormatError):
        living = []
    if not living:
        region.create(path)


def _edits(directory: Path, libraries: Sequence[Path], preload: Literal["file", "env"]) -> ContainerEdits:
    inside = [f"{CONTAINER_ROOT}/lib/{library.name}" for library in libraries]
    mounts = [
        Mount(host_path=str(directory / POLICY), container_path=f"{CONTAINER_ROOT}/{POLICY}"),
        Mount(host_path=str(directory / STATE), container_path=f"{CONTAINER_ROOT}/{STATE}", read_only=False),
        *(Mount(host_path=str(library), container_path=there) for library, there in zip(libraries, inside, strict=True)),
    ]
    if preload == "env":
        return ContainerEdits(env={"LD_PRELOAD": ":".join(inside)}, mounts=tuple(mounts))
    listed = directory / PRELOAD
    before = listed.read_text().split() if listed.exists() else []
    temporary = listed.with_name(f".{PRELOAD}")
    temporary.write_text("".join(f"{path}\n" for path in dict.fromkeys((*before, *inside))))
    temporary.chmod(0o644)
    temporary.rename(listed)
    return ContainerEdits(mounts=(*mounts, Mount(host_path=str(listed), container_path=PRELOAD_LIST)))
