# SPDX-License-Identifier: Apache-2.0
"""Pods that were refused everywhere and wait: what they want, and when kube-scheduler last asked about them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hami_framework.model import PodRequest

PODS_KEPT = 20_000
"""The oldest make room; they are tried again by kube-scheduler's own clock (5 minutes)."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One pod. Times are `time.monotonic()`."""

    request: PodRequest
    asked_at: float
    may_preempt: bool = True
    """`spec.preemptionPolicy` is not `Never`."""
    nominated_node: str = ""
    """`status.nominatedNodeName`: kube-scheduler has made room for it there, by its own lights."""
    hinted_at: float | None = None
    """When kube-scheduler was last told to try it, if it has not asked since."""
    hints: int = 0
    """How often it was told in vain: without asking since."""


class WaitingPods:
    """By uid, with the most important first, and then the one that waits longest."""

    def __init__(self) -> None:
        self._pods: OrderedDict[str, Waiting] = OrderedDict()
        self._ordered: list[Waiting] | None = None

    def refused(self, request: PodRequest, pod: Mapping[str, Any], now: float) -> None:
        """kube-scheduler asked, and no node would do."""
        waiting = self._pods.get(request.uid)
        if waiting is None:
            waiting = self._pods[request.uid] = Waiting(request, now)
            self._ordered = None
            if len(self._pods) > PODS_KEPT:
                self._pods.popitem(last=False)
        spec, status = pod.get("spec") or {}, pod.get("status") or {}
        waiting.request, waiting.asked_at = request, now
        waiting.may_preempt, waiting.nominated_node = spec.get("preemptionPolicy") != "Never", status.get("nominatedNodeName") or ""
        waiting.hinted_at, waiting.hints = None, 0

    def done(self, uid: str) -> None:
        """It found a place, or is gone."""
        if self._pods.pop(uid, None) is not None:
            self._ordered = None

    def get(self, uid: str) -> Waiting | None:
        return self._pods.get(uid)

    def __len__(self) -> int:
        return len(self._pods)

    def __iter__(self) -> Iterator[Waiting]:
        if self._ordered is None:
            self._ordered = sorted(self._pods.values(), key=lambda waiting: -waiting.request.priority)
        return iter(self._ordered)
