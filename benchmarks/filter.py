# SPDX-License-Identifier: Apache-2.0
"""How long one placement decision takes: `python -m benchmarks.filter --nodes 5000 --devices 8 --pods 40000 --json`.

A mixed cluster with resident pods on every device. One decision is filter over all nodes plus prioritize of what it let
through: by the engine alone, with freshly decoded node names and with pods that are bound and end in between, so that it
has changed nodes to look at (`cold` is the first decision of a shape); and by the real extender over HTTP.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks import extender
from benchmarks.cluster import build, shapes
from hami_framework.model import ContainerRequest, PodRequest
from hami_framework.placement.engine import Engine

Figures = dict[str, float]


def spread_of(samples: Sequence[float]) -> Figures:
    """Median, 99th percentile and maximum of seconds, in milliseconds."""
    ordered = sorted(samples)
    return {
        "p50": round(statistics.median(ordered) * 1000, 3),
        "p99": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000, 3),
        "max": round(ordered[-1] * 1000, 3),
    }


def decisions(
    engine: Engine, requests: Sequence[tuple[ContainerRequest, ...]], repeats: int, names: Sequence[str], rng: random.Random
) -> tuple[list[float], list[float]]:
    """Seconds of each decision: first of its shape, and later ones."""
    cold: list[float] = []
    warm: list[float] = []
    alive: list[str] = []
    for number in range(len(requests) + repeats):
        first = number < len(requests)
        containers = requests[number] if first else rng.choice(requests)
        pod = PodRequest(uid=f"new-{number}", namespace="default", name=f"new-{number}", containers=containers)
        asked = fresh(names)
        begin = time.perf_counter()
        verdict = engine.filter(pod, asked, now=float(number))
        middle = time.perf_counter()
        again = fresh(verdict.feasible)
        resume = time.perf_counter()
        if verdict.best is not None:
            engine.scores(pod.uid, again)
        (cold if first else warm).append(middle - begin + time.perf_counter() - resume)
        if verdict.best is not None:
            engine.reserve(pod, verdict.best)
            engine.commit(pod.uid)
            alive.append(pod.uid)
        if len(alive) > 200:
            engine.forget(alive.pop(rng.randrange(len(alive))))
    return cold, warm


def fresh(names: Sequence[str]) -> list[str]:
    """The same names as new strings: nothing may be gained from their identity or cached hash."""
    decoded: list[str] = json.loads(json.dumps(names))
    return decoded


def engine_figures(arguments: argparse.Namespace) -> dict[str, object]:
    """The engine alone, in this process; and again with a tenth of the resident pods."""
    warm, cold, rebuild_s = measured(arguments, arguments.pods)
    fewer, _, _ = measured(arguments, arguments.pods // 10)
    return {
        "engine_ms": spread_of(warm),
        "engine_cold_ms": spread_of(cold),
        "engine_ms_tenth_of_pods": spread_of(fewer),
        "ratio_to_tenth_of_pods": round(statistics.median(warm) / statistics.median(fewer), 2),
        "rebuild_s": round(rebuild_s, 2),
    }


def measured(arguments: argparse.Namespace, pods: int) -> tuple[list[float], list[float], float]:
    """Seconds of warm and of cold decisions, and of the rebuild, with so many resident pods."""
    rng = random.Random(arguments.seed)
    engine, rebuild_s = build(arguments.nodes, arguments.devices, pods, rng)
    names = [f"node-{number:05d}" for number in range(arguments.nodes)]
    gc.collect()
    gc.freeze()  # as the extender does after its first sync: collections must not walk the cluster
    cold, warm = decisions(engine, shapes(40, rng), arguments.decisions, names, rng)
    gc.unfreeze()
    return warm, cold, rebuild_s


def http_figures(arguments: argparse.Namespace) -> dict[str, object]:
    """The whole extender in its own process, over one kept connection."""
    same, rotated, rss_mb = extender.ask(extender.Size(arguments.nodes, arguments.devices, arguments.pods, arguments.seed), arguments.decisions)
    return {"http_ms": spread_of(same), "http_rotated_ms": spread_of(rotated), "rss_mb": round(rss_mb)}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {"http": http_figures, "engine": engine_figures}
"""What is measured; each part answers figures to be merged into the result."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--devices", type=int, default=8, help="devices per node")
    parser.add_argument("--pods", type=int, default=40_000, help="resident pods")
    parser.add_argument("--decisions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    figures: dict[str, object] = {"nodes": parsed.nodes, "devices": parsed.devices, "pods": parsed.pods, "load_before": round(os.getloadavg()[0], 2)}
    for part in PARTS.values():
        figures.update(part(parsed))
    print(json.dumps(figures) if parsed.json else "\n".join(f"{name:>16}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
