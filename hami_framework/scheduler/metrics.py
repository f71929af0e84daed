# SPDX-License-Identifier: Apache-2.0
"""What the extender counts, for /metrics. One registry per extender, so that tests can run several in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)


class Metrics:
    """The extender's own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram("hami_extender_request_seconds", "Time to answer kube-scheduler, by verb.", ["verb"], buckets=BUCKETS, registry=self.registry)
        self.failures = Counter("hami_extender_failures", "Requests that could not be answered properly, by verb.", ["verb"], registry=self.registry)
        self.rejections = Counter("hami_extender_rejections", "Nodes refused by filter, by reason code.", ["reason"], registry=self.registry)
        self.bindings = Counter(
            "hami_extender_bindings",
            "Bindings: bound, refused, lost (no longer fits), unknown (found out later).",
            ["outcome"],
            registry=self.registry,
        )
        self.bad_objects = Counter("hami_extender_bad_objects", "Grants and inventories that could not be read.", ["kind"], registry=self.registry)
        self.events_lost = Counter("hami_extender_events_lost", "Events that could not be written.", registry=self.registry)
        self.hints = Counter("hami_extender_hints", "Waiting pods that kube-scheduler was told to try again.", registry=self.registry)
        self.evictions = Counter(
            "hami_extender_evictions", "Evictions for devices: evicted, refused (by a disruption budget).", ["outcome"], registry=self.registry
        )
        self.waiting = Gauge("hami_extender_waiting_pods", "Pods that were refused everywhere and wait.", registry=self.registry)
        self.silent = Gauge("hami_extender_silent_nodes", "Nodes whose agent has stopped or gives no sign of life.", registry=self.registry)
        self.undecided = Gauge("hami_extender_undecided_bindings", "Bindings under way or with an unknown outcome.", registry=self.registry)
        self.synced = Gauge("hami_extender_synced", "1 once all watched collections were read completely.", registry=self.registry)
        self.leading = Gauge("hami_extender_leading", "1 while this extender is the one that answers (with --leader-elect).", registry=self.registry)
        self.watch_failures = Gauge("hami_extender_watch_failures", "Failed lists and watches, by collection.", ["collection"], registry=self.registry)

    def page(self) -> bytes:
        """The Prometheus text page."""
        return generate_latest(self.registry)
