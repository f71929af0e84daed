# SPDX-License-Identifier: Apache-2.0
"""What a container does with CNDrv, one case a run: `cndrv_program.py LIBRARY CASE ARGUMENT...`."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import driving
from driving import BLOCK, Give, Take, say

cn = ctypes.CDLL(sys.argv[1])


class Memory(ctypes.Structure):
    _fields_ = [("type", c_int), ("handle_types", c_int), ("location_type", c_int), ("location", c_uint), ("flags", ctypes.c_short)]


class IpcHandle(ctypes.Structure):
    _fields_ = [("words", c_uint64 * 8)]


WANTED = Memory(1, 0, 1, 0, 0)
POOL = c_void_p()
CONTEXT = c_void_p()


def plain(name: str, *more: Any, size: int = BLOCK) -> Take:
    return lambda out: int(cn[name](byref(out), c_uint64(size), *more))


def from_pool(out: Any) -> int:
    if POOL.value is None:
        cn.cnDeviceGetMemPool(byref(POOL), 0)
    return int(cn.cnMemAllocFromPoolAsync(byref(out), c_size_t(BLOCK), POOL, None))


def create(out: Any, size: int = BLOCK) -> int:
    return int(cn.cnMemCreate(byref(out), c_uint64(size), byref(WANTED), c_uint64(0)))


def bind(address: Any, handle: Any, size: int) -> int:
    cn.cnMemAddressReserve(byref(address), c_uint64(size), c_uint64(0), c_uint64(0), c_uint64(0))
    return int(cn.cnMemMap(address, c_uint64(size), c_uint64(0), handle, c_uint64(0)))


def mapped(out: Any) -> int:
    """Memory, mapped, of which only the mapping is kept."""
    handle = c_uint64()
    return create(handle) or bind(out, handle, BLOCK) or int(cn.cnMemRelease(handle))


TAKES: dict[str, Take] = {
    "small": plain("cnMalloc", size=70000),
    **{name: plain(name) for name in ("cnMalloc", "cnMallocSecurity", "cnZmalloc", "cnMallocConstant", "cnMallocPeerAble")},
    **{name: plain(name, c_int(0)) for name in ("cnMallocNode", "cnZmallocNode", "cnMallocNodeConstant", "cnMallocFrameBuffer")},
    "cnMemAllocAsync": plain("cnMemAllocAsync", None),
    "cnMemAllocFromPoolAsync": from_pool,
    "cnMemCreate": create,
    "cnMemMap": mapped,
}
GIVES: dict[str, Give] = {
    "cnMemFreeAsync": lambda block: int(cn.cnMemFreeAsync(block, None)),
    "cnMemUnmap": lambda block: int(cn.cnMemUnmap(block, c_uint64(BLOCK))),
}


def give(name: str) -> Give:
    return GIVES.get(name) or (lambda block: int(cn[name](block)))


def memory() -> tuple[int, int]:
    left, total = c_uint64(), c_uint64()
    cn.cnMemGetInfo(byref(left), byref(total))
    return left.value, total.value


def fill(taking: str, giving: str) -> None:
    driving.fill(TAKES[taking], give(giving), c_uint64, memory, lambda: cn.cnQueueSync(None))


def fork() -> None:
    driving.hold_and_fork(TAKES["cnMalloc"], give("cnFree"), c_uint64)


def resolved(resolver: str) -> None:
    address = c_void_p()
    code = int(cn[resolver](b"cnMalloc", byref(address)))
    function = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64)(address.value or 0)
    say(code=code, refused=int(function(ctypes.addressof(c_uint64()), 200 << 20)), taken=int(function(ctypes.addressof(c_uint64()), BLOCK)))


def mapping() -> None:
    """Physical memory is charged as long as a reference or a mapping keeps it."""
    handle, address, size = c_uint64(), c_uint64(), 5 * BLOCK
    say(codes=[create(handle, size), bind(address, handle, size), int(cn.cnMemRelease(handle))])
    say(codes=[int(cn.cnMemRetainAllocationHandle(byref(handle), address)), int(cn.cnMemUnmap(address, c_uint64(size)))])
    say(codes=[int(cn.cnMemRelease(handle))])


def pool() -> None:
    cn.cnMemPoolCreate(byref(POOL), byref((c_int * 32)(1, 0, 1, 0)))
    blocks = [c_uint64() for _ in range(3)]
    say(codes=[from_pool(block) for block in blocks])
    say(codes=[int(cn.cnMemFreeAsync(block, None)) for block in blocks])
    say(codes=[int(cn.cnMemPoolTrimTo(POOL, c_size_t(0)))])
    codes = [from_pool(block) for block in blocks]
    say(codes=codes + [int(cn.cnMemFreeAsync(block, None)) for block in blocks])
    say(codes=[int(cn.cnMemPoolDestroy(POOL))])


def queries() -> None:
    device, left, total = c_uint64(), c_uint64(), c_uint64()
    cn.cnDeviceTotalMem(byref(device), 0)
    cn.cnMemGetNodeInfo(byref(left), byref(total), c_int(0))
    say(cnMemGetInfo=list(memory()), cnMemGetNodeInfo=[left.value, total.value], cnDeviceTotalMem=device.value)


def held_blocks() -> list[int]:
    return [TAKES[name](c_uint64()) for name in ("cnMalloc", "small", "cnMemCreate")]


def destroyed() -> None:
    """Two contexts: the memory goes with the second."""
    other = c_void_p()
    codes = [int(cn.cnCtxCreate(byref(other), 0, 0)), *held_blocks(), int(cn.cnCtxDestroy(other)), int(cn.cnCtxSetCurrent(CONTEXT))]
    say(codes=codes)
    say(codes=[int(cn.cnCtxDestroy(CONTEXT))])


def shared_context(ending: str) -> None:
    context = c_void_p()
    codes = [int(cn.cnSharedContextAcquire(byref(context), 0)), int(cn.cnCtxSetCurrent(context)), *held_blocks()]
    say(codes=codes)
    say(codes=[int(cn[ending](0))])


# -- between processes ------------------------------------------------------------------------------------------------


def ipc() -> tuple[Take, Take, Give]:
    mine = c_uint64()
    TAKES["cnMalloc"](mine)

    def own(out: Any) -> int:
        handle = IpcHandle()
        return int(cn.cnIpcGetMemHandle(byref(handle), mine)) or int(cn.cnIpcOpenMemHandle(byref(out), handle, 0))

    def foreign(out: Any) -> int:
        return int(cn.cnIpcOpenMemHandle(byref(out), IpcHandle((c_uint64 * 8)(1, 2, 3 * BLOCK)), 0))

    return own, foreign, give("cnIpcCloseMemHandle")


def shareable() -> tuple[Take, Take, Give]:
    handle, exported = c_uint64(), c_int()
    create(handle)
    assert cn.cnMemExportToShareableHandle(byref(exported), handle, 1, c_uint64(0)) == 0
    theirs = os.memfd_create("another container's memory")
    os.ftruncate(theirs, 3 * BLOCK)

    def open_file(file: int) -> Take:
        return lambda out: int(cn.cnMemImportFromShareableHandle(byref(out), c_void_p(file), 1))

    return open_file(exported.value), open_file(theirs), give("cnMemRelease")


def shared(way: str) -> None:
    """This container's own memory comes back to it, then another's: twice; the second time is too much. Then all is closed."""
    own, foreign, close = {"ipc": ipc, "shareable": shareable}[way]()
    mine, theirs, more, most = (c_uint64() for _ in range(4))
    say(codes=[own(mine)])
    say(codes=[foreign(theirs), foreign(more), foreign(most)])
    say(codes=[foreign(c_uint64())])
    say(codes=[close(mine), close(theirs), close(more), close(most)])


def launches(*wanted: str) -> None:
    driving.launches(cn, wanted, {}, {}, lambda: cn.cnQueueSync(None))


CASES: dict[str, Callable[..., None]] = {
    case.__name__: case for case in (fill, fork, resolved, mapping, pool, queries, destroyed, shared_context, shared, launches)
}

cn.cnInit(0)
if sys.argv[2] != "shared_context":
    cn.cnCtxCreate(byref(CONTEXT), 0, 0)
CASES[sys.argv[2]](*sys.argv[3:])
