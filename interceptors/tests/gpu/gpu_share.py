# SPDX-License-Identifier: Apache-2.0
"""Part 3, the share of the device's time: what programs got done under a limit, as a share of what they get done without.

Alone, in several ways of giving the device work; two at once; alone and lent everything; in bursts.
"""

from __future__ import annotations

from typing import Any

from gpu_bench import Bench
from gpu_report import Part

WINDOW = 0.5
POINTS = 0.05
BURST_MS = 500


def share(bench: Bench) -> Part:
    part = Part(f"3. Share of the device's time, {bench.scale.seconds} s each")
    calibrated = bench.once(bench.direct, "calibrate")
    rate = calibrated["rate"]
    part.notes.append(f"the calibrated rate is {rate} steps in 2^20 ns, with {calibrated['blocks']} blocks of 1024 threads")
    native = {}
    for way, kernel in bench.scale.ways:
        (alone,) = bench.together((bench.direct, ("compute", way, bench.scale.seconds, kernel, rate)))
        native[way] = alone["done"] / alone["seconds"]
        part.notes.append(f"{way}: kernels of {kernel} ns keep the device busy for {native[way]:.3f} of the time without a limit")
    for way, kernel in bench.scale.ways:
        for percent in bench.scale.percents:
            container = bench.container(f"share-{way}-{percent}", percent=percent)
            (run,) = bench.together((container, ("compute", way, bench.scale.seconds, kernel, rate)))
            _judge(part, way, percent / 100, run, native[way], container.books().waited_ns)
    way, kernel = bench.scale.ways[0]
    _two(bench, part, way, kernel // 4, rate, native[way])
    _lent(bench, part, way, kernel, rate, native[way])
    _bursts(bench, part, way, kernel // 4, rate, native[way])
    return part


def _judge(part: Part, name: str, limit: float, run: dict[str, Any], native: float, waited_ns: int) -> None:
    row = {"what": name, "limit": limit, **figures(run, limit, native), "held back, s": waited_ns / 1e9}
    part.rows.append(row)
    part.check(f"{name} at {limit:.0%}: got {row['share']:.1%}, within 5 points", abs(row["share"] - limit) <= POINTS)


def figures(run: dict[str, Any], limit: float, native: float) -> dict[str, Any]:
    """The share in all; the mean distance from the limit, window by window; when a window was first within 5 points; what was reached of the limit."""
    got = run["done"] / run["seconds"] / native
    windows = _windows(run["samples"], native)
    errors = [abs(one - limit) for _, one in windows]
    within = next((at for (at, _), error in zip(windows, errors, strict=True) if error <= POINTS), None)
    mean = sum(errors) / len(errors) if errors else None
    return {"share": got, "MAE": mean, "seconds to within 5 points": within, "of the limit": got / limit}


def _windows(samples: list[list[float]], native: float) -> list[tuple[float, float]]:
    """(end, share) of each window of about WINDOW seconds: between the samples nearest to its ends."""
    found, start, done = [], 0.0, 0.0
    for at, total in samples:
        if at - start >= WINDOW:
            found.append((at, (total - done) / (at - start) / native))
            start, done = at, total
    return found


def _two(bench: Bench, part: Part, way: str, kernel: int, rate: int, native: float) -> None:
    limits = (30, 70)
    containers = [bench.container(f"two-{percent}", percent=percent) for percent in limits]
    runs = bench.together(*((container, ("compute", way, bench.scale.seconds, kernel, rate)) for container in containers))
    for percent, container, run in zip(limits, containers, runs, strict=True):
        row = {"what": "two at once", "limit": percent / 100, **figures(run, percent / 100, native), "held back, s": container.books().waited_ns / 1e9}
        part.rows.append(row)
        part.check(f"two at once: the one with {percent} % got {row['share']:.1%}, not above it by 5 points", row["share"] <= percent / 100 + POINTS)


def _lent(bench: Bench, part: Part, way: str, kernel: int, rate: int, native: float) -> None:
    container = bench.container("lent", percent=30, lent=True)
    (run,) = bench.together((container, ("compute", way, bench.scale.seconds, kernel, rate)))
    row = {"what": "alone at 30 %, lent everything", "limit": 1.0, **figures(run, 1.0, native), "held back, s": container.books().waited_ns / 1e9}
    part.rows.append(row)
    part.check(f"alone with 30 % and lent everything: got {row['share']:.1%}, 90 % or more", row["share"] >= 0.9)


def _bursts(bench: Bench, part: Part, way: str, kernel: int, rate: int, native: float) -> None:
    container = bench.container("bursts", percent=30)
    (run,) = bench.together((container, ("compute", way, max(bench.scale.seconds, 4 * BURST_MS / 1000), kernel, rate, BURST_MS, BURST_MS)))
    got, while_on = run["done"] / run["seconds"] / native, run["done"] / (run["seconds"] - run["paused"]) / native
    row = {"what": f"{BURST_MS} ms on, {BURST_MS} ms off", "limit": 0.3, "share": got, "share while on": while_on}
    part.rows.append(row | {"held back, s": container.books().waited_ns / 1e9})
    part.check(f"in bursts at 30 %: got {got:.1%} in all, not above it by 5 points", got <= 0.3 + POINTS)
