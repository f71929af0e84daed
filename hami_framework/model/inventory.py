# SPDX-License-Identifier: Apache-2.0
"""What one node publishes: its devices, who speaks for them, and a generation."""

from __future__ import annotations

from hami_framework.model.base import Value
from hami_framework.model.device import Device
from hami_framework.model.grant import PodGrant
from hami_framework.model.resources import ResourceNames


class VendorInfo(Value, frozen=True, kw_only=True):
    """A vendor package as seen on a node (or in the extender)."""

    name: str
    package: str = ""
    version: str = ""
    spec_version: str = "1.0"
    resources: tuple[ResourceNames, ...] = ()
    state: str = "ready"
    """`ready`, `starting` or `quarantined`."""
    reason: str = ""
    """Why it is not ready."""


class Inventory(Value, frozen=True, kw_only=True):
    """A node's devices. `generation` counts up with every change."""

    node: str
    generation: int = 1
    vendors: tuple[VendorInfo, ...] = ()
    devices: tuple[Device, ...] = ()
    held: tuple[PodGrant, ...] = ()
    """What is held on the node by others than pods: local runs (`hami run`)."""

    def device(self, device_id: str) -> Device | None:
        """The device with this vendor id, or None."""
        return next((device for device in self.devices if device.id == device_id), None)
