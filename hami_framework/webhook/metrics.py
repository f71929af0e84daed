# SPDX-License-Identifier: Apache-2.0
"""What the webhook counts, for /metrics. One registry per webhook, so that tests can run several in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The webhook's own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram("hami_webhook_review_seconds", "Time to answer one AdmissionReview.", buckets=BUCKETS, registry=self.registry)
        self.reviews = Counter(
            "hami_webhook_reviews", "Reviews: patched, untouched, denied, malformed, failed (an error of ours).", ["outcome"], registry=self.registry
        )
        self.quota_unread = Counter("hami_webhook_quota_unread", "Reviews whose namespace quota could not be looked at in time.", registry=self.registry)
        self.expiry = Gauge(
            "hami_webhook_certificate_expiry_timestamp_seconds", "When the certificate in use runs out; 0: none is in use.", registry=self.registry
        )
        self.leading = Gauge("hami_webhook_leading", "1 while this replica keeps the certificates.", registry=self.registry)
        self.steps = Counter(
            "hami_webhook_certificate_steps", "Writes of the certificates' keeper, by kind and outcome.", ["step", "outcome"], registry=self.registry
        )

    def page(self) -> bytes:
        """The Prometheus text page."""
        return generate_latest(self.registry)
