# SPDX-License-Identifier: Apache-2.0
"""Part 1, the byte limit: the device is filled by every allocating path, and a bystander says how much is really in use.

Part 5, the end of processes: what a killed one held comes back, and many that begin at once all get their slot and nothing more.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gpu_bench import MIB, Bench
from gpu_container import HERE, Place, Program
from gpu_report import Part

_CALLS = (HERE.parent / "cuda" / "cuda_calls.py").read_text()
PATHS = tuple(re.findall(r'^    "([^"]+)": ', _CALLS[_CALLS.index("PATHS: dict") :], re.MULTILINE))
"""The names of cuda_calls.PATHS, without importing that module: it loads the driver."""

SETTLE_SECONDS = 5
LEFT_OVER = 4 * MIB
"""What the driver may keep for itself of memory that was freed."""


class Observer:
    """The bystander, and what it says."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def look(self) -> dict[str, Any]:
        self._program.say()
        return self._program.answer()

    def settled(self, before: int) -> int:
        """What is in use, once that is about what it was `before` or time is up: drivers tidy up after a process's end."""
        until = time.monotonic() + SETTLE_SECONDS
        while (used := int(self.look()["used"])) > before + LEFT_OVER and time.monotonic() < until:
            time.sleep(0.1)
        return used


@contextmanager
def observing(bench: Bench) -> Iterator[Observer]:
    with bench.direct.running(bench.direct.python("gpu_observer.py", bench.uuid)) as program:
        yield Observer(program)


@contextmanager
def filler(place: Place, path: str, block: int) -> Iterator[tuple[Program, dict[str, Any]]]:
    """A program that has its context, and what it said of it."""
    with place.running(place.python("gpu_fill.py", path, block)) as program:
        yield program, program.answer()


def byte_limit(bench: Bench) -> Part:
    part = Part(f"1. Byte limit: {bench.scale.limit // MIB} MiB, filled with blocks of {bench.scale.block // MIB} MiB by every allocating path")
    with observing(bench) as observer:
        _context(bench, observer, part)
        for path in PATHS:
            _path(bench, observer, path, part)
    return part


def _context(bench: Bench, observer: Observer, part: Part) -> None:
    """What a context costs by the driver's word, and what the library charges for one."""
    before = observer.look()["used"]
    with filler(bench.direct, "context", 0) as (_, _):
        direct = observer.look()["used"] - before
    base = observer.settled(before)
    container = bench.container("context", memory=bench.scale.limit)
    with filler(container, "context", 0) as (_, began):
        hooked = observer.look()["used"] - base
        charged = container.books().used_bytes
    part.notes.append(f"a context takes {direct} bytes directly, {hooked} with the library, and the library charges {charged}")
    part.check(f"a context can be had under the limit (the driver answers {began['code']})", began["code"] == 0)
    part.check(f"the container sees its limit as the device's size (total {began.get('info', [0, 0])[1]})", began.get("info", [0, 0])[1] == bench.scale.limit)
    observer.settled(before)


def _path(bench: Bench, observer: Observer, path: str, part: Part) -> None:
    limit, block = bench.scale.limit, bench.scale.block
    before = observer.look()["used"]
    container = bench.container("fill", memory=limit)
    with filler(container, path, block) as (program, began):
        if began["code"] != 0:
            part.check(f"{path}: a context can be had ({began['ended']})", False)
            return
        program.say()
        full = program.answer()
        seen, books = observer.look(), container.books()
        row = {"path": path, "blocks": full["count"], "ended": full["ended"], "in use": seen["used"] - before, "by the library": books.used_bytes}
        row["difference"] = row["in use"] - row["by the library"]
        row["NVML"] = seen.get("nvml_processes", {}).get(str(program.pid))
        program.say()
        row["free at start and end"] = f"{began['info'][0]}, {program.answer()['info'][0]}"
    part.rows.append(row)
    observer.settled(before)
    if full["count"] == 0 and not full["refused"]:
        part.notes.append(f"{path}: not run: {full['ended']}")
        return
    part.check(f"{path}: refused as out of memory at the limit ({full['ended']})", full["refused"])
    part.check(f"{path}: the device has at most the limit in use ({row['in use']} of {limit})", row["in use"] <= limit)
    part.check(f"{path}: the library never counted more than the limit ({books.high_water_bytes})", books.high_water_bytes <= limit)
    if row["NVML"] is not None:
        part.check(f"{path}: NVML counts at most the limit for the process ({row['NVML']})", row["NVML"] <= limit)


def ends(bench: Bench) -> Part:
    part = Part("5. Processes that end, and many that begin")
    with observing(bench) as observer:
        _killed(bench, observer, part)
        _storm(bench, observer, part)
    return part


def _killed(bench: Bench, observer: Observer, part: Part) -> None:
    limit, block, before = bench.scale.limit, bench.scale.block, observer.look()["used"]
    container = bench.container("killed", memory=limit)
    counts = []
    for _ in range(2):
        with filler(container, "cuMemAlloc_v2", block) as (program, began):
            if began["code"] == 0:
                program.say()
                counts.append(program.answer()["count"])
            program.process.send_signal(signal.SIGKILL)
            program.process.wait()
        left = observer.settled(before) - before
    part.notes.append(f"killed while holding {counts} blocks of {block}, one process after the other; {left} bytes were left in use after the second")
    part.check(f"kill -9: the next process gets as much as the killed one had ({counts})", len(counts) == 2 and counts[0] == counts[1] > 0)
    part.check(f"kill -9: the driver has taken it back ({left} bytes left)", left <= LEFT_OVER)


def _storm(bench: Bench, observer: Observer, part: Part) -> None:
    count, before = bench.scale.storm, observer.look()["used"]
    container, start = bench.container("storm", memory=bench.capacity), time.monotonic()
    with ExitStack() as stack:
        running = [stack.enter_context(filler_started(container)) for _ in range(count)]
        answers = [program.answer() for program in running]
        took = time.monotonic() - start
        used, books, slots = observer.look()["used"] - before, container.books(), container.live_slots()
        begun = [program for program, answer in zip(running, answers, strict=True) if answer["code"] == 0]
        for program in begun:
            program.say()
        for program in begun:
            program.end()
    had = len(begun)
    part.rows.append({"processes": count, "contexts": had, "seconds": took, "slots": slots, "in use": used, "by the library": books.used_bytes})
    part.check(f"{count} processes begin at once: {had} got a context", had == count)
    part.check(f"{count} processes begin at once: {slots} hold a slot", slots == count)
    after, held = observer.settled(before) - before, container.books().used_bytes
    with filler(container, "context", 0) as (program, _):
        program.say()
        program.end()
    part.notes.append(f"after the storm {after} bytes were in use, and the books of the {count} that ended said {held}")


@contextmanager
def filler_started(place: Place) -> Iterator[Program]:
    with place.running(place.python("gpu_fill.py", "context", 0)) as program:
        yield program
