# SPDX-License-Identifier: Apache-2.0
"""What holds the limits on Hygon DCUs, and how well: never said better than it is.

The kernel driver holds vDCUs, of which a container gets the file. A local run gets none: libhami_hygon.so, which comes with
the wheel, holds it, softly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hami_framework import ADVISORY, HARD, SOFT, Device, Enforcement, Grant, Interceptor, Isolation

LIBRARY = Path(__file__).parent / "lib" / "libhami_hygon.so"

MASKED = Isolation(memory="hard", compute="hard")
"""The kernel driver keeps a vDCU to its memory and its compute units; a fault on the card reaches everyone on it."""
MEMORY_ONLY = Isolation(memory="hard")


def for_grant(grant: Grant, devices: Sequence[Device]) -> Enforcement:
    """The weakest of what the container was given, since that is what it can rely on."""
    modes = {held.offer.mode for held in grant.devices}
    if grant.owner.kind == "local" and modes != {"whole"}:
        return _local(devices)
    if "vdcu-memory" in modes:
        return Enforcement(isolation=MEMORY_ONLY, mechanism="the DCU driver's memory quota; compute is shared")
    if "vdcu" in modes:
        return Enforcement(isolation=MASKED, mechanism="the DCU driver's memory quota and compute-unit mask")
    return Enforcement(isolation=HARD, mechanism="the whole DCU")


def _local(devices: Sequence[Device]) -> Enforcement:
    if not LIBRARY.is_file():
        return Enforcement(isolation=ADVISORY, mechanism=f"nothing: measured only, because {LIBRARY.name} is not installed with hami-framework-hygon")
    names = tuple((device.id, tuple(_names(device))) for device in devices)
    return Enforcement(isolation=SOFT, mechanism=LIBRARY.name, interceptor=Interceptor(library=str(LIBRARY), identities=names))


def _names(device: Device) -> Iterator[tuple[str, str]]:
    """As HIP reports them: its UUID is the card's unique id in 16 hexadecimal digits."""
    if device.pci_address is not None:
        yield "pci", device.pci_address
    unique_id = device.identity("unique-id")
    if unique_id is not None:
        yield "uuid", f"GPU-{unique_id.removeprefix('0x').rjust(16, '0')}"
