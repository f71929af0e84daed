# SPDX-License-Identifier: Apache-2.0
"""What `hami limit` set for a container of a pod: less than it was granted, until it is granted something else.

`override.json` lies beside the container's policy. The agent, which writes the policy from the grant, puts it back when the
container starts again; a grant of a higher revision is the cluster's newer word and ends it. It can only ever lower: what
was granted is taken anew each time, and the smaller of both holds.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
from msgspec import structs

from hami_framework.enforcement import container
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.model import Value, decode, encode

log = logging.getLogger(__name__)

FILE = "override.json"
MILLI = 1000


class Override(Value, frozen=True, kw_only=True):
    """For every device of the container; None: as granted."""

    revision: int
    """Of the grant that it lowers."""
    memory_bytes: int | None = None
    core_percent: int | None = None

    def over(self, device: DevicePolicy) -> DevicePolicy:
        """The device with the smaller of both limits."""
        memory = [amount for amount in (device.memory_bytes, self.memory_bytes) if amount is not None]
        milli = None if self.core_percent is None or self.core_percent >= 100 else self.core_percent * MILLI
        cores = [amount for amount in (device.core_milli, milli) if amount is not None]
        return structs.replace(device, memory_bytes=min(memory, default=None), core_milli=min(cores, default=None))


def write(directory: Path, override: Override) -> None:
    """`directory`: where the container's `policy/` is. On disk when this returns."""
    temporary = directory / f".{FILE}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(encode(override))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / FILE)


def read(directory: Path, revision: int) -> Override | None:
    """What stands against a grant of this revision; a damaged file is set aside, loudly: what was granted holds then."""
    path = directory / FILE
    try:
        found = decode(path.read_bytes(), Override)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        log.error("%s cannot be read, and what was granted holds again: %s; kept as %s.damaged", path, error, FILE)
        path.rename(path.with_name(f"{FILE}.damaged"))
        return None
    return found if found.revision == revision else None


def put_back(directory: Path, revision: int) -> Policy | None:
    """After the policy was written from the grant: lower it again. None when there is nothing to lower. Raises FormatError."""
    found = read(directory, revision)
    if found is None:
        return None
    policy = container.policy_of(directory)
    return container.update(directory, structs.replace(policy, devices=tuple(found.over(device) for device in policy.devices)))
