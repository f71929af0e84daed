# SPDX-License-Identifier: Apache-2.0
"""Huawei Ascend NPUs: discovered through DCMI, given out whole, as vNPUs cut by the driver, or as soft shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hami_ascend import discovery, edits, enforce, names, partition
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
    return edits.for_grant(grant, devices)


@hookimpl
def hami_enforce(grant: Grant, devices: Sequence[Device]) -> Enforcement:
    return enforce.for_grant(grant, devices)


@hookimpl
def hami_machines() -> Iterable[Machine]:
    return read_machines(Path(__file__).parent / "fakes", {"libdcmi.so": "dcmi.c"}, "HAMI_FAKE_ASCEND")
