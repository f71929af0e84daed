# SPDX-License-Identifier: Apache-2.0
"""Hygon DCUs: discovered through rocm_smi and hydmi, given out whole or as vDCUs that the kernel driver holds to their memory and mask."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hami_framework import Machine, ResourceNames, hookimpl
from hami_framework.testing.machines import read_machines
from hami_hygon import discovery, edits, enforce, names, partition, vdevs

HAMI_SPEC_VERSION = "1"

hami_discover = hookimpl(discovery.devices)
hami_health = hookimpl(discovery.health)
hami_usage = hookimpl(discovery.usage)
hami_partition = hookimpl(partition.offers)
hami_allocate = hookimpl(edits.for_grant)
hami_enforce = hookimpl(enforce.for_grant)
hami_release = hookimpl(vdevs.release)


@hookimpl
def hami_resources() -> ResourceNames:
    return names.RESOURCES


@hookimpl
def hami_machines() -> Iterable[Machine]:
    libraries = {"librocm_smi64.so.2": "rocm_smi.c", "libhydmi.so.1": "hydmi.c"}
    return read_machines(Path(__file__).parent / "fakes", libraries, "HAMI_FAKE_HYGON", {"libamdhip64.so.6": "hip"})
