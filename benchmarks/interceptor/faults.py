# SPDX-License-Identifier: Apache-2.0
"""T7: how soon a changed share is held. T9: how soon the memory of a killed process is free again."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.interceptor.costs import device
from benchmarks.interceptor.shares import Curve, Tenant
from benchmarks.interceptor.stage import Stage, crowd, milli, run
from hami_framework.enforcement import container as containers
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.enforcement.region import Region

WINDOW = 0.3
TOLERANCE = 5
STEP_SECONDS = 2.0
BLOCKS = "30"
LIMIT = 68 << 20
"""Room for one process of `micro` (a context of 1 MiB, 30 blocks of 2 MiB, one more of 4 MiB), not for two."""


def converged(stage: Stage, driver: dict[str, str], uuid: str, scenario: str, before: int, after: int) -> float:
    """Seconds from changing a share until the first window of 0.3 s after which all lie within 5 points of it."""
    tenant = Tenant(stage, driver, uuid, "step", scenario, before, 2 * STEP_SECONDS)
    stepped: list[float] = []

    def step() -> None:
        changed = DevicePolicy(vendor="nvidia", identities=(("uuid", uuid),), core_milli=milli(after))
        stepped.append(time.monotonic())
        containers.update(tenant.container, Policy(container="step", devices=(changed,)))

    timer = threading.Timer(STEP_SECONDS, step)
    timer.start()
    curve = tenant.curve()
    timer.join()
    return round(settled(curve, stepped[0], after), 2)


def settled(curve: Curve, stepped: float, percent: int) -> float:
    """From the step to the end of the first good window after the last bad one: at best the window itself."""
    answer = None
    for start in curve:
        end = next((point for point in curve if point[0] >= start[0] + WINDOW), None)
        if end is None or start[0] < stepped:
            continue
        good = abs(100 * (end[1] - start[1]) / (end[0] - start[0]) - percent) <= TOLERANCE
        answer = (end[0] - stepped if answer is None else answer) if good else None
    return float("inf") if answer is None else answer


def reclaimed(stage: Stage) -> dict[str, Any]:
    """A process that holds nearly all of the memory is killed: the next one that is refused takes it back; the agent's own look does."""
    path = stage.container("killed", device(memory_bytes=LIMIT, context_bytes=1 << 20))
    environment = stage.hooked(path, stage.null_driver)
    hold = [str(stage.micro), "alloc", "1", BLOCKS]
    both_fit = True
    with crowd(hold, environment, 1):
        try:
            run([*hold, "-1"], environment)
        except RuntimeError:
            both_fit = False
    with crowd(hold, environment, 1) as holders:
        _kill(holders[0])
        run([*hold, "-1"], environment)  # raises when it is refused
    with crowd(hold, environment, 1) as holders:
        _kill(holders[0])
        took, freed = _agent_looks(path)
    return {"limit_held_two_apart": not both_fit, "next_refused_allocation_got_the_room": True, "agent_reclaimed_slots": freed, "agent_ms": took}


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def _agent_looks(container: Path) -> tuple[float, int]:
    before = time.perf_counter()
    freed = Region(containers.state_path(container)).reclaim_dead()
    return round((time.perf_counter() - before) * 1000, 2), freed
