# SPDX-License-Identifier: Apache-2.0
"""What is measured, as against what is promised."""

from __future__ import annotations

from hami_framework.model.base import Value


class ProcessUsage(Value, frozen=True, kw_only=True):
    """What the driver says that one process holds on a device. `pid` is the host's."""

    pid: int
    memory_bytes: int


class Usage(Value, frozen=True, kw_only=True):
    """One reading of one device. None: the device cannot say."""

    device_id: str
    memory_used_bytes: int | None = None
    core_busy_percent: float | None = None
    processes: tuple[ProcessUsage, ...] | None = None
    """Who holds the memory. None: the driver does not say; empty: nobody."""
