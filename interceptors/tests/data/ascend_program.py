# SPDX-License-Identifier: Apache-2.0
"""What a container does with CANN's runtime, one case a run: `ascend_program.py LIBRARY CASE ARGUMENT...`."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_uint16, c_uint64, c_void_p
from typing import Any

import driving
from driving import BLOCK, Give, Take, say

rt = ctypes.CDLL(sys.argv[1])


class Memory(ctypes.Structure):
    _fields_ = [(name, c_uint) for name in ("side", "device", "module", "page_type", "memory_type")] + [("reserve", c_uint64)]


WANTED = Memory(1, 0, 0, 1, 2, 0)
POOL = c_void_p()
HOST = 0x81


def plain(name: str, *more: Any, size: int = BLOCK) -> Take:
    return lambda out: int(rt[name](byref(out), c_uint64(size), *more))


def from_pool(out: Any) -> int:
    if POOL.value is None:
        rt.rtMemPoolCreate(byref(POOL), None)
    return int(rt.rtMemPoolMallocAsync(byref(out), c_uint64(BLOCK), POOL, None))


def create(out: Any, size: int = BLOCK) -> int:
    return int(rt.rtMallocPhysical(byref(out), c_size_t(size), byref(WANTED), c_uint64(0)))


def bind(mapping: str, address: Any, handle: Any, size: int) -> int:
    rt.rtReserveMemAddress(byref(address), c_size_t(size), c_size_t(0), None, c_uint64(0))
    return int(rt[mapping](address, c_size_t(size), c_size_t(0), handle, c_uint64(0)))


def mapped(mapping: str) -> Take:
    """Memory, mapped, of which only the mapping is kept."""

    def take(out: Any) -> int:
        handle = c_void_p()
        return create(handle) or bind(mapping, out, handle, BLOCK) or int(rt.rtFreePhysical(handle))

    return take


TAKES: dict[str, Take] = {
    "rtMalloc": plain("rtMalloc", c_uint(2), c_uint16(0)),
    "small": plain("rtMalloc", c_uint(2), c_uint16(0), size=70000),
    "rtMallocCached": plain("rtMallocCached", c_uint(2), c_uint16(0)),
    "rtsMalloc": plain("rtsMalloc", c_int(0), c_int(0), None),
    "rtMemAlloc": plain("rtMemAlloc", c_int(0), c_int(0), None),
    "rtMemAllocManaged": plain("rtMemAllocManaged", c_uint(0), c_uint16(0)),
    "rtDvppMalloc": plain("rtDvppMalloc", c_uint16(0)),
    "rtDvppMallocWithFlag": plain("rtDvppMallocWithFlag", c_uint(0), c_uint16(0)),
    "rtMallocPhysical": create,
    "rtsMemMallocPhysical": plain("rtsMemMallocPhysical", c_int(0), None),
    "rtMemPoolMallocAsync": from_pool,
    "rtMapMem": mapped("rtMapMem"),
    "rtsMemMap": mapped("rtsMemMap"),
}
GIVES: dict[str, Give] = {
    "rtsMemFreePhysical": lambda handle: int(rt.rtsMemFreePhysical(byref(handle))),
    "rtMemPoolFreeAsync": lambda block: int(rt.rtMemPoolFreeAsync(block, None)),
}


def give(name: str) -> Give:
    return GIVES.get(name) or (lambda block: int(rt[name](block)))


def memory() -> tuple[int, int]:
    left, total = c_size_t(), c_size_t()
    rt.rtMemGetInfo(byref(left), byref(total))
    return left.value, total.value


def settle() -> None:
    rt.rtStreamSynchronize(None)
    if POOL.value is not None:
        rt.rtMemPoolTrimTo(POOL, c_uint64(0))


def fill(taking: str, giving: str) -> None:
    driving.fill(TAKES[taking], give(giving), c_void_p, memory, settle)


def fork() -> None:
    driving.hold_and_fork(TAKES["rtMalloc"], give("rtFree"), c_void_p)


def host() -> None:
    """rtMalloc can be asked for memory of the host: that costs the device nothing, however much it is."""
    say(code=int(rt.rtMalloc(byref(c_void_p()), c_uint64(BLOCK), c_uint(HOST), c_uint16(0))))


def mapping(map_: str, unmap: str, release: str) -> None:
    """Physical memory is charged as long as a reference or a mapping keeps it."""
    handle, address, size = c_void_p(), c_void_p(), 5 * BLOCK
    codes = [create(handle, size), bind(map_, address, handle, size), give(release)(handle)]
    say(codes=codes)
    say(codes=[int(rt.rtMemRetainAllocationHandle(address, byref(handle))), give(unmap)(address)])
    say(codes=[give(release)(handle)])


def pool() -> None:
    blocks = [c_void_p() for _ in range(3)]
    say(codes=[from_pool(block) for block in blocks])
    say(codes=[int(rt.rtMemPoolFreeAsync(block, None)) for block in blocks])
    say(codes=[int(rt.rtMemPoolTrimTo(POOL, c_uint64(0)))])
    codes = [from_pool(block) for block in blocks]
    say(codes=codes + [int(rt.rtMemPoolFreeAsync(block, None)) for block in blocks])
    say(codes=[int(rt.rtMemPoolDestroy(POOL))])


def used(setting: str) -> int:
    """Sets the device with `setting`; a function without flags does not look at the second argument."""
    return int(rt[setting](0, c_uint64(0)))


def reset(setting: str, resetting: str) -> None:
    """Set twice: the memory goes with the second reset, or with a forced one."""
    codes = [used(setting), used(setting), *(TAKES[name](c_void_p()) for name in ("rtMalloc", "small", "rtMallocPhysical")), int(rt[resetting](0))]
    say(codes=codes)
    if "Force" not in resetting:
        codes = [int(rt[resetting](0))]
    say(codes=codes)


def queries() -> None:
    shown = {"rtMemGetInfo": list(memory())}
    for name in ("rtMemGetInfoEx", "rtsMemGetInfo"):
        left, total = c_size_t(), c_size_t()
        rt[name](c_int(2), byref(left), byref(total))
        shown[name] = [left.value, total.value]
    say(**shown)


def shared(exporting: str, importing: str) -> None:
    """A handle goes out and comes back: nothing is charged twice, nor given back with the handle that came."""
    handle, again, name = c_void_p(), c_void_p(), c_uint64()
    codes = [create(handle), int(rt[exporting](handle, c_int(1), c_uint64(0), byref(name)))]
    codes.append(int(rt[importing](name, c_int(0), byref(again))))
    say(codes=codes)
    say(codes=[int(rt.rtFreePhysical(again))])


def imported(importing: str) -> None:
    say(code=int(rt[importing](c_uint64(77), c_int(0), byref(c_void_p()))))


def launches(*wanted: str) -> None:
    driving.launches(rt, wanted, {}, {}, lambda: rt.rtStreamSynchronize(None))


CASES: dict[str, Callable[..., None]] = {case.__name__: case for case in (fill, fork, host, mapping, pool, reset, queries, shared, imported, launches)}

if sys.argv[2] != "reset":
    rt.rtSetDevice(0)
CASES[sys.argv[2]](*sys.argv[3:])
