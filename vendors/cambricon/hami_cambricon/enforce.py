# SPDX-License-Identifier: Apache-2.0
"""What holds the limits on Cambricon cards, and how well: never said better than it is.

The driver holds sMLU instances, which a container gets instead of the card. A local run cannot be given one:
libhami_cambricon.so, which comes with the wheel, holds it, softly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hami_framework import ADVISORY, HARD, SOFT, Device, Enforcement, Grant, Interceptor, Isolation

LIBRARY = Path(__file__).parent / "lib" / "libhami_cambricon.so"

SMLU = Isolation(memory="hard", compute="hard")
"""The driver holds both quotas; a fault of the card ends every instance on it."""


def for_grant(grant: Grant, devices: Sequence[Device]) -> Enforcement:
    """What the container can rely on: `hami_allocate`, which runs first, has failed where an instance could not be made."""
    smlu = any(held.offer.mode == "smlu" for held in grant.devices)
    if smlu and grant.owner.kind == "local":
        return _local(devices)
    if smlu:
        return Enforcement(isolation=SMLU, mechanism="the card's sMLU instance")
    return Enforcement(isolation=HARD, mechanism="the whole card")


def _local(devices: Sequence[Device]) -> Enforcement:
    if not LIBRARY.is_file():
        return Enforcement(isolation=ADVISORY, mechanism=f"nothing: measured only, because {LIBRARY.name} is not installed with hami-framework-cambricon")
    names = tuple((device.id, tuple(_names(device))) for device in devices)
    return Enforcement(isolation=SOFT, mechanism=LIBRARY.name, interceptor=Interceptor(library=str(LIBRARY), identities=names))


def _names(device: Device) -> Iterator[tuple[str, str]]:
    yield "uuid", device.id
    if device.pci_address is not None:
        yield "pci", device.pci_address
