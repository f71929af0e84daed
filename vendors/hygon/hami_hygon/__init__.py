# SPDX-License-Identifier: Apache-2.0
"""Hygon DCUs: discovered through rocm_smi and hydmi, given out whole or as vDCUs that the kernel driver holds to their memory and mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
from hami_hygon import discovery, edits, enforce, names, partition, vdevs

HAMI_SPEC_VERSION = "1"


@hookimpl
def hami_resources() -> ResourceNames:
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
def hami_enforce(grant: Grant) -> Enforcement:
    return enforce.for_grant(grant)


@hookimpl
def hami_release(grant: Grant) -> None:
    vdevs.release(grant)


@hookimpl
def hami_machines() -> Iterable[Machine]:
    return read_machines(Path(__file__).parent / "fakes", {"librocm_smi64.so.2": "rocm_smi.c", "libhydmi.so.1": "hydmi.c"}, "HAMI_FAKE_HYGON")
