# SPDX-License-Identifier: Apache-2.0
"""Cambricon MLUs: discovered through CNDev, given out whole or as sMLU instances that the driver holds to their quota."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hami_cambricon import discovery, edits, enforce, instances, names, partition
from hami_framework import (
    ContainerEdits,
    Device,
    DeviceClass,
    DeviceRequest,
    Enforcement,
    Grant,
    Health,
    Host,
    Machine,
    Offer,
    Rejection,
    ResourceNames,
    Usage,
    hookimpl,
)
from hami_framework.testing.machines import read_machines

HAMI_SPEC_VERSION = "1"


@hookimpl
def hami_resources() -> Iterable[ResourceNames]:
    return names.RESOURCES


@hookimpl
def hami_discover(host: Host) -> Iterable[Device]:
    return discovery.devices(host)


@hookimpl
def hami_health(devices: Sequence[Device]) -> Mapping[str, Health]:
    return discovery.health(devices)


@hookimpl
def hami_usage(devices: Sequence[Device]) -> Iterable[Usage]:
    return discovery.usage(devices)


@hookimpl
def hami_partition(device_class: DeviceClass, request: DeviceRequest) -> Iterable[Offer | Rejection]:
    return partition.offers(device_class, request)


@hookimpl
def hami_allocate(grant: Grant, devices: Sequence[Device]) -> ContainerEdits:
    return edits.for_grant(grant, devices, instances.made(grant, devices))


@hookimpl
def hami_enforce(grant: Grant) -> Enforcement:
    return enforce.for_grant(grant)


@hookimpl
def hami_release(grant: Grant, devices: Sequence[Device]) -> None:
    instances.destroy(grant, devices)


@hookimpl
def hami_machines() -> Iterable[Machine]:
    return read_machines(Path(__file__).parent / "fakes", {"libcndev.so": "cndev.c"}, "HAMI_FAKE_CAMBRICON")
