# SPDX-License-Identifier: Apache-2.0
"""What the hooks of the CUDA driver do. Memory: linear, pools, arrays, handles and mappings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from cuda_bench import Bench, size_t, u64, void
from cuda_row import BLOCK, BYTES, OLD, row, taken
from cuda_structs import Array, Array3D, MapInfo, OldArray, OldArray3D, PoolProps, Prop

# -- linear memory ----------------------------------------------------------------------------------------------------


@row("cuMemAlloc_v2", "cuMemAllocManaged", "cuMemAllocPitch_v2", expected=[BLOCK, 2, 0])
def linear(b: Bench, symbol: str) -> Any:
    b.begin()

    def allocate(bytes_: int) -> Callable[[], None]:
        row_bytes = size_t()
        more = {"cuMemAllocManaged": (size_t(bytes_), 1), "cuMemAllocPitch_v2": (ctypes.byref(row_bytes), size_t(1000), size_t(bytes_ // 1024), 4)}
        pointer = b.make(symbol, *more.get(symbol, (size_t(bytes_),)))
        return lambda: b("cuMemFree_v2", u64(pointer))

    return taken(b, allocate)


@row("cuMemAlloc", "cuMemAllocPitch", expected=[BLOCK, 2, 0])
def old_linear(b: Bench, symbol: str) -> Any:
    b.begin()

    def allocate(bytes_: int) -> Callable[[], None]:
        row_bytes = ctypes.c_uint(1024)
        more = {"cuMemAllocPitch": (ctypes.byref(row_bytes), 1000, bytes_ // 1024, 4)}
        pointer = b.make(symbol, *more.get(symbol, (bytes_,)), kind=ctypes.c_uint, start=OLD)
        return lambda: b("cuMemFree", ctypes.c_uint(pointer))

    return taken(b, allocate)


@row("cuMemFree_v2", "cuMemFreeAsync", "cuMemFreeAsync_ptsz", expected=0)
def freed(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        pointer = b.make("cuMemAlloc_v2", size_t(BYTES))
        b(symbol, u64(pointer), *(() if symbol == "cuMemFree_v2" else (void(0),)))
    return change[0]


@row("cuMemFree", expected=0)
def old_freed(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        b(symbol, ctypes.c_uint(b.make("cuMemAlloc", BYTES, kind=ctypes.c_uint, start=OLD)))
    return change[0]


# -- pools ------------------------------------------------------------------------------------------------------------


def pool(b: Bench, device: int = 0) -> int:
    return b.make("cuMemPoolCreate", ctypes.byref(PoolProps(type=1, location=(1, device))))


def keep_all(b: Bench, handle: int) -> None:
    most = u64(2**64 - 1)
    b("cuMemPoolSetAttribute", void(handle), 4, ctypes.byref(most))


@row("cuMemAllocAsync", "cuMemAllocAsync_ptsz", "cuMemAllocFromPoolAsync", "cuMemAllocFromPoolAsync_ptsz", expected=[BLOCK, 2, 0])
def pooled(b: Bench, symbol: str) -> Any:
    b.begin()
    more = (void(pool(b)), void(0)) if "FromPool" in symbol else (void(0),)

    def allocate(bytes_: int) -> Callable[[], None]:
        pointer = b.make(symbol, size_t(bytes_), *more)

        def free() -> None:
            b("cuMemFreeAsync", u64(pointer), void(0))
            b("cuCtxSynchronize")

        return free

    return taken(b, allocate)


@row("cuMemPoolCreate", expected=[0, BLOCK])
def pool_of_another_device(b: Bench, symbol: str) -> Any:
    """A pool is charged to the device that it was made for, whatever the calling thread's device is."""
    b.begin(1)
    b.begin(0)
    handle = pool(b, 1)
    with b.charged(0) as here, b.charged(1) as there:
        b.make("cuMemAllocFromPoolAsync", size_t(BYTES), void(handle), void(0))
    return [here[0], there[0]]


def idle_pool(b: Bench) -> int:
    handle = pool(b)
    keep_all(b, handle)
    b("cuMemFreeAsync", u64(b.make("cuMemAllocFromPoolAsync", size_t(BYTES), void(handle), void(0))), void(0))
    return handle


@row("cuMemPoolTrimTo", expected=[BLOCK, 0])
def trimmed(b: Bench, symbol: str) -> Any:
    b.begin()
    start = b.held()
    handle = idle_pool(b)
    kept = b.held() - start
    b(symbol, void(handle), size_t(0))
    return [kept, b.held() - start]


@row("cuMemPoolDestroy", expected=[BLOCK, 0])
def pool_destroyed(b: Bench, symbol: str) -> Any:
    b.begin()
    start = b.held()
    handle = idle_pool(b)
    kept = b.held() - start
    b(symbol, void(handle))
    return [kept, b.held() - start]


@row("cuCtxSynchronize", "cuCtxSynchronize_v2", "cuStreamSynchronize", "cuStreamSynchronize_ptsz", "cuEventSynchronize", expected=[BLOCK, 0])
def synchronised(b: Bench, symbol: str) -> Any:
    """What a pool gave back to the device at a synchronisation is not charged any more."""
    b.begin()
    start = b.held()
    event = void(b.make("cuEventCreate", 0))
    b("cuEventRecord", event, void(0))
    arguments = {"cuCtxSynchronize": (), "cuCtxSynchronize_v2": (void(0),), "cuEventSynchronize": (event,)}.get(symbol, (void(0),))
    b("cuMemFreeAsync", u64(b.make("cuMemAllocAsync", size_t(BYTES), void(0))), void(0))
    kept = b.held() - start
    b(symbol, *arguments)
    return [kept, b.held() - start]


# -- arrays -----------------------------------------------------------------------------------------------------------


@row("cuArrayCreate", "cuArrayCreate_v2", "cuArray3DCreate", "cuArray3DCreate_v2", expected=[BLOCK, 2, 0])
def array(b: Bench, symbol: str) -> Any:
    b.begin()

    def allocate(bytes_: int) -> Callable[[], None]:
        rows = bytes_ // 4096
        descriptors = {"cuArrayCreate": OldArray(1024, rows, 0x20, 1), "cuArray3DCreate": OldArray3D(1024, rows // 16, 16, 0x20, 1, 0)}
        newer = {"cuArrayCreate_v2": Array(1024, rows, 0x20, 1), "cuArray3DCreate_v2": Array3D(1024, rows // 16, 16, 0x20, 1, 0)}
        made = b.make(symbol, ctypes.byref({**descriptors, **newer}[symbol]))
        return lambda: b("cuArrayDestroy", void(made))

    return taken(b, allocate)


@row("cuMipmappedArrayCreate", expected=[BLOCK, 2, 0])
def mipmap(b: Bench, symbol: str) -> Any:
    b.begin()

    def allocate(bytes_: int) -> Callable[[], None]:
        made = b.make(symbol, ctypes.byref(Array3D(1024, bytes_ // 4096, 0, 0x20, 1, 0)), 1)
        return lambda: b("cuMipmappedArrayDestroy", void(made))

    return taken(b, allocate)


@row("cuArrayDestroy", "cuMipmappedArrayDestroy", expected=0)
def array_destroyed(b: Bench, symbol: str) -> Any:
    b.begin()
    descriptor = Array3D(1024, BYTES // 4096, 0, 0x20, 1, 0)
    with b.charged() as change:
        made = (
            b.make("cuArray3DCreate_v2", ctypes.byref(descriptor))
            if symbol == "cuArrayDestroy"
            else b.make("cuMipmappedArrayCreate", ctypes.byref(descriptor), 1)
        )
        b(symbol, void(made))
    return change[0]


# -- handles of physical memory, and mappings -------------------------------------------------------------------------


def handle(b: Bench, bytes_: int = BYTES) -> int:
    return b.make("cuMemCreate", size_t(bytes_), ctypes.byref(Prop(type=1, location=(1, 0))), u64(0))


def mapped(b: Bench, of: int, bytes_: int = BYTES) -> int:
    address = b.make("cuMemAddressReserve", size_t(bytes_), size_t(0), u64(0), u64(0))
    b("cuMemMap", u64(address), size_t(bytes_), size_t(0), u64(of), u64(0))
    return address


@row("cuMemCreate", expected=[BLOCK, 2, 0])
def created(b: Bench, symbol: str) -> Any:
    b.begin()

    def allocate(bytes_: int) -> Callable[[], None]:
        made = handle(b, bytes_)
        return lambda: b("cuMemRelease", u64(made))

    return taken(b, allocate)


@row("cuMemRelease", expected=0)
def released(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        b("cuMemRelease", u64(handle(b)))
    return change[0]


@row("cuMemMap", expected=BLOCK)
def held_by_its_mapping(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        made = handle(b)
        mapped(b, made)
        b("cuMemRelease", u64(made))
    return change[0]


@row("cuMemUnmap", expected=0)
def unmapped(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        made = handle(b)
        address = mapped(b, made)
        b("cuMemRelease", u64(made))
        b("cuMemUnmap", u64(address), size_t(BYTES))
    return change[0]


@row("cuMemRetainAllocationHandle", expected=BLOCK)
def retained(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        made = handle(b)
        address = mapped(b, made)
        b.make("cuMemRetainAllocationHandle", void(address))
        b("cuMemRelease", u64(made))
        b("cuMemUnmap", u64(address), size_t(BYTES))
    return change[0]


@row("cuMemMapArrayAsync", "cuMemMapArrayAsync_ptsz", expected=BLOCK)
def held_by_an_arrays_tiles(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        made = handle(b)
        b(symbol, ctypes.byref(MapInfo(operation=1, handle=made)), 1, void(0))
        b("cuMemRelease", u64(made))
    return change[0]


@row("cuMulticastBindMem", "cuMulticastBindMem_v2", "cuMulticastBindAddr", "cuMulticastBindAddr_v2", expected=BLOCK)
def held_by_a_multicast_object(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        made = handle(b)
        address = mapped(b, made)
        bind(b, symbol, made, address)
        b("cuMemUnmap", u64(address), size_t(BYTES))
        b("cuMemRelease", u64(made))
    return change[0]


def multicast(b: Bench) -> int:
    """The process's multicast object."""
    if not OBJECTS:
        OBJECTS.append(b.make("cuMulticastCreate", (ctypes.c_char * 64)()))
    return OBJECTS[0]


OBJECTS: list[int] = []


def bind(b: Bench, symbol: str, made: int, address: int) -> None:
    device = (0,) if symbol.endswith("_v2") else ()
    what = (u64(address),) if "Addr" in symbol else (u64(made), size_t(0))
    b(symbol, u64(multicast(b)), *device, size_t(0), *what, size_t(BYTES), u64(0))


@row("cuMulticastUnbind", expected=0)
def unbound(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        made = handle(b)
        bind(b, "cuMulticastBindMem", made, 0)
        b("cuMemRelease", u64(made))
        b("cuMulticastUnbind", u64(multicast(b)), 0, size_t(0), size_t(BYTES))
    return change[0]
