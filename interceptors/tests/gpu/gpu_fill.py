# SPDX-License-Identifier: Apache-2.0
"""A program that fills device 0 by one path until the driver refuses, and holds it until it is told to go on.

`python gpu_fill.py PATH BYTES`: prints a line of JSON when it has a context, after a "go" fills and prints another, after a "go" frees
and prints the last. With PATH "context" it takes a context only. It knows nothing of the library under test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cuda"))

from cuda_calls import OUT_OF_MEMORY, PATHS, POOL, CudaError, Free, begin, call, driver, info, size_t, void

MOST = 100_000


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def fill(path: str, bytes_: int) -> tuple[list[Free], dict[str, Any]]:
    """What was given, and how it ended: the driver's code, or a function that this driver has not got."""
    blocks: list[Free] = []
    try:
        while len(blocks) < MOST:
            blocks.append(PATHS[path](bytes_))
    except CudaError as error:
        return blocks, {"code": error.code, "ended": str(error)}
    except AttributeError as error:
        return blocks, {"code": None, "ended": f"this driver has none ({error})"}
    return blocks, {"code": 0, "ended": f"{MOST} blocks were given"}


def main(path: str, bytes_: str) -> None:
    try:
        begin()
    except CudaError as error:
        say(code=error.code, ended=str(error))
        return
    say(code=0, info=info())
    sys.stdin.readline()
    if path == "context":
        return
    blocks, ended = fill(path, int(bytes_))
    say(**ended, count=len(blocks), info=info(), refused=ended["code"] == OUT_OF_MEMORY)
    sys.stdin.readline()
    while blocks:
        blocks.pop()()
    call("cuCtxSynchronize")
    for pool in POOL.values():
        call("cuMemPoolTrimTo", void(pool), size_t(0))
    driver.cuDeviceGraphMemTrim(0)
    say(info=info())


if __name__ == "__main__":
    main(*sys.argv[1:])
