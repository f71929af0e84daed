# SPDX-License-Identifier: Apache-2.0
"""What a container does with HIP, one case a run: `hip_program.py LIBRARY CASE ARGUMENT...`."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

import driving
import hip_graphs
from driving import BLOCK, Give, Take, say
from hip_types import Channels, Extent, External, Grid, Image, Image3D, IpcHandle, Memory, Pitched, hip

RGBA, WANTED = Channels(32, 32, 32, 32, 2), Memory(1, 1, 1, 0, None, 0)
FLAT, DEEP = Image(1024, 512, 0x20, 4), Image3D(256, 256, 8, 0x20, 4, 0)
POOL = c_void_p()


def plain(name: str, *more: Any, size: int = BLOCK) -> Take:
    return lambda out: int(hip[name](byref(out), c_size_t(size), *more))


def pitched(name: str, *more: Any) -> Take:
    return lambda out: int(hip[name](byref(out), byref(c_size_t()), c_size_t(4000), c_size_t(2000), *more))


def image(name: str, *more: Any) -> Take:
    return lambda out: int(hip[name](byref(out), *more))


def volume(out: Any) -> int:
    block = Pitched()
    code = int(hip.hipMalloc3D(byref(block), Extent(4000, 100, 20)))
    out.value = block.pointer
    return code


def from_pool(out: Any) -> int:
    if POOL.value is None:
        hip.hipDeviceGetMemPool(byref(POOL), 0)
    return int(hip.hipMallocFromPoolAsync(byref(out), c_size_t(BLOCK), POOL, None))


def create(out: Any, size: int = BLOCK) -> int:
    return int(hip.hipMemCreate(byref(out), c_size_t(size), byref(WANTED), c_ulonglong(0)))


def mapped(out: Any, size: int = BLOCK) -> int:
    """Memory, mapped, of which only the mapping is kept."""
    handle = c_void_p()
    code = create(handle, size)
    if code:
        return code
    hip.hipMemAddressReserve(byref(out), c_size_t(size), c_size_t(0), None, c_ulonglong(0))
    code = int(hip.hipMemMap(out, c_size_t(size), c_size_t(0), handle, c_ulonglong(0)))
    return code or int(hip.hipMemRelease(handle))


def unmap(pointer: Any, size: int = BLOCK) -> int:
    return int(hip.hipMemUnmap(pointer, c_size_t(size)))


TAKES: dict[str, Take] = {
    "hipMalloc": plain("hipMalloc"),
    "small": plain("hipMalloc", size=70000),
    "hipExtMallocWithFlags": plain("hipExtMallocWithFlags", c_uint(0)),
    "hipMallocManaged": plain("hipMallocManaged", c_uint(1)),
    "hipMallocPitch": pitched("hipMallocPitch"),
    "hipMemAllocPitch": pitched("hipMemAllocPitch", c_uint(4)),
    "hipMalloc3D": volume,
    "hipMallocArray": image("hipMallocArray", byref(RGBA), c_size_t(1024), c_size_t(512), c_uint(0)),
    "hipMalloc3DArray": image("hipMalloc3DArray", byref(RGBA), Extent(256, 256, 8), c_uint(0)),
    "hipArrayCreate": image("hipArrayCreate", byref(FLAT)),
    "hipArray3DCreate": image("hipArray3DCreate", byref(DEEP)),
    "hipMallocMipmappedArray": image("hipMallocMipmappedArray", byref(RGBA), Extent(1024, 512, 1), c_uint(5), c_uint(0)),
    "hipMipmappedArrayCreate": image("hipMipmappedArrayCreate", byref(DEEP), c_uint(4)),
    "hipMallocAsync": plain("hipMallocAsync", None),
    "hipMallocFromPoolAsync": from_pool,
    "hipMemCreate": create,
    "hipMemMap": mapped,
}
GIVES: dict[str, Give] = {"hipFreeAsync": lambda block: int(hip.hipFreeAsync(block, None)), "hipMemUnmap": unmap}


def take(name: str) -> Take:
    return TAKES[name]


def give(name: str) -> Give:
    return GIVES.get(name) or (lambda block: int(hip[name](block)))


def memory() -> tuple[int, int]:
    left, total = c_size_t(), c_size_t()
    hip.hipMemGetInfo(byref(left), byref(total))
    return left.value, total.value


def fill(taking: str, giving: str) -> None:
    driving.fill(take(taking), give(giving), c_void_p, memory, lambda: hip.hipStreamSynchronize(None))


def fork(*_: str) -> None:
    driving.hold_and_fork(take("hipMalloc"), give("hipFree"), c_void_p)


def resolved(resolver: str) -> None:
    address = c_void_p()
    more = (60000, c_ulonglong(0), None) if resolver == "hipGetProcAddress" else (c_ulonglong(0), None)
    code = int(hip[resolver](b"hipMalloc", byref(address), *more))
    function = ctypes.CFUNCTYPE(c_int, c_void_p, c_size_t)(address.value or 0)
    say(code=code, refused=int(function(ctypes.addressof(c_void_p()), 200 << 20)), taken=int(function(ctypes.addressof(c_void_p()), BLOCK)))


def mapping() -> None:
    """Physical memory is charged as long as a reference or a mapping keeps it."""
    handle, address, size = c_void_p(), c_void_p(), 5 * BLOCK
    codes = [create(handle, size)]
    hip.hipMemAddressReserve(byref(address), c_size_t(size), c_size_t(0), None, c_ulonglong(0))
    codes.append(int(hip.hipMemMap(address, c_size_t(size), c_size_t(0), handle, c_ulonglong(0))))
    codes.append(int(hip.hipMemRelease(handle)))
    say(codes=codes)
    codes = [int(hip.hipMemRetainAllocationHandle(byref(handle), address)), unmap(address, size)]
    say(codes=codes)
    say(codes=[int(hip.hipMemRelease(handle))])


def pool() -> None:
    hip.hipMemPoolCreate(byref(POOL), byref((c_int * 32)(1, 0, 1, 0)))
    blocks = [c_void_p() for _ in range(3)]
    say(codes=[from_pool(block) for block in blocks])
    say(codes=[int(hip.hipFreeAsync(block, None)) for block in blocks])
    say(codes=[int(hip.hipMemPoolTrimTo(POOL, c_size_t(0)))])
    codes = [from_pool(block) for block in blocks]
    say(codes=codes + [int(hip.hipFreeAsync(block, None)) for block in blocks])
    say(codes=[int(hip.hipMemPoolDestroy(POOL))])


def reset(symbol: str, *argument: str) -> None:
    for name in ("hipMalloc", "small", "hipMemCreate", "hipMallocArray", "hipMallocAsync"):
        take(name)(c_void_p())
    hip[symbol](*map(int, argument))
    say(free=memory()[0])


def queries() -> None:
    device = c_size_t()
    hip.hipDeviceTotalMem(byref(device), 0)
    shown = {"hipMemGetInfo": list(memory()), "hipDeviceTotalMem": device.value}
    for name, place in (("hipGetDeviceProperties", 256), ("hipGetDevicePropertiesR0000", 256), ("hipGetDevicePropertiesR0600", 288)):
        properties = ctypes.create_string_buffer(2048)
        hip[name](properties, 0)
        shown[name] = c_size_t.from_buffer(properties, place).value
    say(**shown)


# -- between processes ------------------------------------------------------------------------------------------------


def ipc() -> tuple[Take, Take, Give]:
    mine = c_void_p()
    TAKES["hipMalloc"](mine)

    def own(out: Any) -> int:
        handle = IpcHandle()
        return int(hip.hipIpcGetMemHandle(byref(handle), mine)) or int(hip.hipIpcOpenMemHandle(byref(out), handle, 1))

    def foreign(out: Any, size: int = 3 * BLOCK) -> int:
        return int(hip.hipIpcOpenMemHandle(byref(out), IpcHandle((c_ulonglong * 8)(1, 2, size)), 1))

    return own, foreign, lambda pointer: int(hip.hipIpcCloseMemHandle(pointer))


def a_file(size: int) -> int:
    file = os.memfd_create("another container's memory")
    os.ftruncate(file, size)
    return file


def exported() -> int:
    handle, file = c_void_p(), c_int()
    create(handle)
    assert hip.hipMemExportToShareableHandle(byref(file), handle, 1, c_ulonglong(0)) == 0
    return file.value


def shareable() -> tuple[Take, Take, Give]:
    def open_file(file: int) -> Take:
        return lambda out: int(hip.hipMemImportFromShareableHandle(byref(out), c_void_p(file), 1))

    return open_file(exported()), open_file(a_file(3 * BLOCK)), give("hipMemRelease")


def external() -> tuple[Take, Take, Give]:
    def open_file(file: int, size: int) -> Take:
        return lambda out: int(hip.hipImportExternalMemory(byref(out), byref(External(1, (c_ulonglong * 2)(file), size))))

    return open_file(exported(), BLOCK), open_file(a_file(3 * BLOCK), 3 * BLOCK), give("hipDestroyExternalMemory")


def shared(way: str) -> None:
    """This container's own memory comes back to it, then another's: twice; the second time is too much. Then all is closed."""
    own, foreign, close = {"ipc": ipc, "shareable": shareable, "external": external}[way]()
    mine, theirs, more, most = (c_void_p() for _ in range(4))
    say(codes=[own(mine)])
    say(codes=[foreign(theirs), foreign(more), foreign(most)])
    say(codes=[foreign(c_void_p())])
    say(codes=[close(mine), close(theirs), close(more), close(most)])


def launches(*wanted: str) -> None:
    one = Grid(1, 1, 1)
    driving.launches(hip, wanted, {"g": hip_graphs.empty()}, {"d": one}, lambda: hip.hipDeviceSynchronize())


CASES: dict[str, Callable[..., None]] = {
    **{case.__name__: case for case in (fill, fork, resolved, mapping, pool, reset, queries, shared, launches)},
    "graph": hip_graphs.graph,
    "forgotten": hip_graphs.forgotten,
}

hip.hipSetDevice(0)
CASES[sys.argv[2]](*sys.argv[3:])
