# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver API by ctypes, as far as the tests' program needs it, and every way to get device memory from it.

Importing this loads libcuda.so.1: only a program that runs in a container of the tests does so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

MIB = 1 << 20
OUT_OF_MEMORY = 2
DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
MEM_ALLOC_NODE = 10

u64, size_t, void = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p


class CudaError(Exception):
    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: {code}")
        self.code = code


class Prop(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", ctypes.c_int * 2), ("win32", void), ("flags", ctypes.c_ubyte * 8))


class PoolProps(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("location", ctypes.c_int * 2),
        ("win32", void),
        ("most", size_t),
        ("rest", ctypes.c_ubyte * 56),
    )


class AllocNode(ctypes.Structure):
    _fields_ = (("pool", PoolProps), ("access", void), ("accesses", size_t), ("bytes", size_t), ("pointer", u64))


class Node(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("reserved", ctypes.c_int * 3), ("alloc", AllocNode), ("rest", ctypes.c_ubyte * 120))


class Array(ctypes.Structure):
    _fields_ = (("width", size_t), ("height", size_t), ("format", ctypes.c_int), ("channels", ctypes.c_uint))


class Array3D(ctypes.Structure):
    _fields_ = (("width", size_t), ("height", size_t), ("depth", size_t), ("format", ctypes.c_int), ("channels", ctypes.c_uint), ("flags", ctypes.c_uint))


driver = ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: Any) -> None:
    code = getattr(driver, name)(*arguments)
    if code != 0:
        raise CudaError(name, code)


def make(name: str, kind: type = void, *arguments: Any) -> int:
    """Calls a function whose first argument is what it makes."""
    out = kind()
    call(name, ctypes.byref(out), *arguments)
    return int(out.value or 0)


def begin(device: int = 0) -> int:
    call("cuInit", 0)
    context = make("cuDevicePrimaryCtxRetain", void, device)
    call("cuCtxSetCurrent", void(context))
    return context


def info() -> tuple[int, int]:
    free, total = size_t(), size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


# -- every way to get device memory: a function that takes `bytes` and answers how to give it back ---------------------

Free = Callable[[], None]


def linear(bytes_: int) -> Free:
    pointer = make("cuMemAlloc_v2", u64, size_t(bytes_))
    return lambda: call("cuMemFree_v2", u64(pointer))


def pitch(bytes_: int) -> Free:
    pointer, row = u64(), size_t()
    call("cuMemAllocPitch_v2", ctypes.byref(pointer), ctypes.byref(row), size_t(1000), size_t(bytes_ // 1024), 4)
    return lambda: call("cuMemFree_v2", pointer)


def managed(bytes_: int) -> Free:
    pointer = make("cuMemAllocManaged", u64, size_t(bytes_), 1)
    return lambda: call("cuMemFree_v2", u64(pointer))


def _async(suffix: str) -> Callable[[int], Free]:
    def allocate(bytes_: int) -> Free:
        pointer = make(f"cuMemAllocAsync{suffix}", u64, size_t(bytes_), void(0))
        return lambda: call(f"cuMemFreeAsync{suffix}", u64(pointer), void(0))

    return allocate


POOL: dict[str, int] = {}


def _from_pool(suffix: str) -> Callable[[int], Free]:
    def allocate(bytes_: int) -> Free:
        if not POOL:
            props = PoolProps(type=1, location=(DEVICE, 0))
            POOL["it"] = make("cuMemPoolCreate", void, ctypes.byref(props))
        pointer = make(f"cuMemAllocFromPoolAsync{suffix}", u64, size_t(bytes_), void(POOL["it"]), void(0))
        return lambda: call(f"cuMemFreeAsync{suffix}", u64(pointer), void(0))

    return allocate


def vmm(bytes_: int) -> Free:
    """As an allocator with expandable segments does it: the handle goes at once, the mapping holds the memory."""
    bytes_ = (bytes_ + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
    prop = Prop(type=1, location=(DEVICE, 0))
    handle = make("cuMemCreate", u64, size_t(bytes_), ctypes.byref(prop), u64(0))
    address = make("cuMemAddressReserve", u64, size_t(bytes_), size_t(0), u64(0), u64(0))
    call("cuMemMap", u64(address), size_t(bytes_), size_t(0), u64(handle), u64(0))
    call("cuMemRelease", u64(handle))

    def free() -> None:
        call("cuMemUnmap", u64(address), size_t(bytes_))
        call("cuMemAddressFree", u64(address), size_t(bytes_))

    return free


def handle(bytes_: int) -> Free:
    prop = Prop(type=1, location=(DEVICE, 0))
    made = make("cuMemCreate", u64, size_t((bytes_ + 2 * MIB - 1) // (2 * MIB) * 2 * MIB), ctypes.byref(prop), u64(0))
    return lambda: call("cuMemRelease", u64(made))


def multicast(bytes_: int) -> Free:
    """Bound to a multicast object, and with no other reference left."""
    bytes_ = (bytes_ + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
    prop = Prop(type=1, location=(DEVICE, 0))
    handle = make("cuMemCreate", u64, size_t(bytes_), ctypes.byref(prop), u64(0))
    made = make("cuMulticastCreate", u64, (ctypes.c_char * 64)())
    call("cuMulticastBindMem", u64(made), size_t(0), u64(handle), size_t(0), size_t(bytes_), u64(0))
    call("cuMemRelease", u64(handle))
    return lambda: call("cuMulticastUnbind", u64(made), 0, size_t(0), size_t(bytes_))


def array(bytes_: int) -> Free:
    descriptor = Array(1024, max(1, bytes_ // 4096), 0x20, 1)
    made = make("cuArrayCreate_v2", void, ctypes.byref(descriptor))
    return lambda: call("cuArrayDestroy", void(made))


def array3d(bytes_: int) -> Free:
    descriptor = Array3D(256, 256, max(1, bytes_ // (256 * 256 * 4)), 0x20, 1, 0)
    made = make("cuArray3DCreate_v2", void, ctypes.byref(descriptor))
    return lambda: call("cuArrayDestroy", void(made))


def layered(bytes_: int) -> Free:
    descriptor = Array3D(512, 512, max(1, bytes_ // (512 * 512 * 4)), 0x08, 4, 1)
    made = make("cuArray3DCreate_v2", void, ctypes.byref(descriptor))
    return lambda: call("cuArrayDestroy", void(made))


def mipmap(bytes_: int) -> Free:
    descriptor = Array3D(1024, max(1, bytes_ // 4096), 0, 0x20, 1, 0)
    made = make("cuMipmappedArrayCreate", void, ctypes.byref(descriptor), 5)
    return lambda: call("cuMipmappedArrayDestroy", void(made))


def _launched(graph: int, pointer: int) -> Free:
    """Takes the memory; what a graph allocates and does not free itself is the program's to free."""
    executable, launched = 0, False

    def free() -> None:
        if launched:
            call("cuMemFree_v2", u64(pointer))
        if executable:
            call("cuGraphExecDestroy", void(executable))
        call("cuGraphDestroy", void(graph))
        call("cuDeviceGraphMemTrim", 0)

    try:
        executable = make("cuGraphInstantiateWithFlags", void, void(graph), u64(0))
        call("cuGraphLaunch", void(executable), void(0))
        launched = True
        call("cuCtxSynchronize")
    except CudaError:
        free()
        raise
    return free


def graph_node(bytes_: int) -> Free:
    graph, node = make("cuGraphCreate", void, 0), void()
    params = AllocNode(pool=PoolProps(type=1, location=(DEVICE, 0)), bytes=bytes_)
    call("cuGraphAddMemAllocNode", ctypes.byref(node), void(graph), None, size_t(0), ctypes.byref(params))
    return _launched(graph, params.pointer)


def graph_add_node(bytes_: int) -> Free:
    graph, node = make("cuGraphCreate", void, 0), void()
    params = Node(type=MEM_ALLOC_NODE, alloc=AllocNode(pool=PoolProps(type=1, location=(DEVICE, 0)), bytes=bytes_))
    call("cuGraphAddNode_v2", ctypes.byref(node), void(graph), None, None, size_t(0), ctypes.byref(params))
    return _launched(graph, params.alloc.pointer)


def captured(bytes_: int) -> Free:
    stream = make("cuStreamCreate", void, 0)
    graph = void()
    call("cuStreamBeginCapture_v2", void(stream), 1)
    pointer = make("cuMemAllocAsync", u64, size_t(bytes_), void(stream))
    call("cuStreamEndCapture", void(stream), ctypes.byref(graph))
    call("cuStreamDestroy_v2", void(stream))
    return _launched(int(graph.value or 0), pointer)


PATHS: dict[str, Callable[[int], Free]] = {
    "cuMemAlloc_v2": linear,
    "cuMemAllocPitch_v2": pitch,
    "cuMemAllocManaged": managed,
    "cuMemAllocAsync": _async(""),
    "cuMemAllocAsync_ptsz": _async("_ptsz"),
    "cuMemAllocFromPoolAsync": _from_pool(""),
    "cuMemAllocFromPoolAsync_ptsz": _from_pool("_ptsz"),
    "cuMemCreate": handle,
    "cuMemMap": vmm,
    "cuMulticastBindMem": multicast,
    "cuArrayCreate_v2": array,
    "cuArray3DCreate_v2": array3d,
    "cuArray3DCreate_v2 layered": layered,
    "cuMipmappedArrayCreate": mipmap,
    "cuGraphAddMemAllocNode": graph_node,
    "cuGraphAddNode_v2": graph_add_node,
    "cuMemAllocAsync captured": captured,
}
