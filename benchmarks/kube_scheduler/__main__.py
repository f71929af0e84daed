# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.kube_scheduler --nodes 1000 --pods 2000 --json`: pods placed per second on a real kube-scheduler.

kube-scheduler is stopped while the pods are made, and continued: the rate is pods by the seconds from there to the last
binding. etcd, API server, controller manager, kube-scheduler and extender share this machine's cores. Forms take turns, round by
round, in the same lab; without the extender its process does not run at all. Nodes advertise memory and cores too,
so that the very same pods can be placed by the default scheduler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

from benchmarks.kube_scheduler import prometheus
from benchmarks.kube_scheduler.load import Load
from benchmarks.kube_scheduler.stage import Form, Stage
from e2e.lab import Lab
from e2e.lab.fake_nodes import FakeNodes, Stock
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import load

FORMS = (
    Form("without-own-choice", extender=False, percentage=None),
    Form("without", extender=False, percentage=100),
    Form("with", extender=True, percentage=100),
)
LONGEST_SECONDS = 240.0
WARM_UP = 100
QUANTILES = {"p50": 0.5, "p99": 0.99}
SCHEDULER_TIMES = {
    "attempt": ("scheduler_scheduling_attempt_duration_seconds", {"result": "scheduled"}),
    "algorithm": ("scheduler_scheduling_algorithm_duration_seconds", {}),
    "filter": ("scheduler_framework_extension_point_duration_seconds", {"extension_point": "Filter"}),
    "score": ("scheduler_framework_extension_point_duration_seconds", {"extension_point": "Score"}),
    "bind": ("scheduler_framework_extension_point_duration_seconds", {"extension_point": "Bind"}),
}
EXTENDER_TIMES = {verb: ("hami_extender_request_seconds", {"verb": verb}) for verb in ("filter", "prioritize", "bind")}

Figures = dict[str, Any]


def measured(stage: Stage, work: Load, form: Form, pods: int) -> Figures:
    """One round of one form."""
    with stage.playing(form):
        work.create(WARM_UP).wait(LONGEST_SECONDS)
        work.clear()
        pages = _pages(stage, form)
        with stage.held():
            bound = work.create(pods)
            time.sleep(1)
            cpu = stage.cpu_seconds()
            began = time.monotonic()
        bound.wait(LONGEST_SECONDS)
        seconds = bound.times[pods - 1] - began
        spent = {name: round((after - cpu[name]) / pods * 1000, 3) for name, after in stage.cpu_seconds().items()}
        latencies = _latencies(pages, _pages(stage, form))
        used = {pod["spec"].get("nodeName") for pod in work.placed()}
        work.clear()
    return {
        "form": form.name,
        "pods_per_s": round(pods / seconds, 1),
        "seconds": round(seconds, 2),
        "cpu_ms_per_pod": spent | {"all": round(sum(spent.values()), 3)},
        "latency_ms": latencies,
        "nodes_used": len(used),
        "load": round(os.getloadavg()[0], 2),
    }


def summary(rounds: list[Figures]) -> Figures:
    """Medians of each form, and the ratios that matter."""
    rates = {form.name: [each["pods_per_s"] for each in rounds if each["form"] == form.name] for form in FORMS}
    middle = {name: statistics.median(found) for name, found in rates.items() if found}
    base = middle.get("without")
    return {"pods_per_s": rates, "median": middle, "ratio": {name: round(rate / base, 3) for name, rate in middle.items()} if base else {}}


def _pages(stage: Stage, form: Form) -> tuple[prometheus.Page, prometheus.Page]:
    return prometheus.parse(stage.scheduler_metrics()), prometheus.parse(stage.extender_metrics()) if form.extender else []


def _latencies(before: tuple[prometheus.Page, prometheus.Page], after: tuple[prometheus.Page, prometheus.Page]) -> Figures:
    found: Figures = {}
    for side, times, old, new in zip(("kube-scheduler", "extender"), (SCHEDULER_TIMES, EXTENDER_TIMES), before, after, strict=True):
        for what, (name, labels) in times.items():
            buckets = prometheus.histogram(old, name, labels), prometheus.histogram(new, name, labels)
            values = {key: prometheus.quantile(*buckets, share) for key, share in QUANTILES.items()}
            if all(value is not None for value in values.values()):
                found[f"{side} {what}"] = {key: round((value or 0.0) * 1000, 3) for key, value in values.items()}
    return found


def run(lab: Lab, nodes: int, pods: int, rounds: int, forms: tuple[Form, ...] = FORMS, *, keep: bool = False) -> Figures:
    """All rounds in a lab that is up. Its fake nodes are made, and removed unless `keep`."""
    credentials = load(str(lab.kubeconfig))
    client = KubeClient(credentials, threads=12, timeout_seconds=60)
    stock = Stock.of()
    family = stock.vendor.resources[0]
    amounts = {name: "1000000" for name in (family.memory, family.cores) if name}
    results: list[Figures] = []
    fakes, work, stage = FakeNodes(client, more_resources=amounts), Load(credentials, family), Stage(lab, stock.vendor)
    try:
        fakes.create(nodes)
        work.clear()
        for _ in range(rounds):
            for form in forms:
                results.append(measured(stage, work, form, pods))
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    finally:
        if not keep:
            fakes.delete()
        work.close()
        client.close()
    return {"nodes": nodes, "pods": pods, "cores": os.cpu_count(), **summary(results), "rounds": results}


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kube_scheduler", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="throughput", help="of the lab; one that is up is used and left up (%(default)s)")
    parser.add_argument("--forms", nargs="*", default=[form.name for form in FORMS], help="only these (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the fake nodes for the next time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    forms = tuple(form for form in FORMS if form.name in options.forms)
    lab = Lab.up(options.name, node=False)
    figures = run(lab, options.nodes, options.pods, options.rounds, forms, keep=options.keep)
    print(json.dumps(figures) if options.json else "\n".join(f"{name:>12}: {value}" for name, value in figures.items() if name != "rounds"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
