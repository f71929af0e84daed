# SPDX-License-Identifier: Apache-2.0
"""From NVML's facts to devices: identity, class, place, links and health."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hami_framework import (
    HARD,
    HEALTHY,
    KIB,
    MIB,
    Capacity,
    Cost,
    Device,
    DeviceClass,
    Health,
    Host,
    Interval,
    Link,
    LinkKind,
    Membership,
    Mode,
    PartitionProfile,
    ProcessUsage,
    Usage,
)
from hami_nvidia import driver, enforce, names
from hami_nvidia.driver import Gpu, MigProfile

SHARES = 10
"""How many containers share a GPU at most: the default of HAMi's `deviceSplitCount`."""

_PCIE_LEVELS: dict[int, LinkKind] = {0: "same-board", 10: "pcie-switch", 20: "pcie-multi-switch", 30: "host-bridge", 40: "numa", 50: "system"}
"""nvmlGpuTopologyLevel_t."""


def devices(host: Host) -> Iterator[Device]:
    """Every GPU of this node."""
    if not driver.present():
        return
    gpus = driver.gpus()
    for gpu in gpus:
        yield Device(
            id=gpu.uuid,
            index=gpu.index,
            device_class=_device_class(gpu, host),
            health=_health(gpu.uuid),
            numa_node=_numa_node(gpu, host),
            pci_address=gpu.pci_address,
            links=tuple(_links(gpu, gpus)),
            groups=(Membership(kind="nvswitch", name="nvswitch-0"),) if gpu.switch_lanes else (),
            identities=tuple((kind, str(value)) for kind, value in (("minor", gpu.minor), ("serial", gpu.serial)) if value is not None),
        )


def health(devices: Sequence[Device]) -> Mapping[str, Health]:
    """The state of each known GPU, now."""
    return {device.id: _health(device.id) for device in devices}


def usage(devices: Sequence[Device]) -> Iterator[Usage]:
    """What NVML measures on each healthy GPU."""
    for device in devices:
        if device.health.ok:
            yield _usage(device.id)


def _usage(uuid: str) -> Usage:
    held = driver.processes(uuid)
    return Usage(
        device_id=uuid,
        memory_used_bytes=driver.memory_used_bytes(uuid),
        core_busy_percent=driver.busy_percent(uuid),
        processes=None if held is None else tuple(ProcessUsage(pid=pid, memory_bytes=memory) for pid, memory in held.items()),
    )


def _health(uuid: str) -> Health:
    problem = driver.problem(uuid)
    return HEALTHY if problem is None else Health(state="unhealthy", reason=problem)


def _device_class(gpu: Gpu, host: Host) -> DeviceClass:
    memory_bytes = gpu.memory_bytes or _system_memory_bytes(host)
    line = max((start + profile.size for profile in gpu.mig_profiles for start in profile.starts), default=0)
    slices = max((profile.compute_slices for profile in gpu.mig_profiles), default=0)
    usable = (Mode(name="whole", isolation=HARD), Mode(name="share", isolation=enforce.share_isolation()))
    partitioned = (Mode(name="mig", isolation=HARD, max_instances=slices),)
    return DeviceClass(
        model=gpu.product,
        types=names.types(gpu.product),
        capacity=Capacity(memory_bytes=memory_bytes, shares=SHARES, line=line),
        modes=partitioned if gpu.mig_enabled else usable + (partitioned if gpu.mig_profiles else ()),
        profiles=tuple(_profile(profile, slices) for profile in gpu.mig_profiles),
        facts=tuple((name, value) for name, value in (("compute-capability", gpu.compute_capability),) if value),
    )


def _profile(profile: MigProfile, slices: int) -> PartitionProfile:
    """Profiles of one or three slices start high and the others low, which leaves the larger ones their only places (HAMi's order)."""
    percent = 100 * profile.compute_slices // slices
    starts = tuple(sorted(profile.starts, reverse=profile.compute_slices in (1, 3)))
    cost = Cost(memory_bytes=profile.memory_mib * MIB, core_percent=percent, interval=Interval(size=profile.size, starts=starts))
    return PartitionProfile(name=profile.name, mode="mig", cost=cost, core_percent=percent, max_instances=profile.instances)


def _links(gpu: Gpu, gpus: Sequence[Gpu]) -> Iterator[Link]:
    """The best way from this GPU to each other one: direct NVLinks, the NVSwitch, or PCI Express."""
    lanes = Counter(gpu.nvlink_peers)
    for peer in gpus:
        if peer.uuid == gpu.uuid:
            continue
        if lanes[peer.pci_address]:
            yield Link(peer=peer.uuid, kind="nvlink", lanes=lanes[peer.pci_address])
        elif shared := min(gpu.switch_lanes, peer.switch_lanes):
            yield Link(peer=peer.uuid, kind="nvswitch", lanes=shared)
        elif kind := _pcie_kind(gpu, peer):
            yield Link(peer=peer.uuid, kind=kind)


def _pcie_kind(gpu: Gpu, peer: Gpu) -> LinkKind | None:
    level = driver.common_ancestor(gpu.uuid, peer.uuid)
    return None if level is None else _PCIE_LEVELS.get(level)


def _numa_node(gpu: Gpu, host: Host) -> int | None:
    """From NVML, or from the kernel where the driver is older than that question; the kernel writes -1 for "not known"."""
    if gpu.numa_node is not None:
        return gpu.numa_node
    file = host.path(f"/sys/bus/pci/devices/{gpu.pci_address}/numa_node")
    node = int(file.read_text()) if file.exists() else -1
    return None if node < 0 else node


def _system_memory_bytes(host: Host) -> int:
    """Memory of the whole machine: what a GPU without memory of its own (GB10) works in. Raises OSError, ValueError."""
    lines = host.path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith("MemTotal:"))
