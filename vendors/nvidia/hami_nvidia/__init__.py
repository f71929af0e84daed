# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs: discovered through NVML, given out whole, as exact shares, or (announced) as MIG instances."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hami_framework import Machine, ResourceNames, hookimpl
from hami_framework.testing.machines import read_machines
from hami_nvidia import discovery, edits, enforce, names, partition

HAMI_SPEC_VERSION = "1"

hami_discover = hookimpl(discovery.devices)
hami_health = hookimpl(discovery.health)
hami_usage = hookimpl(discovery.usage)
hami_partition = hookimpl(partition.offers)
hami_allocate = hookimpl(edits.for_grant)
hami_enforce = hookimpl(enforce.for_grant)


@hookimpl
def hami_resources() -> ResourceNames:
    return names.RESOURCES


@hookimpl
def hami_machines() -> Iterable[Machine]:
    return read_machines(Path(__file__).parent / "fakes", {"libnvidia-ml.so.1": "nvml.c"}, "HAMI_FAKE_NVIDIA", {"libcuda.so.1": "cuda"})
