# SPDX-License-Identifier: Apache-2.0
"""Lets the driver fail in the middle of each way to get memory, and of each way to give it back; prints one JSON object.

Run as `python faults_program.py STATE` with HAMI_FAKE_FAULTS="" in the environment. Answers, per step, the code that the program
got, and the MiB by which what is charged is more than what the device really gave: 0, or the books are wrong.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cuda_calls as calls
from cuda_bench import MIB, Bench, integer, size_t, u64, void

BYTES = 48 * MIB
FAILS: dict[str, tuple[str, ...]] = {
    "cuMemMap": ("cuMemCreate", "cuMemMap"),
    "cuMulticastBindMem": ("cuMemCreate", "cuMulticastBindMem"),
    "cuArray3DCreate_v2 layered": ("cuArray3DCreate_v2",),
    "cuGraphAddMemAllocNode": ("cuGraphAddMemAllocNode", "cuGraphInstantiateWithFlags", "cuGraphLaunch"),
    "cuGraphAddNode_v2": ("cuGraphAddNode_v2", "cuGraphLaunch"),
    "cuMemAllocAsync captured": ("cuStreamBeginCapture_v2", "cuMemAllocAsync", "cuStreamEndCapture", "cuGraphLaunch"),
    "cuMemAllocAsync": ("cuMemAllocAsync", "cuDeviceGetMemPool"),
}
FREES = {
    "cuMemAlloc_v2": "cuMemFree_v2",
    "cuMemAllocPitch_v2": "cuMemFree_v2",
    "cuMemAllocManaged": "cuMemFree_v2",
    "cuMemAllocAsync": "cuMemFreeAsync",
    "cuMemAllocFromPoolAsync_ptsz": "cuMemFreeAsync_ptsz",
    "cuMemCreate": "cuMemRelease",
    "cuMemMap": "cuMemUnmap",
    "cuMulticastBindMem": "cuMulticastUnbind",
    "cuArrayCreate_v2": "cuArrayDestroy",
    "cuMipmappedArrayCreate": "cuMipmappedArrayDestroy",
}
CODES = (2, 1, 999)


def code_of(action: Callable[[], Any]) -> int:
    try:
        action()
    except calls.CudaError as error:
        return error.code
    return 0


def keep(kept: list[Callable[[], None]], allocate: Callable[[int], Callable[[], None]]) -> None:
    kept.append(allocate(BYTES))


class Faults:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.said: dict[str, Any] = {}

    def difference(self) -> int:
        """Charged, less really taken, on both devices; everything asynchronous has settled."""
        calls.driver.cuCtxSynchronize()
        taken = 0
        for device in (0, 1):
            context = void()
            assert self.bench.raw("cuCtxGetCurrent", ctypes.byref(context)) == 0
            total, free = size_t(), size_t()
            probe = void()
            if self.bench.raw("cuDevicePrimaryCtxGetState", device, ctypes.byref(ctypes.c_uint()), ctypes.byref(active := integer())) == 0 and not active.value:
                continue
            assert self.bench.raw("cuDevicePrimaryCtxRetain", ctypes.byref(probe), device) == 0
            assert self.bench.raw("cuCtxSetCurrent", probe) == 0
            assert self.bench.raw("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)) == 0
            assert self.bench.raw("cuDevicePrimaryCtxRelease_v2", device) == 0
            assert self.bench.raw("cuCtxSetCurrent", context) == 0
            taken += total.value - free.value
        held = self.bench.bytes_held(0) + self.bench.bytes_held(1)
        return (held - taken) // MIB

    def step(self, name: str, action: Callable[[], Any], **faults: int) -> None:
        with self.bench.failing(**faults):
            code = code_of(action)
        self.said[name] = [code, self.difference()]

    def allocations(self) -> None:
        for path, allocate in calls.PATHS.items():
            for symbol in FAILS.get(path, (path.split()[0],)):
                for code in CODES:
                    self.step(f"{path}: {symbol} fails with {code}", partial(allocate, BYTES), **{symbol: code})
            if "captured" not in path:
                calls_made: list[Callable[[], None]] = []
                self.step(f"{path} works afterwards", partial(keep, calls_made, allocate))
                calls_made[0]()
                self.said[f"{path} is free again"] = [0, self.difference()]

    def frees(self) -> None:
        for path, symbol in FREES.items():
            free = calls.PATHS[path](BYTES)
            for code in CODES:
                self.step(f"{path}: {symbol} fails with {code}", free, **{symbol: code})
            self.step(f"{path}: {symbol} works afterwards", free)

    def contexts(self) -> None:
        call, make = calls.call, calls.make
        for symbol, more in (("cuCtxCreate_v2", (0, 0)), ("cuCtxCreate_v4", (None, 0, 0)), ("cuDevicePrimaryCtxRetain", (1,))):
            self.step(f"{symbol} fails", partial(make, symbol, void, *more), **{symbol: 999})
        call("cuCtxSetCurrent", void(make("cuDevicePrimaryCtxRetain", void, 1)))
        self.step("cuDevicePrimaryCtxRelease_v2 fails", lambda: call("cuDevicePrimaryCtxRelease_v2", 1), cuDevicePrimaryCtxRelease_v2=999)
        self.step("cuDevicePrimaryCtxReset_v2 fails", lambda: call("cuDevicePrimaryCtxReset_v2", 1), cuDevicePrimaryCtxReset_v2=999)
        calls.begin(0)
        self.step("cuDevicePrimaryCtxRelease_v2 works", lambda: call("cuDevicePrimaryCtxRelease_v2", 1))
        self.step("cuCtxSetLimit fails", partial(call, "cuCtxSetLimit", 2, size_t(256 * MIB)), cuCtxSetLimit=999)
        for mib in (256, 64, 8):
            self.step(f"cuCtxSetLimit to {mib} MiB works", partial(call, "cuCtxSetLimit", 2, size_t(mib * MIB)))
        room = (ctypes.c_char * 64)()
        self.step("cuGreenCtxCreate fails", partial(make, "cuGreenCtxCreate", void, room, 1, 1), cuGreenCtxCreate=999)
        green = make("cuGreenCtxCreate", void, room, 1, 1)
        self.step("cuGreenCtxDestroy fails", partial(call, "cuGreenCtxDestroy", void(green)), cuGreenCtxDestroy=999)
        self.step("cuGreenCtxDestroy works", partial(call, "cuGreenCtxDestroy", void(green)))

    def pools(self) -> None:
        call, make = calls.call, calls.make
        most, pool = u64(2**64 - 1), make("cuMemPoolCreate", void, ctypes.byref(calls.PoolProps(type=1, location=(1, 0))))
        call("cuMemPoolSetAttribute", void(pool), 4, ctypes.byref(most))
        pointer = make("cuMemAllocFromPoolAsync", u64, size_t(BYTES), void(pool), void(0))
        call("cuMemFreeAsync", u64(pointer), void(0))
        for symbol, more in (("cuMemPoolTrimTo", (size_t(0),)), ("cuMemPoolDestroy", ())):
            self.step(f"{symbol} fails", partial(call, symbol, void(pool), *more), **{symbol: 999})
        self.step("cuMemPoolDestroy works", lambda: call("cuMemPoolDestroy", void(pool)))


if __name__ == "__main__":
    faults = Faults(Bench("libcuda.so.1", json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[1])))
    calls.begin()
    faults.allocations()
    faults.frees()
    faults.pools()
    faults.contexts()
    print(json.dumps(faults.said))
