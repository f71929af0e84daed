# SPDX-License-Identifier: Apache-2.0
"""Threads that allocate and free blocks of random sizes at once, near the limit.

Run as `python race_program.py PATHS SEED THREADS SECONDS`; PATHS: names of cuda_calls.PATHS, joined with ','. When the time is over
every thread stops where it is, with the blocks that it has; one line of JSON says so. It ends when stdin does.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import cuda_calls as calls

MIB = 1 << 20
LEAST, MOST = 4096, 160 * MIB
OTHERS_CAPTURE = (900, 901, 906)
"""While another thread captures, calls that wait for everything are not permitted."""


def size(dice: random.Random) -> int:
    """Small ones as often as large ones."""
    return int(LEAST * (MOST / LEAST) ** dice.random())


class Racer:
    def __init__(self, paths: list[str], seed: int, until: float) -> None:
        self.paths, self.dice, self.until = paths, random.Random(seed), until
        self.blocks: list[tuple[str, Callable[[], None]]] = []
        self.codes: Counter[int] = Counter()

    def free(self, number: int) -> None:
        _, release = self.blocks.pop(number)
        for _ in range(1000):
            try:
                release()
                return
            except calls.CudaError as error:
                if error.code not in OTHERS_CAPTURE:
                    return  # the rest of a graph that is gone already

    def run(self, context: int) -> None:
        calls.call("cuCtxSetCurrent", calls.void(context))
        while time.monotonic() < self.until:
            if self.blocks and self.dice.random() < 0.4:
                self.free(self.dice.randrange(len(self.blocks)))
                continue
            path = self.dice.choice(self.paths)
            try:
                self.blocks.append((path, calls.PATHS[path](size(self.dice))))
                self.codes[0] += 1
            except calls.CudaError as error:
                self.codes[error.code] += 1
                for _ in range(len(self.blocks) // 2):
                    self.free(self.dice.randrange(len(self.blocks)))


def main(paths: list[str], seed: int, threads: int, seconds: float) -> None:
    try:
        context = calls.begin()
    except calls.CudaError as error:  # the others were quicker: not even room for a context
        print(json.dumps({"codes": {error.code: 1}, "bounded": 0}), flush=True)
        sys.stdin.read()
        return
    calls.POOL["it"] = calls.make("cuMemPoolCreate", calls.void, ctypes.byref(calls.PoolProps(type=1, location=(calls.DEVICE, 0))))
    until = time.monotonic() + seconds
    racers = [Racer(paths, seed * 100 + number, until) for number in range(threads)]
    workers = [threading.Thread(target=racer.run, args=(context,)) for racer in racers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    calls.driver.cuCtxSynchronize()
    codes = sum((racer.codes for racer in racers), Counter[int]())
    bounded = sum("Array" in path for racer in racers for path, _ in racer.blocks)
    print(json.dumps({"codes": codes, "bounded": bounded}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
