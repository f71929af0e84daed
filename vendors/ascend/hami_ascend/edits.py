# SPDX-License-Identifier: Apache-2.0
"""What a container with an Ascend grant sees. Everything outside the driver is named by *phy* ids, never by logic ids.

Whole chips and shares work with the Ascend container runtime (which reads the environment) and without it (device files
and mounts are given as well). A vNPU is made by that runtime, as `ASCEND_VNPU_SPECS` tells it: its device file exists
only then, and giving the file of the chip itself would give away the whole chip.
"""

from __future__ import annotations

from collections.abc import Sequence

from hami_framework import ContainerEdits, Device, DeviceNode, Grant, Mount

CONTROL_NODES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
DRIVER = "/usr/local/Ascend/driver"
MOUNTS = (f"{DRIVER}/lib64", f"{DRIVER}/tools", f"{DRIVER}/version.info", "/usr/local/dcmi", "/usr/local/bin/npu-smi", "/etc/ascend_install.info")
"""What every installation of the driver has, and every program needs."""


def for_grant(grant: Grant, devices: Sequence[Device]) -> ContainerEdits:
    """The container's view of its chips, in the grant's order."""
    if grant.owner.kind == "local":  # it sees the host's files as they are, and no container runtime hides the other chips
        return ContainerEdits(env={"ASCEND_RT_VISIBLE_DEVICES": ",".join(str(device.index) for device in devices)})
    phy_ids = [_phy_id(device) for device in devices]
    env = {"ASCEND_VISIBLE_DEVICES": ",".join(phy_ids)}
    templates = [held.offer.profile for held in grant.devices if held.offer.mode == "vnpu" and held.offer.profile]
    if templates:
        if len(grant.devices) > 1:
            raise ValueError(f"the Ascend container runtime makes one vNPU for a container, and {grant.container!r} was granted {len(grant.devices)} devices")
        return ContainerEdits(env=env | {"ASCEND_VNPU_SPECS": templates[0]})
    return ContainerEdits(
        env=env,
        device_nodes=tuple(DeviceNode(path=path) for path in (*CONTROL_NODES, *(f"/dev/davinci{phy_id}" for phy_id in phy_ids))),
        mounts=tuple(Mount(host_path=path, container_path=path) for path in MOUNTS),
    )


def _phy_id(device: Device) -> str:
    phy_id = device.identity("phy-id")
    if phy_id is None:
        raise ValueError(f"chip {device.id} has no phy id, so its file under /dev is not known")
    return phy_id
