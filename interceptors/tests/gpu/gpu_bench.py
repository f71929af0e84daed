# SPDX-License-Identifier: Apache-2.0
"""What all parts of the GPU test share: the device, the programs that were built for it, how much is to be done, and containers."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from gpu_container import BEGIN_SECONDS, HERE, Container, Failed, Limits, Place, Program

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done of everything."""

    limit: int
    block: int
    launches: int
    launches_each: int
    """With several processes."""
    allocations: int
    sizes: tuple[int, ...]
    processes: tuple[int, ...]
    seconds: float
    """Of each run under a compute limit."""
    percents: tuple[int, ...]
    ways: tuple[tuple[str, int], ...]
    """How the device is loaded, and how long each kernel takes, in ns."""
    storm: int


WAYS = (("long", 20_000_000), ("tiny", 20_000), ("graph", 100_000), ("streams", 200_000), ("cooperative", 1_000_000))
SIZES = (512, 4096, 64 << 10, MIB, 16 * MIB, 256 * MIB, 1024 * MIB)
SCALES = {
    "quick": Scale(
        limit=1024 * MIB, block=128 * MIB, launches=500, launches_each=200, allocations=20, sizes=(512, MIB), processes=(1, 2), seconds=1,
        percents=(50,), ways=(("long", 20_000_000),), storm=4,
    ),
    "normal": Scale(
        limit=4096 * MIB, block=64 * MIB, launches=100_000, launches_each=20_000, allocations=1000, sizes=SIZES, processes=(1, 8, 64), seconds=5,
        percents=(10, 30, 50, 70, 90), ways=WAYS, storm=64,
    ),
    "full": Scale(
        limit=16384 * MIB, block=64 * MIB, launches=1_000_000, launches_each=100_000, allocations=10_000, sizes=SIZES, processes=(1, 8, 64), seconds=20,
        percents=(10, 30, 50, 70, 90), ways=WAYS, storm=64,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One device, and what is needed to try the library on it."""

    scratch: Path
    library: Path
    probe: Path
    uuid: str
    capacity: int
    scale: Scale
    direct: Place = field(default_factory=Place)
    _numbers: Any = field(default_factory=count)

    def container(self, name: str, **limits: Any) -> Container:
        """A new one; its folder is kept until the next run."""
        return Container(self.scratch / f"{name}-{next(self._numbers)}", self.library, self.uuid, self.capacity, Limits(**limits))

    def command(self, *arguments: object) -> list[str]:
        """The measuring program."""
        return [str(self.probe), str(HERE / "gpu_kernels.ptx"), *map(str, arguments)]

    def once(self, place: Place, *arguments: object) -> dict[str, Any]:
        """Runs the measuring program where nothing is to be waited for. Raises Failed."""
        done = subprocess.run(self.command(*arguments), env=place.environment(), capture_output=True, text=True, check=False, timeout=BEGIN_SECONDS)
        if done.returncode != 0:
            raise Failed(f"gpu_probe {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr.strip()}")
        return dict(json.loads(done.stdout))

    def together(self, *runs: tuple[Place, tuple[object, ...]]) -> list[dict[str, Any]]:
        """Runs measuring programs side by side: all begin, then all measure. Raises Failed when one fails."""
        with ExitStack() as stack:
            programs: list[Program] = [stack.enter_context(place.running(self.command(*arguments))) for place, arguments in runs]
            for program in programs:
                program.ready()
            for program in programs:
                program.say()
            answers = [program.answer() for program in programs]
            for program in programs:
                program.end()
            return answers
