# SPDX-License-Identifier: Apache-2.0
"""From a grant to what the program must see: vendor hooks, policy, books, and how strongly the limit is held then."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hami_framework.enforcement import container
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.errors import ConfigError, FormatError
from hami_framework.local import ledger
from hami_framework.local.vendors import Vendors
from hami_framework.model import ContainerEdits, Device, DeviceGrant, Enforcement, Grant, Interceptor, Level, Limit, PodGrant, Value

DEVELOPMENT_POLICY = "HAMI_DEVELOPMENT_POLICY"
"""Where the library looks when there is no /run/hami, which only root can make; it says so loudly."""


class Prepared(Value, frozen=True, kw_only=True):
    """What a run needs."""

    edits: ContainerEdits
    level: Level
    """How strongly the memory limit is held."""
    compute: Level
    mechanism: str
    private: bool
    """The edits' mounts are needed: a view of the files of its own, which takes root."""


def leads(grant: PodGrant, directory: Path) -> tuple[Grant, ...]:
    """The vendors' parts of a grant."""
    held = grant.containers[0].devices
    return tuple(
        Grant(
            owner=grant.owner,
            node=grant.node,
            container=ledger.CONTAINER,
            devices=tuple(device for device in held if device.vendor == vendor),
            revision=grant.revision,
            directory=str(directory),
        )
        for vendor in dict.fromkeys(device.vendor for device in held)
    )


async def prepare(vendors: Vendors, grant: PodGrant, directory: Path, *, advisory: bool, unheld: bool) -> Prepared:
    """Ask the vendors, and put policy and books in place. `advisory`: without a view of its own. `unheld`: run even if nothing holds a limit.

    Raises ConfigError when a limit was asked and nothing can hold it, or the library is not there.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    edits = ContainerEdits(env={"HAMI_GRANT": f"{grant.owner.uid}/{ledger.CONTAINER}"})
    answers: list[Enforcement] = []
    for lead in leads(grant, directory):
        vendor = lead.devices[0].vendor
        made = await vendors.pool.allocate(vendor, lead)
        answer = await vendors.pool.enforce(vendor, lead)
        devices = {held.device_id: vendors.device(held.device_id, vendor) for held in lead.devices}
        try:
            edits = edits.merged(made).merged(answer.edits)
            if answer.interceptor is not None:
                edits = edits.merged(_intercepted(grant, lead, answer.interceptor, devices, directory, advisory=advisory))
        except ValueError as error:
            raise ConfigError(f"vendor {vendor}: its edits contradict each other: {error}") from error
        except FormatError as error:
            raise ConfigError(f"vendor {vendor}: no policy can be written for this run: {error}") from error
        if _limited(lead) and answer.interceptor is None and answer.isolation.memory == "advisory" and not unheld:
            raise ConfigError(
                f"nothing would hold the limit: vendor {vendor} says {answer.mechanism!r}; install its package with the interceptor library, "
                "or run it all the same with --unheld"
            )
        answers.append(answer)
    intercepted = any(answer.interceptor is not None for answer in answers)
    weak = advisory and intercepted
    return Prepared(
        edits=edits,
        level="advisory" if weak else _weakest([answer.isolation.memory for answer in answers]),
        compute="advisory" if weak else _weakest([answer.isolation.compute for answer in answers]),
        mechanism="; ".join(dict.fromkeys(answer.mechanism for answer in answers)),
        private=bool(edits.mounts) and not advisory,
    )


def _intercepted(grant: PodGrant, lead: Grant, interceptor: Interceptor, devices: Mapping[str, Device], directory: Path, *, advisory: bool) -> ContainerEdits:
    library = Path(interceptor.library)
    if not library.is_file():
        vendor = lead.devices[0].vendor
        raise ConfigError(f"the interceptor library of vendor {vendor} is not there: {library}; reinstall its package")
    policy = Policy(
        container=f"{grant.owner.uid}/{ledger.CONTAINER}",
        devices=tuple(device_policy(held, devices[held.device_id], interceptor) for held in lead.devices),
    )
    edits = container.prepare(directory, policy, [library], interceptor.preload)
    if not advisory:
        return edits
    preload = ":".join([str(library), *os.environ.get("LD_PRELOAD", "").split()])
    return ContainerEdits(env={"LD_PRELOAD": preload, DEVELOPMENT_POLICY: str(directory)})


def device_policy(held: DeviceGrant, device: Device, interceptor: Interceptor) -> DevicePolicy:
    """One device's record. A whole device has no limit but its own."""
    limit = Limit() if held.offer.exclusive and held.offer.mode != "share" else held.offer.limit
    return DevicePolicy(
        vendor=held.vendor,
        identities=interceptor.identities_of(held.device_id),
        memory_bytes=limit.memory_bytes,
        capacity_bytes=device.device_class.capacity.memory_bytes,
        context_bytes=interceptor.context_bytes_of(held.device_id),
        core_milli=limit.core_percent * 1000 if limit.core_percent is not None and limit.core_percent < 100 else None,
    )


def _limited(lead: Grant) -> bool:
    return any(not held.offer.exclusive for held in lead.devices)


def _weakest(levels: list[Level]) -> Level:
    for level in ("advisory", "soft", "hard"):
        if level in levels:
            return level
    return "advisory"
