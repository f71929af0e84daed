# SPDX-License-Identifier: Apache-2.0
"""A row of the tables of hooks: how its hook is seen at work, and what is seen; and what the rows of several tables share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cuda_bench import MIB, Bench, Refused

BLOCK = 48
BYTES = BLOCK * MIB
TOO_MUCH = 2048 * MIB
CONTEXT = 300
LIMIT = 1024
FABRIC = 8
OLD = 0x4000_0000  # an address that fits the old interfaces' 32 bits

Show = Callable[[Bench, str], Any]


@dataclass(frozen=True)
class Drive:
    """How a hook is seen at work, and what is seen."""

    show: Show
    expected: Any


ROWS: dict[str, Drive] = {}


def row(*symbols: str, expected: Any) -> Callable[[Show], Show]:
    def enter(show: Show) -> Show:
        ROWS.update({symbol: Drive(show, expected) for symbol in symbols})
        return show

    return enter


def taken(b: Bench, allocate: Callable[[int], Callable[[], None]]) -> list[int]:
    """[MiB charged for one block, the code when there is too little left, MiB charged when it is free again]."""
    start = b.held()
    free = allocate(BYTES)
    found, code = b.held() - start, 0
    try:
        allocate(TOO_MUCH)
    except Refused as refused:
        code = refused.code
    free()
    return [found, code, b.held() - start]
