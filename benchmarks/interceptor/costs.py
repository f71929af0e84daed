# SPDX-License-Identifier: Apache-2.0
"""T1, T2, T3, T8: what a call costs, on a driver that does nothing, direct against hooked in one run."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.interceptor.stage import NULL_UUID, Stage, crowd, figures, go, milli, run
from hami_framework.enforcement.policy import DevicePolicy

BATCHES = 4000


def device(memory_bytes: int | None = None, core_percent: int | None = None, context_bytes: int | None = None) -> DevicePolicy:
    """The null driver's device with these limits."""
    identities = (("uuid", NULL_UUID),)
    return DevicePolicy(vendor="nvidia", identities=identities, memory_bytes=memory_bytes, core_milli=milli(core_percent), context_bytes=context_bytes)


def launches(stage: Stage, repeats: int) -> dict[str, Any]:
    """T1 and T2: added nanoseconds of a launch without and with a compute limit (never reached). Medians of several runs, side by side."""
    command = [str(stage.micro), "launch", str(BATCHES), "0", "-1"]
    environments = (
        stage.direct(stage.null_driver),
        stage.hooked(stage.container("gate", device()), stage.null_driver),
        stage.hooked(stage.container("limited", device(core_percent=99)), stage.null_driver),
    )
    runs = [[run(command, environment) for environment in environments] for _ in range(repeats)]
    (direct, direct_tail), (gate, gate_tail), (limited, limited_tail) = (
        (statistics.median(one[place][0] for one in runs), statistics.median(one[place][1] for one in runs)) for place in range(3)
    )
    return {
        "direct_ns": direct,
        "T1_gate_off_ns": round(gate - direct, 1),
        "T1_gate_off_p99_ns": round(gate_tail - direct_tail, 1),
        "T2_admitted_ns": round(limited - direct, 1),
        "T2_admitted_p99_ns": round(limited_tail - direct_tail, 1),
    }


def allocations(stage: Stage, processes: tuple[int, ...], blocks: tuple[int, ...]) -> list[dict[str, Any]]:
    """T3: added nanoseconds of a pair of allocation and free, with others attached and blocks alive."""
    rows = []
    direct = run([str(stage.micro), "alloc", str(BATCHES), "0", "-1"], stage.direct(stage.null_driver))
    for attached in processes:
        for live in blocks:
            container = stage.container(f"alloc-{attached}-{live}", device(memory_bytes=1 << 50))
            environment = stage.hooked(container, stage.null_driver)
            with crowd([str(stage.micro), "alloc", "10", "16"], environment, attached - 1):
                hooked = run([str(stage.micro), "alloc", str(BATCHES), str(live), "-1"], environment)
            rows.append(
                {
                    "processes": attached,
                    "live_blocks": live,
                    "T3_pair_ns": round(hooked[0] - direct[0], 1),
                    "p99_ns": round(hooked[1] - direct[1], 1),
                }
            )
    return rows


def starts(stage: Stage, size: int) -> dict[str, Any]:
    """T8: what a process's first calls take beyond the driver's, with `size` processes starting at once."""
    command = [str(stage.micro), "start", "1", "0"]
    took = {}
    for name, environment in (
        ("direct", stage.direct(stage.null_driver)),
        ("hooked", stage.hooked(stage.container("start", device(memory_bytes=1 << 50)), stage.null_driver)),
    ):
        with crowd(command, environment, size) as processes:
            for process in processes:
                go(process)
            took[name] = sorted(figures(process)[0] for process in processes)
    base = statistics.median(took["direct"])
    return {
        "processes": size,
        "T8_p50_us": round((statistics.median(took["hooked"]) - base) / 1000, 1),
        "T8_max_us": round((took["hooked"][-1] - base) / 1000, 1),
    }
