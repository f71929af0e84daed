# SPDX-License-Identifier: Apache-2.0
"""What a container with a Cambricon grant sees: device files by *slot*, which is not CNDev's index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hami_framework import ContainerEdits, Device, DeviceNode, Grant, Mount

CONTROL_NODE = "/dev/cambricon_ctl"
CNMON = "/usr/bin/cnmon"


def nodes(slot: str) -> tuple[str, ...]:
    """The files without which no program can use the card."""
    return (f"/dev/cambricon_dev{slot}", f"/dev/cambricon_ipcm{slot}")


def optional_nodes(slot: int) -> tuple[str, ...]:
    """Files that some drivers and cards have beside them; discovery notes which are there."""
    return ("/dev/cambricon_gdr", *(f"/dev/{kind}{slot}" for kind in ("cmsg_ctrl", "commu", "cambr-msgq:", "cambr-rpc:", "ttyMS")))


def for_grant(grant: Grant, devices: Sequence[Device], instances: Mapping[str, tuple[str, ...]]) -> ContainerEdits:
    """The container's view of its cards, in the grant's order. `instances`: device id → the files of its sMLU instance.

    `CAMBRICON_VISIBLE_DEVICES` would have Cambricon's container runtime open whole cards, so instances get `VIRTUAL_DEVICES`.
    """
    if grant.owner.kind == "local":  # it sees the host's files as they are, and no container runtime hides the other cards
        return ContainerEdits(env={"MLU_VISIBLE_DEVICES": ",".join(str(device.index) for device in devices)})
    paths = [CONTROL_NODE]
    visible, virtual = [], []
    for device in devices:
        slot = _slot(device)
        if device.id in instances:
            files = tuple(dict.fromkeys((*nodes(slot), *instances[device.id])))
            virtual.append(",".join(files))
            paths += files
        else:
            visible.append(slot)
            paths += (*nodes(slot), *(value for kind, value in device.identities if kind == "node"))
    env = {"CAMBRICON_VISIBLE_DEVICES": ",".join(visible)} if visible else {}
    env |= {"VIRTUAL_DEVICES": ";".join(virtual)} if virtual else {}
    unique = tuple(DeviceNode(path=path) for path in dict.fromkeys(paths))
    return ContainerEdits(env=env, device_nodes=unique, mounts=(Mount(host_path=CNMON, container_path=CNMON),))


def _slot(device: Device) -> str:
    slot = device.identity("slot")
    if slot is None:
        raise ValueError(f"card {device.id} has no slot number, so its files under /dev are not known")
    return slot
