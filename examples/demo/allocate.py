#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes device memory through the CUDA driver, as any program does; it knows nothing of hami.

allocate.py grow 4096      takes 256 MiB at a time until it holds 4096 MiB; ends with status 1 when the driver refuses
allocate.py work 2048      holds 2048 MiB, and takes and gives back 256 MiB more again and again until it is told to end
"""

import ctypes
import signal
import sys
import time

MIB = 1 << 20
STEP = 256


class Driver:
    """The few calls of libcuda.so.1 that are needed."""

    def __init__(self) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: object) -> None:
        """Raises MemoryError or OSError with the driver's own word for what happened."""
        result = getattr(self.cuda, name)(*arguments)
        if result != 0:
            word = ctypes.c_char_p()
            self.cuda.cuGetErrorName(result, ctypes.byref(word))
            raise (MemoryError if result == 2 else OSError)(f"{name}: {(word.value or b'?').decode()} ({result})")

    def take(self, mib: int) -> ctypes.c_uint64:
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(mib * MIB))
        self.call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(7), ctypes.c_size_t(mib * MIB))
        return pointer

    def give_back(self, pointer: ctypes.c_uint64) -> None:
        self.call("cuMemFree_v2", pointer)

    def memory(self) -> str:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return f"{free.value // MIB} of {total.value // MIB} MiB free"


def grow(driver: Driver, mib: int) -> None:
    held = 0
    while held < mib:
        try:
            driver.take(STEP)
        except MemoryError as error:
            sys.exit(f"at {held} MiB: {error}")
        held += STEP
        print(f"holds {held} MiB", flush=True)


def work(driver: Driver, mib: int) -> None:
    for _ in range(0, mib, STEP):
        driver.take(STEP)
    rounds = 0
    while True:
        driver.give_back(driver.take(STEP))
        rounds += 1
        print(f"round {rounds}, {driver.memory()}", flush=True)
        time.sleep(0.05)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    started = Driver()
    print(f"sees {started.memory()}", flush=True)
    {"grow": grow, "work": work}[sys.argv[1]](started, int(sys.argv[2]))
