# SPDX-License-Identifier: Apache-2.0
"""What holds the limits on NVIDIA GPUs, and how well: never said better than it is.

A share is held by libhami_nvidia.so, which comes with the wheel: softly, since a process that goes round the CUDA driver's
library is not stopped by one. Where the wheel has none (it was built without a compiler), a share is only measured, and the
inventory says so too: a pod that demands more is not placed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hami_framework import ADVISORY, HARD, SOFT, Device, Enforcement, Grant, Interceptor, Isolation

LIBRARY = Path(__file__).parent / "lib" / "libhami_nvidia.so"


def share_isolation() -> Isolation:
    """How well a share is kept on this node. A fault of one tenant (a stuck kernel, a reset) reaches all of them."""
    return SOFT if LIBRARY.is_file() else ADVISORY


def for_grant(grant: Grant, devices: Sequence[Device]) -> Enforcement:
    """The weakest of what the container was given, since that is what it can rely on."""
    modes = {held.offer.mode for held in grant.devices}
    if "share" not in modes:
        return Enforcement(isolation=HARD, mechanism="MIG" if "mig" in modes else "the whole GPU")
    if not LIBRARY.is_file():
        return Enforcement(isolation=ADVISORY, mechanism=f"nothing: measured only, because {LIBRARY.name} is not installed with hami-framework-nvidia")
    return Enforcement(isolation=SOFT, mechanism=LIBRARY.name, interceptor=interceptor(devices))


def interceptor(devices: Sequence[Device]) -> Interceptor:
    """The library, and the names that the CUDA driver and NVML call these GPUs by. The list file: a musl program ignores it and starts."""
    return Interceptor(library=str(LIBRARY), identities=tuple((device.id, tuple(_names(device))) for device in devices))


def _names(device: Device) -> Iterator[tuple[str, str]]:
    yield "uuid", device.id
    if device.pci_address is not None:
        yield "pci", device.pci_address
