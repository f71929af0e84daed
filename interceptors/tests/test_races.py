# SPDX-License-Identifier: Apache-2.0
"""Processes of threads race for the last bytes of a limit, some are killed in the middle: what the device gave is never above it.

The oracle is the fake driver's card, which knows the physical high-water of the container. When all stand still, each living
process is charged what the card says it has: more only by what arrays are bounded by, never less.
"""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_program_paths import PATHS
from cuda_rig import CONTEXT, FAKE_INCLUDES, MIB, Container, record

from hami_framework.enforcement import layout

PROGRAM = Path(__file__).parent / "cuda" / "race_program.py"
BOUND = 2 * MIB  # how far an array's bound may be above what it takes: two pages for one with smaller levels
SAID = {"0", "2", "900", "901", "906"}
"""Success, out of memory, and what a driver answers while another thread captures."""


@dataclass(frozen=True)
class Size:
    processes: int
    threads: int
    seconds: float
    killed: int

    @property
    def limit(self) -> int:
        """Room for all contexts, and for some of what they want."""
        return self.processes * (CONTEXT + 128 * MIB)


SMALL = Size(processes=4, threads=4, seconds=2.5, killed=1)
FULL = Size(processes=16, threads=8, seconds=5, killed=4)


@pytest.fixture
def race(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Callable[[Size, str], None]:
    libraries = [fake_driver("cuda", FAKE_INCLUDES)]
    preload = interceptor("cuda", "nvml", variant="release")

    def run(size: Size, paths: str) -> None:
        container = Container(tmp_path / "container", preload, libraries, (record(0, memory_bytes=size.limit),), devices=1, memory_mib=65536)
        with ExitStack() as stack:
            racers = [stack.enter_context(racer(container, paths, seed, size)) for seed in range(size.processes)]
            dice = random.Random(size.processes)
            time.sleep(size.seconds / 2)
            for victim in dice.sample(racers, size.killed):
                victim.kill()
                victim.wait()
            lines = {process.pid: last_line(process, within=60 + size.seconds) for process in racers}
            bounded = check_codes([line for pid, line in lines.items() if line])
            high_water = container.high_water()
            check_books(container, bounded)
            assert size.limit // 2 < high_water <= size.limit, "the limit was fought for, and held"
            assert container.state().devices[0].high_water_bytes <= size.limit
        after = container.run("exhaust", "cuMemAlloc_v2", 64 * MIB)
        assert after["count"] == (size.limit - CONTEXT) // (64 * MIB), "what the dead held is free"
        assert container.high_water() <= size.limit

    return run


def racer(container: Container, paths: str, seed: int, size: Size) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), paths, str(seed), str(size.threads), str(size.seconds)]
    return Ended(command, env=container.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def last_line(process: subprocess.Popen[str], within: float) -> str:
    """What it says when its time is over; "" from one that was killed. One that hangs is an error that shows where."""
    assert process.stdout is not None
    said, _, _ = select.select([process.stdout], [], [], within)
    if not said:
        waits = {task.name: (task / "wchan").read_text() + " " + (task / "syscall").read_text().strip() for task in Path(f"/proc/{process.pid}/task").iterdir()}
        pytest.fail(f"process {process.pid} hangs; its threads wait in {waits}")
    return process.stdout.readline()


class Ended(subprocess.Popen[str]):
    """Is over when its block is left."""

    def __exit__(self, *error: object) -> None:
        self.kill()
        super().__exit__(None, None, None)


def check_codes(lines: list[str]) -> int:
    """How many arrays the living have."""
    said = [json.loads(line) for line in lines]
    assert {code for one in said for code in one["codes"]} <= SAID
    assert sum(one["codes"].get("2", 0) for one in said) > 0, "nobody met the limit"
    return sum(one["bounded"] for one in said)


def check_books(container: Container, bounded: int) -> None:
    held = {int(slot.pid): int(slot.devices[0].held_bytes) for slot in container.state().slots if slot.state & 0xFFFFFFFF == layout.SlotState.LIVE}
    for process in container.card.devices[0].processes:
        difference = held[process.pid] - process.used
        assert 0 <= difference <= bounded * BOUND, f"process {process.pid} is charged {held[process.pid]} and has {process.used}"


def test_all_paths_at_once_never_pass_the_limit(race: Callable[[Size, str], None]) -> None:
    race(SMALL, ",".join(PATHS))


@pytest.mark.parametrize("paths", ["cuMemAlloc_v2", "cuMemAllocAsync,cuMemAlloc_v2", "cuMemMap", "cuGraphAddMemAllocNode"])
def test_a_path_never_passes_the_limit(race: Callable[[Size, str], None], paths: str) -> None:
    race(Size(processes=3, threads=3, seconds=1, killed=1), paths)


@pytest.mark.slow
@pytest.mark.parametrize("path", [*PATHS, ",".join(PATHS)], ids=[*PATHS, "all"])
def test_sixteen_processes_of_eight_threads_never_pass_the_limit(race: Callable[[Size, str], None], path: str) -> None:
    race(FULL, path)
