# SPDX-License-Identifier: Apache-2.0
"""What a container does with CNDrv, one case a run: `cndrv_program.py LIBRARY CASE`. Says a line of JSON, waits for a line, goes on."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

cn = ctypes.CDLL(sys.argv[1])
BLOCK = 8 << 20


class Config(ctypes.Structure):
    _fields_ = [*((name, c_uint) for name in ("x", "y", "z", "kernel_class", "reserved")), ("queue", c_void_p), ("attributes", c_void_p), ("count", c_uint)]


class Memory(ctypes.Structure):
    _fields_ = [("type", c_int), ("handle_types", c_int), ("location_type", c_int), ("location", c_uint), ("flags", ctypes.c_short)]


WANTED = Memory(1, 0, 1, 0, 0)


def plain(name: str, *more: Any, size: int = BLOCK) -> Callable[[Any], int]:
    return lambda out: int(cn[name](byref(out), c_uint64(size), *more))


def give(block: Any) -> int:
    return int(cn.cnFree(block))


def from_pool(out: Any) -> int:
    pool = c_void_p()
    cn.cnDeviceGetMemPool(byref(pool), 0)
    return int(cn.cnMemAllocFromPoolAsync(byref(out), c_size_t(BLOCK), pool, None))


def resolved(out: Any) -> int:
    address = c_void_p()
    code = int(cn.cnGetExportFunction(b"cnMalloc", byref(address)))
    return code or int(ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64)(address.value or 0)(ctypes.addressof(out), BLOCK))


def create(out: Any) -> int:
    return int(cn.cnMemCreate(byref(out), c_uint64(BLOCK), byref(WANTED), c_uint64(0)))


def mapped(out: Any) -> int:
    """Memory, mapped, of which only the mapping is kept."""
    handle = c_uint64()
    code = create(handle)
    if code:
        return code
    cn.cnMemAddressReserve(byref(out), c_uint64(BLOCK), c_uint64(0), c_uint64(0), c_uint64(0))
    code = int(cn.cnMemMap(out, c_uint64(BLOCK), c_uint64(0), handle, c_uint64(0)))
    return code or int(cn.cnMemRelease(handle))


ALLOCATORS: dict[str, tuple[Callable[[Any], int], Callable[[Any], int]]] = {
    "small": (plain("cnMalloc", size=70000), give),
    **{name: (plain(name), give) for name in ("cnMalloc", "cnMallocSecurity", "cnZmalloc", "cnMallocConstant", "cnMallocPeerAble")},
    **{name: (plain(name, c_int(0)), give) for name in ("cnMallocNode", "cnZmallocNode", "cnMallocNodeConstant", "cnMallocFrameBuffer")},
    "cnMemAllocAsync": (plain("cnMemAllocAsync", None), lambda block: int(cn.cnMemFreeAsync(block, None))),
    "cnMemAllocFromPoolAsync": (from_pool, give),
    "cnMemCreate": (create, lambda block: int(cn.cnMemRelease(block))),
    "mapped": (mapped, lambda block: int(cn.cnMemUnmap(block, c_uint64(BLOCK)))),
    "resolved": (resolved, give),
}


def memory(*more: Any) -> tuple[int, int]:
    left, total = c_uint64(), c_uint64()
    cn["cnMemGetNodeInfo" if more else "cnMemGetInfo"](byref(left), byref(total), *more)
    return left.value, total.value


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()


def fill(case: str) -> None:
    take, let_go = ALLOCATORS[case]
    blocks: list[Any] = []
    code = 0
    while code == 0 and len(blocks) < 4000:
        out = c_uint64()
        code = take(out)
        if code == 0:
            blocks.append(out)
    say(code=code, blocks=len(blocks), total=memory()[1])
    codes = [let_go(block) for block in blocks]
    cn.cnQueueSync(None)
    left, total = memory()
    say(codes=codes, free=left, total=total)


def queries() -> None:
    device = c_uint64()
    cn.cnDeviceTotalMem(byref(device), 0)
    say(info=list(memory()), node=list(memory(c_int(0))), device=device.value)


def destroyed(context: Any) -> None:
    for case in ("cnMalloc", "small", "cnMemCreate"):
        ALLOCATORS[case][0](c_uint64())
    cn.cnCtxDestroy(context)
    cn.cnCtxCreate(byref(context), 0, 0)
    say(free=memory()[0])


def launch(name: str) -> None:
    kernel, config = c_void_p(4096), Config(1, 1, 1, 0, 0, None, None, 0)
    calls: dict[str, tuple[Any, ...]] = {
        "cnInvokeKernel": (kernel, c_uint(1), c_uint(1), c_uint(1), c_int(0), c_uint(0), None, None, None),
        "cnInvokeKernelEx": (byref(config), kernel, None, None),
        "cnTaskTopoEntityInvoke": (kernel, None),
    }
    began = time.monotonic()
    codes = set()
    for number in range(50):
        codes.add(int(cn[name](*calls[name])))
        if number % 5 == 4:
            cn.cnQueueSync(None)
    say(codes=sorted(codes), seconds=time.monotonic() - began)


def main() -> None:
    context = c_void_p()
    cn.cnInit(0)
    cn.cnCtxCreate(byref(context), 0, 0)
    case = sys.argv[2]
    if case.startswith("launch "):
        launch(case.removeprefix("launch "))
    elif case == "destroyed":
        destroyed(context)
    elif case == "queries":
        queries()
    else:
        fill(case)


main()
