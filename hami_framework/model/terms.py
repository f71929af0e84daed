# SPDX-License-Identifier: Apache-2.0
"""The operator's terms for the devices of one node: what may be promised beyond the hardware, and in which mode they are used.

The node agent puts them on every class it publishes, so that agent and extender cannot disagree: both read the class.
"""

from __future__ import annotations

from hami_framework.model.base import Value


class Terms(Value, frozen=True, kw_only=True):
    """What the operator has said for a class of devices on its node; None: nothing."""

    memory_percent: int | None = None
    """Promised memory may reach this percentage of the real one; 100: none is promised twice."""
    core_percent: int | None = None
    """The same for compute."""
    only_mode: str | None = None
    """The one mode (`DeviceClass.modes`) in which these devices are given out."""
