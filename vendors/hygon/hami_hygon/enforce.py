# SPDX-License-Identifier: Apache-2.0
"""What holds the limits on Hygon DCUs, and how well: never said better than it is."""

from __future__ import annotations

from hami_framework import HARD, Enforcement, Grant, Isolation

MASKED = Isolation(memory="hard", compute="hard")
"""The kernel driver keeps a vDCU to its memory and its compute units; a fault on the card reaches everyone on it."""
MEMORY_ONLY = Isolation(memory="hard")


def for_grant(grant: Grant) -> Enforcement:
    """The weakest of what the container was given, since that is what it can rely on."""
    modes = {held.offer.mode for held in grant.devices}
    if "vdcu-memory" in modes:
        return Enforcement(isolation=MEMORY_ONLY, mechanism="the DCU driver's memory quota; compute is shared")
    if "vdcu" in modes:
        return Enforcement(isolation=MASKED, mechanism="the DCU driver's memory quota and compute-unit mask")
    return Enforcement(isolation=HARD, mechanism="the whole DCU")
