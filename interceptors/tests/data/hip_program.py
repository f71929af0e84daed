# SPDX-License-Identifier: Apache-2.0
"""What a container does with HIP, one case a run: `hip_program.py LIBRARY CASE`. Says a line of JSON, waits for a line, goes on."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

hip = ctypes.CDLL(sys.argv[1])
BLOCK = 8 << 20


class Extent(ctypes.Structure):
    _fields_ = [(name, c_size_t) for name in ("width", "height", "depth")]


class Pitched(ctypes.Structure):
    _fields_ = [("pointer", c_void_p), ("pitch", c_size_t), ("xsize", c_size_t), ("ysize", c_size_t)]


class Grid(ctypes.Structure):
    _fields_ = [(name, c_uint) for name in ("x", "y", "z")]


class Config(ctypes.Structure):
    _fields_ = [("grid", Grid), ("block", Grid), ("shared", c_size_t), ("stream", c_void_p), ("attributes", c_void_p), ("count", c_uint)]


class Channels(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("x", "y", "z", "w", "kind")]


class Image(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("format", c_int), ("channels", c_uint)]


class Image3D(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("depth", c_size_t), ("format", c_int), ("channels", c_uint), ("flags", c_uint)]


class Memory(ctypes.Structure):
    _fields_ = [("type", c_int), ("handle_type", c_int), ("location_type", c_int), ("location", c_int), ("win32", c_void_p), ("flags", c_int)]


RGBA = Channels(32, 32, 32, 32, 2)
WANTED = Memory(1, 1, 1, 0, None, 0)


def plain(name: str, *more: Any, size: int = BLOCK) -> Callable[[Any], int]:
    return lambda out: int(hip[name](byref(out), c_size_t(size), *more))


def pitched(name: str, *more: Any) -> Callable[[Any], int]:
    return lambda out: int(hip[name](byref(out), byref(c_size_t()), c_size_t(4000), c_size_t(2000), *more))


def image(name: str, *more: Any) -> Callable[[Any], int]:
    return lambda out: int(hip[name](byref(out), *more))


def volume(out: Any) -> int:
    block = Pitched()
    code = int(hip.hipMalloc3D(byref(block), Extent(4000, 100, 20)))
    out.value = block.pointer
    return code


def from_pool(out: Any) -> int:
    pool = c_void_p()
    hip.hipDeviceGetMemPool(byref(pool), 0)
    return int(hip.hipMallocFromPoolAsync(byref(out), c_size_t(BLOCK), pool, None))


def resolved(out: Any) -> int:
    address = c_void_p()
    code = int(hip.hipGetProcAddress(b"hipMalloc", byref(address), 60000, c_ulonglong(0), None))
    return code or int(ctypes.CFUNCTYPE(c_int, c_void_p, c_size_t)(address.value or 0)(ctypes.addressof(out), BLOCK))


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


FLAT, DEEP = Image(1024, 512, 0x20, 4), Image3D(256, 256, 8, 0x20, 4, 0)
ALLOCATORS: dict[str, tuple[Callable[[Any], int], Callable[[Any], int]]] = {
    "hipMalloc": (plain("hipMalloc"), hip.hipFree),
    "small": (plain("hipMalloc", size=70000), hip.hipFree),
    "hipExtMallocWithFlags": (plain("hipExtMallocWithFlags", c_uint(0)), hip.hipFree),
    "hipMallocManaged": (plain("hipMallocManaged", c_uint(1)), hip.hipFree),
    "hipMallocPitch": (pitched("hipMallocPitch"), hip.hipFree),
    "hipMemAllocPitch": (pitched("hipMemAllocPitch", c_uint(4)), hip.hipFree),
    "hipMalloc3D": (volume, hip.hipFree),
    "hipMallocArray": (image("hipMallocArray", byref(RGBA), c_size_t(1024), c_size_t(512), c_uint(0)), hip.hipFreeArray),
    "hipMalloc3DArray": (image("hipMalloc3DArray", byref(RGBA), Extent(256, 256, 8), c_uint(0)), hip.hipFreeArray),
    "hipArrayCreate": (image("hipArrayCreate", byref(FLAT)), hip.hipArrayDestroy),
    "hipArray3DCreate": (image("hipArray3DCreate", byref(DEEP)), hip.hipArrayDestroy),
    "hipMallocMipmappedArray": (image("hipMallocMipmappedArray", byref(RGBA), Extent(1024, 512, 1), c_uint(5), c_uint(0)), hip.hipFreeMipmappedArray),
    "hipMipmappedArrayCreate": (image("hipMipmappedArrayCreate", byref(DEEP), c_uint(4)), hip.hipMipmappedArrayDestroy),
    "hipMallocAsync": (plain("hipMallocAsync", None), lambda pointer: int(hip.hipFreeAsync(pointer, None))),
    "hipMallocFromPoolAsync": (from_pool, hip.hipFree),
    "hipMemCreate": (create, hip.hipMemRelease),
    "mapped": (mapped, unmap),
    "resolved": (resolved, hip.hipFree),
}


def memory() -> tuple[int, int]:
    left, total = c_size_t(), c_size_t()
    hip.hipMemGetInfo(byref(left), byref(total))
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
    hip.hipStreamSynchronize(None)
    left, total = memory()
    say(codes=codes, free=left, total=total)


def released() -> None:
    out = c_void_p()
    mapped(out, 5 * BLOCK)
    say(free=memory()[0])
    unmap(out, 5 * BLOCK)
    say(free=memory()[0])


def reset() -> None:
    for case in ("hipMalloc", "small", "hipMemCreate", "hipMallocArray"):
        ALLOCATORS[case][0](c_void_p())
    hip.hipDeviceReset()
    say(free=memory()[0])


def queries() -> None:
    device = c_size_t()
    hip.hipDeviceTotalMem(byref(device), 0)
    old, new = ctypes.create_string_buffer(2048), ctypes.create_string_buffer(2048)
    hip.hipGetDeviceProperties(old, 0)
    hip.hipGetDevicePropertiesR0600(new, 0)
    say(info=list(memory()), device=device.value, R0000=c_size_t.from_buffer(old, 256).value, R0600=c_size_t.from_buffer(new, 288).value)


def launch(name: str) -> None:
    one, config = Grid(1, 1, 1), Config(Grid(1, 1, 1), Grid(1, 1, 1), 0, None, None, 0)
    function = c_void_p(4096)
    ones = [c_uint(1)] * 6
    calls: dict[str, tuple[Any, ...]] = {
        "hipLaunchKernel": (function, one, one, None, c_size_t(0), None),
        "hipLaunchKernel_spt": (function, one, one, None, c_size_t(0), None),
        "hipExtLaunchKernel": (function, one, one, None, c_size_t(0), None, None, None, c_int(0)),
        "hipModuleLaunchKernel": (function, *ones, c_uint(0), None, None, None),
        "hipLaunchKernelExC": (byref(config), function, None),
        "hipGraphLaunch": (function, None),
    }
    began = time.monotonic()
    codes = set()
    for number in range(50):
        codes.add(int(hip[name](*calls[name])))
        if number % 5 == 4:
            hip.hipDeviceSynchronize()
    say(codes=sorted(codes), seconds=time.monotonic() - began)


def main() -> None:
    hip.hipSetDevice(0)
    case = sys.argv[2]
    if case.startswith("launch "):
        launch(case.removeprefix("launch "))
    else:
        {"released": released, "reset": reset, "queries": queries}.get(case, lambda: fill(case))()


main()
