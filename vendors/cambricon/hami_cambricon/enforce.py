# SPDX-License-Identifier: Apache-2.0
"""What holds the limits on Cambricon cards, and how well: never said better than it is."""

from __future__ import annotations

from hami_framework import HARD, Enforcement, Grant, Isolation

SMLU = Isolation(memory="hard", compute="hard")
"""The driver holds both quotas; a fault of the card ends every instance on it."""


def for_grant(grant: Grant) -> Enforcement:
    """What the container can rely on: `hami_allocate`, which runs first, has failed where an instance could not be made."""
    if any(held.offer.mode == "smlu" for held in grant.devices):
        return Enforcement(isolation=SMLU, mechanism="the card's sMLU instance")
    return Enforcement(isolation=HARD, mechanism="the whole card")
