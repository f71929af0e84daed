# SPDX-License-Identifier: Apache-2.0
"""Cambricon MLUs: discovered through CNDev, given out whole or as sMLU instances that the driver holds to their quota."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hami_cambricon import discovery, edits, enforce, instances, names, partition
from hami_framework import ContainerEdits, Device, Grant, Machine, ResourceNames, hookimpl
from hami_framework.testing.machines import read_machines

HAMI_SPEC_VERSION = "1"

hami_discover = hookimpl(discovery.devices)
hami_health = hookimpl(discovery.health)
hami_usage = hookimpl(discovery.usage)
hami_partition = hookimpl(partition.offers)
hami_enforce = hookimpl(enforce.for_grant)
hami_release = hookimpl(instances.destroy)


@hookimpl
def hami_resources() -> Iterable[ResourceNames]:
    return names.RESOURCES


@hookimpl
def hami_allocate(grant: Grant, devices: Sequence[Device]) -> ContainerEdits:
    return edits.for_grant(grant, devices, instances.made(grant, devices))


@hookimpl
def hami_machines() -> Iterable[Machine]:
    return read_machines(Path(__file__).parent / "fakes", {"libcndev.so": "cndev.c"}, "HAMI_FAKE_CAMBRICON", {"libcndrv.so": "cndrv"})
