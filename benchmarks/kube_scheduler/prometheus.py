# SPDX-License-Identifier: Apache-2.0
"""Histograms from a page of Prometheus text: what happened between two pages, and its quantiles."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Page = list[tuple[str, dict[str, str], float]]


def parse(text: str) -> Page:
    """Every sample: name, labels, value."""
    found = (_LINE.match(line) for line in text.splitlines() if not line.startswith("#"))
    return [(line["name"], dict(_LABEL.findall(line["labels"] or "")), float(line["value"])) for line in found if line]


def histogram(page: Page, name: str, labels: Mapping[str, str]) -> dict[float, float]:
    """Upper bound (seconds) → cumulative count, over all series that have these labels."""
    buckets: dict[float, float] = {}
    for sample, has, value in page:
        if sample == f"{name}_bucket" and all(has.get(key) == wanted for key, wanted in labels.items()):
            buckets[float(has["le"])] = buckets.get(float(has["le"]), 0.0) + value
    return buckets


def quantile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float | None:
    """The bound under which this share of what came between the two lies, interpolated as Prometheus does; None when nothing came."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = max(counts.values(), default=0.0)
    if total == 0:
        return None
    low = below = 0.0
    for bound, count in counts.items():
        if count >= share * total:
            return low if bound == float("inf") else low + (bound - low) * (share * total - below) / max(count - below, 1e-9)
        low, below = bound, count
    return None
