# SPDX-License-Identifier: Apache-2.0
"""What programs did when other interceptors failed them. Run as `python regression_program.py SCENARIO [ARGUMENTS…]`; prints one JSON object."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from cuda_calls import DEVICE, MIB, PATHS, CudaError, Prop, begin, call, driver, info, linear, make, size_t, u64, void


def mixture() -> dict[str, Any]:
    """A block by every path, held until stdin ends."""
    begin()
    kept = [allocate(8 * MIB) for allocate in PATHS.values()]
    call("cuCtxSynchronize")
    print(json.dumps({"info": info(), "blocks": len(kept)}), flush=True)
    sys.stdin.read()
    return {}


def one_figure() -> dict[str, Any]:
    begin()
    free, total = size_t(), size_t()
    codes = [driver.cuMemGetInfo_v2(None, ctypes.byref(total)), driver.cuMemGetInfo_v2(ctypes.byref(free), None)]
    return {"codes": codes, "info": [free.value, total.value]}


def other_device() -> dict[str, Any]:
    """Expandable segments and NCCL: physical memory of one device, made where another device, or none, is current."""
    call("cuInit", 0)
    prop = Prop(type=1, location=(DEVICE, 1))
    codes = [driver.cuMemCreate(ctypes.byref(u64()), size_t(64 * MIB), ctypes.byref(prop), u64(0))]
    begin(0)
    codes.append(driver.cuMemCreate(ctypes.byref(u64()), size_t(64 * MIB), ctypes.byref(prop), u64(0)))
    nowhere = Prop(type=1, location=(DEVICE, 1_000_000))
    codes.append(driver.cuMemCreate(ctypes.byref(u64()), size_t(64 * MIB), ctypes.byref(nowhere), u64(0)))
    print(json.dumps({"codes": codes, "first": info()}), flush=True)
    sys.stdin.read()
    return {}


def held(device: str) -> dict[str, Any]:
    begin(int(device))
    linear(128 * MIB)
    print(json.dumps({"info": info()}), flush=True)
    sys.stdin.read()
    return {}


def shutdown() -> dict[str, Any]:
    """Blocks of one pointer again and again, from many threads: each is freed once, whatever the order."""
    context = begin()
    start = info()

    def churn() -> None:
        call("cuCtxSetCurrent", void(context))
        for _ in range(300):
            pointer = make("cuMemAlloc_v2", u64, size_t(3 * MIB))
            driver.cuMemFree_v2(u64(pointer))
            driver.cuMemFree_v2(u64(pointer + 1))

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"start": start, "end": info()}


def workers(count: str) -> dict[str, Any]:
    """A master forks its workers before anyone used the driver; one of them dies in the middle of its work."""
    children = []
    for number in range(int(count)):
        child = os.fork()
        if child == 0:
            begin()
            until = time.monotonic() + 1
            while time.monotonic() < until:
                try:
                    linear(MIB * (1 + number % 7))()
                except CudaError:
                    continue
                if number == 0:
                    os.kill(os.getpid(), 9)
            os._exit(0)
        children.append(child)
    return {"statuses": [os.waitpid(child, 0)[1] for child in children]}


def kernels(device: str, count: str) -> dict[str, Any]:
    begin(int(device))
    module = make("cuModuleLoadData", void, ctypes.c_char_p(b"image"))
    function, stream = make("cuModuleGetFunction", void, void(module), ctypes.c_char_p(b"kernel")), make("cuStreamCreate", void, 1)
    start = time.monotonic()
    for number in range(int(count)):
        call("cuLaunchKernel", void(function), *(1,) * 6, 0, void(stream), None, None)
        if number % 4 == 3:
            call("cuStreamSynchronize", void(stream))
    call("cuStreamSynchronize", void(stream))
    return {"seconds": time.monotonic() - start}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function for function in (mixture, one_figure, other_device, held, shutdown, workers, kernels)
}

if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]](*sys.argv[2:])), flush=True)
