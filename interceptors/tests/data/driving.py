# SPDX-License-Identifier: Apache-2.0
"""What the programs of the HIP, Ascend and CNDrv tests have in common: each says a line of JSON, waits for a line, and goes on."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Take = Callable[[Any], int]
"""Takes memory: writes what it got into the `out` that it is given, and answers the driver's code."""
Give = Callable[[Any], int]

BLOCK = 8 << 20
MOST = 4000


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()


def take_all(take: Take, kind: Any) -> tuple[int, list[Any]]:
    """The driver's code in the end, and all that was got until then."""
    blocks: list[Any] = []
    while len(blocks) < MOST:
        out = kind()
        code = take(out)
        if code != 0:
            return code, blocks
        blocks.append(out)
    return 0, blocks


def fill(take: Take, give: Give, kind: Any, memory: Callable[[], tuple[int, int]], settle: Callable[[], Any]) -> None:
    """Takes to failure, gives half back, takes to failure again, gives all back."""
    code, blocks = take_all(take, kind)
    say(code=code, blocks=len(blocks), total=memory()[1])
    half = [give(blocks.pop()) for _ in range(len(blocks) // 2)]
    settle()
    again, more = take_all(take, kind)
    codes = half + [give(block) for block in [*blocks, *more]]
    settle()
    left, total = memory()
    say(codes=sorted(set(codes)), again=again, more=len(more) - len(half), free=left, total=total)


def hold_and_fork(take: Take, give: Give, kind: Any) -> None:
    """What a forked child does with its parent's block changes nothing for the parent."""
    block = kind()
    code = take(block)
    child = os.fork()
    if child == 0:
        give(block)
        os._exit(0)
    os.waitpid(child, 0)
    say(code=code)
    say(code=give(block))


LAUNCHES = 10


def launches(library: Any, wanted: Sequence[str], special: dict[str, Any], structures: dict[str, Any], wait: Callable[[], Any]) -> None:
    """`wanted`: symbols, each with a letter per parameter: i number, p pointer, n no pointer, z zeros behind a pointer, else one of `special`;
    `structures` go by value. The first is run once more before, so that all are in the same debt."""
    zeros = ctypes.create_string_buffer(512)
    letters: dict[str, Any] = {
        "i": ctypes.c_uint64(1),
        "p": ctypes.c_void_p(4096),
        "n": ctypes.c_void_p(),
        "z": ctypes.cast(zeros, ctypes.c_void_p),
        **special,
        **structures,
    }
    seconds: dict[str, float] = {}
    codes: dict[str, list[int]] = {}
    for text in [wanted[0], *wanted]:
        symbol, _, kinds = text.partition(":")
        began = time.monotonic()
        found = set()
        for _ in range(LAUNCHES):
            found.add(int(library[symbol](*(letters[kind] for kind in kinds))))
            wait()
        seconds[symbol] = time.monotonic() - began
        codes[symbol] = sorted(found)
    say(seconds=seconds, codes=codes)
