# SPDX-License-Identifier: Apache-2.0
"""Part 2, latency: an empty launch, an allocation and a free; directly, and with the library; alone, and beside others.

There are figures here and no bounds: what the library may add is held to its budget by the benchmarks, on a driver that takes
no time itself. That every process got to the end is checked.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from gpu_bench import MIB, Bench
from gpu_container import Place
from gpu_report import Part


def _places(bench: Bench, name: str) -> dict[str, Place]:
    return {
        "direct": bench.direct,
        "library, no compute limit": bench.container(f"{name}-free", memory=bench.capacity),
        "library, compute limit 100 %": bench.container(f"{name}-limited", memory=bench.capacity, percent=100),
    }


def latency(bench: Bench) -> Part:
    part, scale = Part("2. Latency, ns"), bench.scale
    for processes in scale.processes:
        each = scale.launches if processes == 1 else scale.launches_each
        _measured(bench, part, processes, "launch", each)
    for size in scale.sizes:
        if 2 * size < bench.capacity:
            _measured(bench, part, 1, "alloc", size, scale.allocations if size <= MIB else max(10, scale.allocations // 20))
    for processes in scale.processes[1:]:
        _measured(bench, part, processes, "alloc", MIB, scale.allocations)
    return part


def _measured(bench: Bench, part: Part, processes: int, *arguments: Any) -> None:
    base: dict[str, float] = {}
    for name, place in _places(bench, str(arguments[0])).items():
        if arguments[0] == "alloc" and "100" in name:
            continue  # allocations know no compute limit
        answers = bench.together(*[(place, arguments)] * processes)
        part.check(f"{' '.join(map(str, arguments))}, {name}: {len(answers)} of {processes} processes got to the end", len(answers) == processes)
        for call in answers[0]:
            row = _row(call, arguments, processes, name, [answer[call] for answer in answers])
            base.setdefault(call, row["p50"])
            row["added to p50"] = row["p50"] - base[call]
            part.rows.append(row)


def _row(call: str, arguments: tuple[Any, ...], processes: int, place: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of the processes' medians; of the tails the worst."""
    size = arguments[1] if arguments[0] == "alloc" else None
    row = {"call": call, "bytes": size, "processes": processes, "place": place, "count": answers[0]["count"], "p50": median(one["p50"] for one in answers)}
    return row | {name: max(one[name] for one in answers) for name in ("p90", "p99", "p999", "max")}
