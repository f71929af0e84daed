# SPDX-License-Identifier: Apache-2.0
"""Calls hooked functions with arguments that make no sense, each in a forked process of its own; prints one JSON object.

Run as `python absurd_program.py LIBRARY OFFSETS CALLS`: CALLS is a JSON file of [symbol, [kind of argument, …]], where a kind is
"pointer", "nothing" (a handle), "number" or "handle" (64 bytes by value). For each call and pattern it answers [with our hook, by the driver alone]:
the code, or "signal N".
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cuda_bench import Bench

ROOM = 1 << 14
MOST = ctypes.c_uint64(2**64 - 1)
NOTHING = ctypes.c_uint64(0)


class Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char * 64),)


def argument(kind: str, pattern: str) -> Any:
    if kind == "handle":
        return Handle()
    if kind == "nothing":
        return None
    if kind == "pointer":
        return ctypes.byref((ctypes.c_char * ROOM)()) if pattern.startswith("pointers") else None
    return NOTHING if pattern.endswith("zeros") else MOST


PATTERNS = ("nulls and zeros", "nulls and the most", "pointers and zeros", "pointers and the most")


def answer(bench: Bench, ready: bool, call: Callable[..., int], symbol: str, kinds: Sequence[str], pattern: str) -> int | str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        if ready:
            bench.begin()
        os.write(writer, str(call(symbol, *(argument(kind, pattern) for kind in kinds))).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return int(text) if text else f"signal {status & 127}"


def main(library: str, offsets: dict[str, int], calls: list[tuple[str, list[str]]]) -> None:
    bench = Bench(library, offsets, Path())
    ready = library.startswith("libcuda")
    print(
        json.dumps(
            {
                f"{symbol} {pattern}": [answer(bench, ready, call, symbol, kinds, pattern) for call in (bench.code, bench.raw)]
                for symbol, kinds in calls
                for pattern in PATTERNS
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), json.loads(Path(sys.argv[3]).read_text()))
