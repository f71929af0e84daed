# SPDX-License-Identifier: Apache-2.0
"""What a container with an NVIDIA grant sees: device files by minor number, and the variables that HAMi's users know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hami_framework import MIB, ContainerEdits, Device, DeviceNode, Grant

CONTROL_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")


def for_grant(grant: Grant, devices: Sequence[Device]) -> ContainerEdits:
    """The container's view of its GPUs, in the grant's order."""
    nodes = (*CONTROL_NODES, *(_node(device) for device in devices))
    visible = ",".join(device.id for device in devices)
    env = {"NVIDIA_VISIBLE_DEVICES": visible, **dict(_limits(grant))}
    if grant.owner.kind == "local":
        env["CUDA_VISIBLE_DEVICES"] = visible  # no container runtime hides the others: the program's device 0 must be its own
    return ContainerEdits(env=env, device_nodes=tuple(DeviceNode(path=path) for path in nodes))


def _node(device: Device) -> str:
    """The minor number, not NVML's index, names the file: they differ wherever a GPU is missing or was moved."""
    minor = device.identity("minor")
    if minor is None:
        raise ValueError(f"GPU {device.id} has no minor number, so its file under /dev is not known; is it lost?")
    return f"/dev/nvidia{minor}"


def _limits(grant: Grant) -> Iterator[tuple[str, str]]:
    """As HAMi-core reads them: MiB for each GPU, compute for the first GPU only. Told, not held: see `enforce`."""
    for number, held in enumerate(grant.devices):
        limit = held.offer.limit
        if held.offer.mode != "share":
            continue
        if limit.memory_bytes is not None:
            yield f"CUDA_DEVICE_MEMORY_LIMIT_{number}", f"{limit.memory_bytes // MIB}m"
        if number == 0 and limit.core_percent is not None:
            yield "CUDA_DEVICE_SM_LIMIT", str(limit.core_percent)
