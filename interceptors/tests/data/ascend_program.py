# SPDX-License-Identifier: Apache-2.0
"""What a container does with CANN's runtime, one case a run: `ascend_program.py LIBRARY CASE`. Says a line of JSON, waits for a line, goes on."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_uint16, c_uint64, c_void_p
from typing import Any

rt = ctypes.CDLL(sys.argv[1])
BLOCK = 8 << 20


class Memory(ctypes.Structure):
    _fields_ = [(name, c_uint) for name in ("side", "device", "module", "page_type", "memory_type")] + [("reserve", c_uint64)]


WANTED = Memory(1, 0, 0, 1, 2, 0)
POOL = c_void_p()


def plain(name: str, *more: Any, size: int = BLOCK) -> Callable[[Any], int]:
    return lambda out: int(rt[name](byref(out), c_uint64(size), *more))


def from_pool(out: Any) -> int:
    if POOL.value is None:
        rt.rtMemPoolCreate(byref(POOL), None)
    return int(rt.rtMemPoolMallocAsync(byref(out), c_uint64(BLOCK), POOL, None))


def mapped(out: Any) -> int:
    """Memory, mapped, of which only the mapping is kept."""
    handle = c_void_p()
    code = int(rt.rtMallocPhysical(byref(handle), c_size_t(BLOCK), byref(WANTED), c_uint64(0)))
    if code:
        return code
    rt.rtReserveMemAddress(byref(out), c_size_t(BLOCK), c_size_t(0), None, c_uint64(0))
    code = int(rt.rtMapMem(out, c_size_t(BLOCK), c_size_t(0), handle, c_uint64(0)))
    return code or int(rt.rtFreePhysical(handle))


ALLOCATORS: dict[str, tuple[Callable[[Any], int], Callable[[Any], int]]] = {
    "rtMalloc": (plain("rtMalloc", c_uint(2), c_uint16(0)), rt.rtFree),
    "small": (plain("rtMalloc", c_uint(2), c_uint16(0), size=70000), rt.rtFree),
    "rtMallocCached": (plain("rtMallocCached", c_uint(2), c_uint16(0)), rt.rtFreeWithDevSync),
    "rtsMalloc": (plain("rtsMalloc", c_int(0), c_int(0), None), rt.rtsFree),
    "rtMemAlloc": (plain("rtMemAlloc", c_int(0), c_int(0), None), rt.rtsFree),
    "rtMemAllocManaged": (plain("rtMemAllocManaged", c_uint(0), c_uint16(0)), rt.rtMemFreeManaged),
    "rtDvppMalloc": (plain("rtDvppMalloc", c_uint16(0)), rt.rtDvppFree),
    "rtDvppMallocWithFlag": (plain("rtDvppMallocWithFlag", c_uint(0), c_uint16(0)), rt.rtDvppFree),
    "rtMallocPhysical": (plain("rtMallocPhysical", byref(WANTED), c_uint64(0)), rt.rtFreePhysical),
    "rtsMemMallocPhysical": (plain("rtsMemMallocPhysical", c_int(0), None), lambda handle: int(rt.rtsMemFreePhysical(byref(handle)))),
    "rtMemPoolMallocAsync": (from_pool, lambda block: int(rt.rtMemPoolFreeAsync(block, None))),
    "mapped": (mapped, rt.rtUnmapMem),
}


def memory(kind: int | None = None) -> tuple[int, int]:
    left, total = c_size_t(), c_size_t()
    if kind is None:
        rt.rtMemGetInfo(byref(left), byref(total))
    else:
        rt.rtMemGetInfoEx(c_int(kind), byref(left), byref(total))
    return left.value, total.value


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()


def fill(case: str) -> None:
    take, give = ALLOCATORS[case]
    blocks: list[Any] = []
    code = 0
    while code == 0 and len(blocks) < 4000:
        out = c_void_p()
        code = take(out)
        if code == 0:
            blocks.append(out)
    say(code=code, blocks=len(blocks), total=memory()[1])
    codes = [int(give(block)) for block in blocks]
    if POOL.value is not None:
        rt.rtMemPoolTrimTo(POOL, c_uint64(0))
    left, total = memory()
    say(codes=codes, free=left, total=total)


def reset() -> None:
    for case in ("rtMalloc", "small", "rtMallocPhysical"):
        ALLOCATORS[case][0](c_void_p())
    rt.rtDeviceReset(0)
    rt.rtSetDevice(0)
    say(free=memory()[0])


def launch(name: str) -> None:
    function = c_void_p(4096)
    calls: dict[str, tuple[Any, ...]] = {
        "rtKernelLaunch": (function, c_uint(1), None, c_uint(0), None, None),
        "rtLaunchKernelByFuncHandleV3": (function, c_uint(1), None, None, None),
        "rtsLaunchKernelWithConfig": (function, c_uint(1), None, None, None, None),
        "rtModelExecute": (function, None, c_uint(0)),
    }
    began = time.monotonic()
    codes = set()
    for number in range(50):
        codes.add(int(rt[name](*calls[name])))
        if number % 5 == 4:
            rt.rtStreamSynchronize(None)
    say(codes=sorted(codes), seconds=time.monotonic() - began)


def main() -> None:
    rt.rtSetDevice(0)
    case = sys.argv[2]
    if case.startswith("launch "):
        launch(case.removeprefix("launch "))
    elif case == "reset":
        reset()
    elif case == "queries":
        say(info=list(memory()), ex=list(memory(2)))
    else:
        fill(case)


main()
