# SPDX-License-Identifier: Apache-2.0
"""What a container with a Hygon grant sees: the card's device files, the driver's user-space parts, and its vDCU file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from hami_framework import ContainerEdits, Device, DeviceNode, Grant, Mount
from hami_hygon import vdevs

CONTROL_NODES = ("/dev/kfd", "/dev/mkfd")
DRIVER = os.environ.get("HYGONPATH", "/opt/hygondriver")
"""Where the host keeps the driver's user-space parts; the variable is that of HAMi's DCU plugin."""


def for_grant(grant: Grant, devices: Sequence[Device]) -> ContainerEdits:
    """Make the vDCU if the grant is for one, and the container's view of its cards. A vDCU is a container's only card."""
    if grant.owner.kind == "local":  # it sees the host's files as they are; the driver's vDCU file is for containers
        return ContainerEdits(env={"HIP_VISIBLE_DEVICES": ",".join(str(device.index) for device in devices)})
    mounts = [Mount(host_path=DRIVER, container_path="/opt/hygondriver"), Mount(host_path="/opt/hyhal", container_path="/opt/hyhal")]
    for held, device in zip(grant.devices, devices, strict=True):
        if held.offer.mode != "whole":
            mounts.append(Mount(host_path=str(vdevs.make(grant, held, device)), container_path="/etc/vdev/docker/"))
    nodes = (*CONTROL_NODES, *(node for device in devices for node in _nodes(device)))
    return ContainerEdits(mounts=tuple(mounts), device_nodes=tuple(DeviceNode(path=path, permissions="rwm") for path in nodes))


def _nodes(device: Device) -> Iterator[str]:
    """Compute needs the render node; the card node is added where the kernel has one."""
    render, card = device.identity("render"), device.identity("card")
    if render is None:
        raise ValueError(f"the file of {device.id} under /dev/dri is not known: neither rocm_smi nor /sys names its render node")
    if card is not None:
        yield f"/dev/dri/card{card}"
    yield f"/dev/dri/renderD{render}"
