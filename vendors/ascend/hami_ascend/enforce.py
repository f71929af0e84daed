# SPDX-License-Identifier: Apache-2.0
"""What holds the limits on Ascend chips, and how well: never said better than it is.

Soft shares are held by libhami_ascend.so, which comes with the wheel. Where the wheel has none they are held by
hami-vnpu-core, HAMi's interceptor of the Ascend runtime, if the node has that; otherwise they are only measured. Nothing
keeps one soft share from resetting the chip under its neighbours; a vNPU has AI cores and memory of its own, but a fault
of the chip ends them all. A local run has no container runtime that would make the vNPU: it is held like a soft share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hami_framework import ADVISORY, HARD, MIB, SOFT, ContainerEdits, Device, Enforcement, Grant, Host, Interceptor, Isolation, Mount

LIBRARY = Path(__file__).parent / "lib" / "libhami_ascend.so"
INTERCEPTOR = "/usr/local/hami-vnpu-core"
SHARED_REGION = "/usr/local/hami-shared-region"
VNPU = Isolation(memory="hard", compute="hard")


def interceptor_installed(host: Host) -> bool:
    """True where something holds soft shares on this node: our own library, or hami-vnpu-core."""
    return LIBRARY.is_file() or host.path(f"{INTERCEPTOR}/ld.so.preload").is_file()


def share_isolation(interceptor: bool) -> Isolation:
    """How well a soft share is kept."""
    return SOFT if interceptor else ADVISORY


def for_grant(grant: Grant, devices: Sequence[Device]) -> Enforcement:
    """What the container can rely on."""
    modes = {held.offer.mode for held in grant.devices}
    if "vnpu" in modes and grant.owner.kind != "local":
        return Enforcement(isolation=VNPU, mechanism="a vNPU, made by the Ascend container runtime")
    if modes.isdisjoint({"share", "vnpu"}) or all(held.offer.exclusive for held in grant.devices):
        return Enforcement(isolation=HARD, mechanism="the whole chip")
    if any(_share_mode(device) == ADVISORY for device in devices):
        missing = f"neither {LIBRARY.name} is installed with hami-framework-ascend nor {INTERCEPTOR} on this node"
        return Enforcement(isolation=ADVISORY, mechanism=f"nothing: measured only, because {missing}")
    if LIBRARY.is_file():
        return Enforcement(isolation=SOFT, mechanism=LIBRARY.name, interceptor=_interceptor(devices))
    return Enforcement(isolation=SOFT, mechanism="hami-vnpu-core", edits=_interceptor_edits(grant, devices))


def _interceptor(devices: Sequence[Device]) -> Interceptor:
    """Chips by their physical id. The logic id that a container sees is an ordinal of its own, and is never matched by itself."""
    return Interceptor(library=str(LIBRARY), identities=tuple((device.id, tuple(_names(device))) for device in devices))


def _names(device: Device) -> Iterator[tuple[str, str]]:
    phy_id = device.identity("phy-id")
    if phy_id is not None:
        yield "physical", phy_id


def _share_mode(device: Device) -> Isolation:
    mode = device.device_class.mode("share")
    return ADVISORY if mode is None else mode.isolation


def _interceptor_edits(grant: Grant, devices: Sequence[Device]) -> ContainerEdits:
    """As hami-vnpu-core reads them. It knows one quota per container, so the tightest of its devices is the one told."""
    limits = [held.offer.limit for held in grant.devices]
    env = {
        "NPU_MEM_QUOTA": str(min(limit.memory_bytes or 0 for limit in limits) // MIB),
        "NPU_GLOBAL_SHM_PATH": f"/hami-shared-region/{devices[0].identity('phy-id')}_global_registry",
        "NPU_LOCAL_SHM_PATH": "/hami-vnpu-shmem/vnpu_local_shmem",
    }
    percents = [limit.core_percent for limit in limits if limit.core_percent is not None]
    mounts = (
        Mount(host_path=INTERCEPTOR, container_path="/hami-vnpu-core"),
        Mount(host_path=f"{INTERCEPTOR}/ld.so.preload", container_path="/etc/ld.so.preload"),
        Mount(host_path=SHARED_REGION, container_path="/hami-shared-region", read_only=False),
        Mount(host_path=grant.directory, container_path="/hami-vnpu-shmem", read_only=False),
    )
    return ContainerEdits(env=env | ({"NPU_PRIORITY": str(min(percents))} if percents else {}), mounts=mounts)
