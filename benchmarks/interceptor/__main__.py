# SPDX-License-Identifier: Apache-2.0
"""What the interceptor costs, and how well it holds.

python -m benchmarks.interceptor [--only costs|shares|faults] [--seconds 3] [--repeats 3] [--json]

Costs are measured on a driver that does nothing, direct against hooked in one run. Shares are measured on the fake driver
that models time, with the real clock: a busy machine shows in them, so that its load stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.interceptor import costs, faults, shares
from benchmarks.interceptor.machine import fake_card
from benchmarks.interceptor.stage import Stage

PERCENTS = (10, 30, 50, 70, 90)
STEPS = (("tiny", 80, 30), ("tiny", 30, 80), ("graph", 80, 30), ("graph", 30, 80))


def measured(only: str | None, seconds: float, repeats: int) -> dict[str, Any]:
    """Everything that was asked, by name."""
    result: dict[str, Any] = {"load_average_before": _load()}
    with tempfile.TemporaryDirectory(prefix="hami-bench-") as directory:
        stage = Stage(Path(directory))
        if only in (None, "costs"):
            result["launch"] = costs.launches(stage, repeats)
            result["allocation"] = costs.allocations(stage, processes=(1, 8, 64), blocks=(0, 1_000, 100_000))
            result["start"] = [costs.starts(stage, size) for size in (1, 8, 64)]
        if only in (None, "shares"):
            result |= _shares(stage, Path(directory), seconds, repeats)
        if only in (None, "faults"):
            card = fake_card(Path(directory))
            for scenario, before, after in STEPS:
                took = [faults.converged(stage, card.environment, card.uuid, scenario, before, after) for _ in range(repeats)]
                result[f"T7_converged_seconds {scenario} {before}->{after}"] = sorted(took)
            result["T9"] = faults.reclaimed(stage)
    result["load_average_after"] = _load()
    return result


def _shares(stage: Stage, directory: Path, seconds: float, repeats: int) -> dict[str, Any]:
    card = fake_card(directory)
    rows = shares.alone(stage, card.environment, card.uuid, PERCENTS, seconds, repeats)
    pair = shares.together(stage, card.environment, card.uuid, seconds, repeats)
    return {
        "shares": rows + pair,
        "T5_mean_error_points": shares.mean_error([row for row in rows + pair if row["limit_percent"] >= 30]),
        "T5_mean_error_points_at_10": shares.mean_error([row for row in rows if row["limit_percent"] == 10]),
        "T5_largest_error_points": max(row["error_points"] for row in rows + pair),
        "T6_least_throughput_of_limit": min(row["throughput_of_limit"] for row in rows + pair),
        "T6_mean_throughput_of_limit": round(statistics.mean(row["throughput_of_limit"] for row in rows + pair), 3),
    }


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interceptor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("costs", "shares", "faults"), help="one group instead of all")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each tenant runs (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median is taken (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    arguments = parser.parse_args()
    result = measured(arguments.only, arguments.seconds, arguments.repeats)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        for row in value if isinstance(value, list) else [value]:
            text = "  ".join(f"{key} {figure}" for key, figure in row.items()) if isinstance(row, dict) else row
            print(f"{name:30} {text}")


if __name__ == "__main__":
    main()
