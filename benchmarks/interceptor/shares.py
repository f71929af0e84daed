# SPDX-License-Identifier: Apache-2.0
"""T5, T6: how closely a share of the device's time is held, on the fake driver that models time."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.interceptor.stage import Stage, milli, numbers
from hami_framework.enforcement.policy import DevicePolicy

SCENARIOS = ("long", "tiny", "mixed", "graph", "streams", "burst")
PAIRS = ("tiny", "long", "streams")
WARM_UP_SECONDS = 1.0
BURST_SECONDS = 0.05
"""How far ahead of its share a container may run by default: what a program that rested gets beyond its share of the time it worked."""

Curve = list[tuple[float, float]]


class Tenant:
    """One greedy program with a compute limit, or none."""

    def __init__(self, stage: Stage, driver: dict[str, str], uuid: str, name: str, scenario: str, percent: int | None, seconds: float) -> None:
        device = DevicePolicy(vendor="nvidia", identities=(("uuid", uuid),), core_milli=milli(percent))
        self.percent = percent
        self.container: Path = stage.container(name, device)
        self._process = subprocess.Popen(
            [str(stage.tenant), scenario, str(seconds)], env=stage.hooked(self.container, driver), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def curve(self) -> Curve:
        """(CLOCK_MONOTONIC seconds, device seconds done), from its start to its end."""
        out, words = self._process.communicate()
        if self._process.returncode != 0:
            raise RuntimeError(f"a tenant ended with {self._process.returncode}: {words.strip()}")
        points = (numbers(line) for line in out.splitlines())
        return [(at, done / 1e9) for at, done in points]


def share(curve: Curve, since: float = WARM_UP_SECONDS) -> float:
    """Percent of the device's time used after the warm-up."""
    begin = next(point for point in curve if point[0] >= curve[0][0] + since)
    end = curve[-1]
    return 100 * (end[1] - begin[1]) / (end[0] - begin[0])


def wanted(scenario: str, percent: int, free: float) -> float:
    """What a perfect limiter would give: the limit, or what the program can use at all; half a second of each second, and the burst, of one that rests."""
    return min(percent * (0.5 + BURST_SECONDS) if scenario == "burst" else percent, free)


def alone(stage: Stage, driver: dict[str, str], uuid: str, percents: Sequence[int], seconds: float, repeats: int) -> list[dict[str, Any]]:
    """Every scenario at every limit, against what it reaches without one."""
    rows = []
    for scenario in SCENARIOS:
        free = statistics.median(share(Tenant(stage, driver, uuid, f"{scenario}-free", scenario, None, seconds).curve()) for _ in range(repeats))
        for percent in percents:
            reached = [share(Tenant(stage, driver, uuid, f"{scenario}-{percent}", scenario, percent, seconds).curve()) for _ in range(repeats)]
            rows.append(row(scenario, percent, reached, wanted(scenario, percent, free)) | {"free_percent": round(free, 1)})
    return rows


def together(stage: Stage, driver: dict[str, str], uuid: str, seconds: float, repeats: int) -> list[dict[str, Any]]:
    """Two greedy tenants of one device at 30 and 70, which leaves nothing over."""
    rows = []
    for scenario in PAIRS:
        reached: dict[int, list[float]] = {30: [], 70: []}
        for _ in range(repeats):
            tenants = [Tenant(stage, driver, uuid, f"pair-{scenario}-{percent}", scenario, percent, seconds) for percent in reached]
            for tenant, figures in zip(tenants, reached.values(), strict=True):
                figures.append(share(tenant.curve()))
        rows += [row(f"two tenants, {scenario}", percent, figures, percent) for percent, figures in reached.items()]
    return rows


def row(scenario: str, percent: int, reached: Sequence[float], target: float) -> dict[str, Any]:
    """The median of several runs and how far they lie apart."""
    middle = statistics.median(reached)
    return {
        "scenario": scenario,
        "limit_percent": percent,
        "wanted_percent": round(target, 2),
        "reached_percent": round(middle, 2),
        "least": round(min(reached), 2),
        "most": round(max(reached), 2),
        "error_points": round(abs(middle - target), 2),
        "throughput_of_limit": round(middle / target, 3),
    }


def mean_error(rows: Sequence[dict[str, Any]]) -> float:
    """Mean absolute error in points."""
    return round(statistics.mean(float(one["error_points"]) for one in rows), 2)
