# SPDX-License-Identifier: Apache-2.0
"""Units, and the one place where amounts are converted between them.

Everywhere else an amount carries its unit in its name: `memory_bytes`, `core_percent`.
"No limit" is `None`, never a magic number.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def round_up(amount: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `amount`."""
    return -(-amount // unit) * unit


def percent_of(total: int, percent: int) -> int:
    """`percent` of `total`, rounded down (HAMi's rule for `gpumem-percentage`), in exact integer arithmetic."""
    return total * percent // 100


def show_bytes(amount: int) -> str:
    """`amount` as people read it: whole MiB below 10 GiB, one decimal of GiB above."""
    if amount < 10 * GIB:
        return f"{amount // MIB} MiB"
    return f"{amount / GIB:.1f} GiB"
