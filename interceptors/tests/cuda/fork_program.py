# SPDX-License-Identifier: Apache-2.0
"""Forks again and again while threads use pools, graphs and contexts; each child calls the same functions and must get an answer.

Run as `python fork_program.py CHILDREN`; prints one JSON object: how many children ended well, and what the last one was told.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading

import cuda_calls as calls

MIB = 1 << 20
PATIENCE = 20
"""Seconds for a child whose calls all end at once: one that takes longer waits for a lock that nobody holds."""


def use(context: int, path: str, stop: threading.Event) -> None:
    calls.call("cuCtxSetCurrent", calls.void(context))
    while not stop.is_set():
        try:
            calls.PATHS[path](4 * MIB)()
            calls.make("cuDevicePrimaryCtxRetain", calls.void, 0)
            calls.call("cuDevicePrimaryCtxRelease_v2", 0)
        except calls.CudaError:
            continue


def child(pool: int, executable: int) -> list[int]:
    driver, out = calls.driver, calls.u64()
    return [
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(out), 0),
        driver.cuMemAllocAsync(ctypes.byref(out), calls.size_t(MIB), calls.void(0)),
        driver.cuMemAllocFromPoolAsync(ctypes.byref(out), calls.size_t(MIB), calls.void(pool), calls.void(0)),
        driver.cuMemPoolTrimTo(calls.void(pool), calls.size_t(0)),
        driver.cuMemPoolDestroy(calls.void(pool)),
        driver.cuGraphLaunch(calls.void(executable), calls.void(0)),
        driver.cuDeviceGraphMemTrim(0),
        driver.cuCtxSynchronize(),
        driver.cuDevicePrimaryCtxReset_v2(0),
    ]


def main(children: int) -> None:
    context, stop = calls.begin(), threading.Event()
    pool = calls.make("cuMemPoolCreate", calls.void, ctypes.byref(calls.PoolProps(type=1, location=(calls.DEVICE, 0))))
    calls.POOL["it"] = pool
    graph, node = calls.make("cuGraphCreate", calls.void, 0), calls.void()
    params = calls.AllocNode(pool=calls.PoolProps(type=1, location=(calls.DEVICE, 0)), bytes=2 * MIB)
    calls.call("cuGraphAddMemAllocNode", ctypes.byref(node), calls.void(graph), None, calls.size_t(0), ctypes.byref(params))
    executable = calls.make("cuGraphInstantiateWithFlags", calls.void, calls.void(graph), calls.u64(0))
    paths = ("cuMemAllocAsync", "cuMemAllocFromPoolAsync", "cuGraphAddMemAllocNode", "cuMemAllocAsync")
    threads = [threading.Thread(target=use, args=(context, path, stop)) for path in paths]
    for thread in threads:
        thread.start()
    well, codes = 0, b""
    for _ in range(children):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(PATIENCE)
            os.write(writer, json.dumps(child(pool, executable)).encode())
            os._exit(0)
        os.close(writer)
        codes = os.read(reader, 1000)
        os.close(reader)
        well += os.waitpid(pid, 0)[1] == 0
        if not codes:
            break
    stop.set()
    for thread in threads:
        thread.join()
    calls.call("cuCtxSynchronize")
    print(json.dumps({"well": well, "codes": json.loads(codes or "[]")}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
