# SPDX-License-Identifier: Apache-2.0
"""Huawei Ascend NPUs: discovered through DCMI, given out whole, as vNPUs cut by the driver, or as soft shares."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hami_ascend import discovery, edits, enforce, names, partition
from hami_framework import Machine, ResourceNames, hookimpl
from hami_framework.testing.machines import read_machines

HAMI_SPEC_VERSION = "1"

hami_discover = hookimpl(discovery.devices)
hami_health = hookimpl(discovery.health)
hami_usage = hookimpl(discovery.usage)
hami_partition = hookimpl(partition.offers)
hami_allocate = hookimpl(edits.for_grant)
hami_enforce = hookimpl(enforce.for_grant)


@hookimpl
def hami_resources() -> Iterable[ResourceNames]:
    return names.RESOURCES


@hookimpl
def hami_machines() -> Iterable[Machine]:
    return read_machines(Path(__file__).parent / "fakes", {"libdcmi.so": "dcmi.c"}, "HAMI_FAKE_ASCEND", {"libruntime.so": "ascend"})
