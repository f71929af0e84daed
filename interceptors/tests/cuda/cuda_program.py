# SPDX-License-Identifier: Apache-2.0
"""A program that uses the CUDA driver API as any program does: through dlopen, with whatever is preloaded before it.

Run as `python cuda_program.py SCENARIO [ARGUMENTS…]` with a fake driver in LD_LIBRARY_PATH; prints one JSON object. It knows
nothing of the library under test.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cuda_calls import DEVICE, MIB, PATHS, POOL, CudaError, Free, Prop, array, begin, call, driver, info, linear, make, size_t, u64, void

# -- scenarios --------------------------------------------------------------------------------------------------------


def fill(allocate: Callable[[int], Free], bytes_: int, most: int = 10_000) -> tuple[list[Free], int]:
    """Allocates until the driver refuses; its code, or 0 when `most` blocks were given."""
    blocks: list[Free] = []
    for _ in range(most):
        try:
            blocks.append(allocate(bytes_))
        except CudaError as error:
            return blocks, error.code
    return blocks, 0


def exhaust(path: str, bytes_: str) -> dict[str, Any]:
    """Fills the device by one path, frees all, and fills it again: the second time must give as much."""
    begin()
    at_start = info()
    blocks, code = fill(PATHS[path], int(bytes_))
    full = info()
    count = len(blocks)
    while blocks:
        blocks.pop()()
    call("cuCtxSynchronize")
    for pool in POOL.values():
        call("cuMemPoolTrimTo", void(pool), size_t(0))
    after = info()
    again, code_again = fill(PATHS[path], int(bytes_))
    second = len(again)
    while again:
        again.pop()()
    call("cuCtxSynchronize")
    return {"start": at_start, "full": full, "after": after, "count": count, "code": code, "second": second, "code_again": code_again, "end": info()}


def race(path: str, bytes_: str, threads: str, rounds: str) -> dict[str, Any]:
    """Many threads fill and free at once."""
    codes: set[int] = set()
    try:
        context = begin()
    except CudaError as error:  # others were quicker: not even room for a context
        return {"codes": [error.code]}

    def work() -> None:
        call("cuCtxSetCurrent", void(context))
        for _ in range(int(rounds)):
            blocks, code = fill(PATHS[path], int(bytes_))
            codes.add(code)
            while blocks:
                blocks.pop()()

    workers = [threading.Thread(target=work) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    call("cuCtxSynchronize")
    return {"codes": sorted(codes), "free": info()[0]}


def hold(path: str, bytes_: str) -> dict[str, Any]:
    """Allocates one block, says so, and holds it until its stdin ends."""
    begin()
    code = 0
    try:
        PATHS[path](int(bytes_))
    except CudaError as error:
        code = error.code
    print(json.dumps({"code": code, "info": info()}), flush=True)
    sys.stdin.read()
    return {}


def view(device: str = "0") -> dict[str, Any]:
    """What the queries say."""
    call("cuInit", 0)
    total = make("cuDeviceTotalMem_v2", size_t, int(device))
    try:
        begin(int(device))
    except CudaError as error:
        return {"total": total, "refused": error.code}
    return {"total": total, "info": info()}


def without_context() -> dict[str, Any]:
    """Calls of a thread that has no context: the driver's own errors."""
    codes = {}
    for name, arguments in {"cuMemAlloc_v2": (u64(MIB),), "cuMemAllocManaged": (u64(MIB), 1), "cuMemAllocAsync": (u64(MIB), void(0))}.items():
        before = u64()
        codes[f"{name} before cuInit"] = getattr(driver, name)(ctypes.byref(before), *arguments)
    call("cuInit", 0)
    for name, arguments in {"cuMemAlloc_v2": (u64(MIB),), "cuMemAllocManaged": (u64(MIB), 1), "cuMemAllocAsync": (u64(MIB), void(0))}.items():
        after = u64()
        codes[f"{name} without context"] = getattr(driver, name)(ctypes.byref(after), *arguments)
    return {"codes": codes}


def lifetimes() -> dict[str, Any]:
    """Contexts come and go, with memory left in them."""
    begin()
    second = make("cuDevicePrimaryCtxRetain", void, 0)
    once = info()
    linear(64 * MIB)
    array(64 * MIB)
    filled = info()
    call("cuDevicePrimaryCtxRelease_v2", 0)
    still = info()
    call("cuDevicePrimaryCtxRelease_v2", 0)
    call("cuCtxSetCurrent", void(begin()))
    fresh = info()
    linear(64 * MIB)
    call("cuDevicePrimaryCtxReset_v2", 0)
    begin()
    return {"second": second, "once": once, "filled": filled, "still": still, "fresh": fresh, "reset": info()}


def references() -> dict[str, Any]:
    """A handle's memory goes with its last reference or mapping, whichever that is."""
    begin()
    prop, size = Prop(type=1, location=(DEVICE, 0)), 64 * MIB
    start = info()[0]
    steps = []
    made = make("cuMemCreate", u64, size_t(size), ctypes.byref(prop), u64(0))
    address = make("cuMemAddressReserve", u64, size_t(size), size_t(0), u64(0), u64(0))
    call("cuMemMap", u64(address), size_t(size), size_t(0), u64(made), u64(0))
    steps.append(start - info()[0])
    retained = make("cuMemRetainAllocationHandle", u64, void(address))
    call("cuMemRelease", u64(made))
    steps.append(start - info()[0])
    call("cuMemUnmap", u64(address), size_t(size))
    steps.append(start - info()[0])
    call("cuMemRelease", u64(retained))
    steps.append(start - info()[0])
    return {"charged": steps}


def odd_frees() -> dict[str, Any]:
    """Freeing twice, and what was never allocated: the driver's errors, and nothing else happens."""
    begin()
    start = info()
    pointer = make("cuMemAlloc_v2", u64, size_t(64 * MIB))
    codes = [driver.cuMemFree_v2(u64(address)) for address in (pointer, pointer, 0x1234000, 2**63)]
    codes += [driver.cuMemRelease(u64(77)), driver.cuArrayDestroy(void(0x7000))]
    return {"start": start, "end": info(), "codes": codes}


def idle_pool() -> dict[str, Any]:
    """A pool that keeps what was freed, and an allocation that needs it."""
    begin()
    start = info()
    pool, most = make("cuDeviceGetDefaultMemPool", void, 0), u64(2**64 - 1)
    call("cuMemPoolSetAttribute", void(pool), 4, ctypes.byref(most))
    pointer = make("cuMemAllocAsync", u64, size_t(512 * MIB), void(0))
    call("cuMemFreeAsync", u64(pointer), void(0))
    call("cuCtxSynchronize")
    kept = info()
    linear(512 * MIB)
    return {"start": start, "kept": kept, "end": info()}


def repeated(count: str) -> dict[str, Any]:
    """The same lookup again and again, as ctypes users and RTLD_NEXT callers do."""
    found = {ctypes.cast(ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2, void).value for _ in range(int(count))}
    return {"addresses": len(found), "none": None in found}


def resolve() -> dict[str, Any]:
    """What cuGetProcAddress answers for each name, and whose code it is: the object file of each address."""
    call("cuInit", 0)
    names, versions = json.loads(os.environ["NAMES"]), json.loads(os.environ["VERSIONS"])
    answers: dict[str, str] = {}
    for name in names:
        for version in versions:
            for flags in (0, 1, 2):
                for resolver in ("cuGetProcAddress", "cuGetProcAddress_v2"):
                    out = void()
                    extra = (None,) if resolver.endswith("_v2") else ()
                    code = getattr(driver, resolver)(name.encode(), ctypes.byref(out), version, u64(flags), *extra)
                    if code == 0 and out.value:
                        answers[f"{name} {version} {flags} {resolver}"] = _owner(out.value)
    return {"answers": answers}


class DlInfo(ctypes.Structure):
    _fields_ = (("file", ctypes.c_char_p), ("base", void), ("symbol", ctypes.c_char_p), ("address", void))


def _owner(address: int) -> str:
    said = DlInfo()
    ctypes.CDLL(None).dladdr(void(address), ctypes.byref(said))
    return f"{os.path.basename(said.file.decode())}:{(said.symbol or b'?').decode()}"


class Config(ctypes.Structure):
    _fields_ = (("sizes", ctypes.c_uint * 7), ("stream", void), ("attributes", void), ("count", ctypes.c_uint))


def launch(kind: str, count: str) -> dict[str, Any]:
    """Runs many kernels, in one of the ways to run one, and says how long it took."""
    begin()
    module = make("cuModuleLoadData", void, ctypes.c_char_p(b"image"))
    function, stream, one = make("cuModuleGetFunction", void, void(module), ctypes.c_char_p(b"kernel")), make("cuStreamCreate", void, 1), (1,) * 6
    graph, executable = void(), 0
    config = Config(sizes=(*one, 0), stream=stream)

    def plain(name: str = "cuLaunchKernel") -> None:
        call(name, void(function), *one, 0, void(stream), None, None)

    if kind == "cuGraphLaunch":
        call("cuStreamBeginCapture_v2", void(stream), 1)
        plain()
        call("cuStreamEndCapture", void(stream), ctypes.byref(graph))
        executable = make("cuGraphInstantiateWithFlags", void, graph, u64(0))
    ways: dict[str, Callable[[], None]] = {
        "cuLaunchKernelEx": lambda: call("cuLaunchKernelEx", ctypes.byref(config), void(function), None, None),
        "cuLaunchCooperativeKernel": lambda: call("cuLaunchCooperativeKernel", void(function), *one, 0, void(stream), None),
        "cuGraphLaunch": lambda: call("cuGraphLaunch", void(executable), void(stream)),
        "cuLaunchGridAsync": lambda: call("cuLaunchGridAsync", void(function), 1, 1, void(stream)),
    }
    start = time.monotonic()
    for number in range(int(count)):
        ways.get(kind, lambda: plain(kind))()
        if number % 4 == 3:  # as a training loop does: what a kernel costs can be learnt on the way
            call("cuStreamSynchronize", void(stream))
    return {"seconds": time.monotonic() - start}


def beside_capture(count: str) -> dict[str, Any]:
    """Launches in one stream while another one is being captured in the global mode."""
    begin()
    module = make("cuModuleLoadData", void, ctypes.c_char_p(b"image"))
    function, one = make("cuModuleGetFunction", void, void(module), ctypes.c_char_p(b"kernel")), (1,) * 6
    captured, running, graph = make("cuStreamCreate", void, 1), make("cuStreamCreate", void, 1), void()
    call("cuStreamBeginCapture_v2", void(captured), 0)
    for _ in range(int(count)):
        call("cuLaunchKernel", void(function), *one, 0, void(captured), None, None)
        call("cuLaunchKernel", void(function), *one, 0, void(running), None, None)
        call("cuStreamSynchronize", void(running))
    code = driver.cuStreamEndCapture(void(captured), ctypes.byref(graph))
    nodes = size_t()
    if code == 0:
        call("cuGraphGetNodes", graph, None, ctypes.byref(nodes))
    return {"code": code, "nodes": nodes.value}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (exhaust, race, hold, view, without_context, launch, beside_capture, lifetimes, odd_frees, idle_pool, references, repeated, resolve)
}


@contextmanager
def _said(name: str) -> Iterator[dict[str, Any]]:
    result: dict[str, Any] = {"scenario": name}
    yield result
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    with _said(sys.argv[1]) as result:
        result.update(SCENARIOS[sys.argv[1]](*sys.argv[2:]))
