# SPDX-License-Identifier: Apache-2.0
"""What holds the limits on NVIDIA GPUs, and how well: never said better than it is."""

from __future__ import annotations

from hami_framework import ADVISORY, HARD, Enforcement, Grant

SHARE = ADVISORY
"""Nothing stands between two containers that share a GPU until the interceptor library is there."""


def for_grant(grant: Grant) -> Enforcement:
    """The weakest of what the container was given, since that is what it can rely on."""
    modes = {held.offer.mode for held in grant.devices}
    if "share" in modes:
        return Enforcement(isolation=SHARE, mechanism="nothing: measured only")
    return Enforcement(isolation=HARD, mechanism="MIG" if "mig" in modes else "the whole GPU")
