# SPDX-License-Identifier: Apache-2.0
"""Tells kube-scheduler to try a waiting pod again, when devices came free that would do for it.

kube-scheduler puts a pod that an extender refused aside, and takes it up again on any event of the cluster (`findNodesThatPassExtenders` and
`defaultEnqueueExtension` in k8s.io/kubernetes/pkg/scheduler). Two things escape it: what it cannot see (a device healthy again, an
inventory that grew, a local run that ended), and a pod's end that it sees *before* our watch shows it to us: then it asks too early, is
refused once more, and the next look may be five minutes away (`podMaxInUnschedulablePodsDuration`).

So, after anything came free, pods that were last refused before it and would fit now are touched: one condition on the pod's status,
which kube-scheduler takes for an event of that pod alone (`PriorityQueue.Update`). It works in whichever queue the pod is; the pod's own
backoff (1 to 10 s after its last try) still holds where it has not run out. Permission: `patch` on `pods/status`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime

from hami_framework.kube.client import KubeClient, Object, path
from hami_framework.kube.errors import ApiError, KubeError
from hami_framework.placement.engine import Engine
from hami_framework.scheduler.metrics import Metrics
from hami_framework.scheduler.waiting import Waiting, WaitingPods

CONDITION = "hami.io/DevicesFree"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
"""Merges conditions by their type (`patchMergeKey` of PodStatus.conditions)."""

SETTLE_SECONDS = 0.15
"""Frees come in groups, and kube-scheduler mostly comes by itself: who was asked about since needs no hint."""
PER_ROUND, ROUND_SECONDS = 20, 0.5
"""At most so many hints so often: 40 pods a second. What is left over has its turn in the next round."""
UNANSWERED_SECONDS = 15.0
"""A pod that was told and not asked about since keeps its place in the reckoning for so long: kube-scheduler's longest backoff is 10 s."""
MOST_UNANSWERED = 3
"""Then something else keeps the pod (another plugin's filter): it is left alone until kube-scheduler asks again."""

_log = logging.getLogger(__name__)


def worth_telling(waiting: Iterable[Waiting], fitting: Callable[[Iterable[Waiting]], Collection[str]], freed_at: float, now: float) -> list[Waiting]:
    """Pure: the pods to tell, the most important first. `fitting`: which of these would fit, each beside those before it.

    Whoever was told lately counts as placed, so that never more are under way than fit.
    """
    eligible = [pod for pod in waiting if pod.asked_at <= freed_at and pod.hints < MOST_UNANSWERED]
    fit = set(fitting(eligible)) if eligible else set()
    return [pod for pod in eligible if pod.request.uid in fit and (pod.hinted_at is None or now - pod.hinted_at >= UNANSWERED_SECONDS)]


class Hints:
    """`freed` whenever something may have come free; `run` until cancelled. Only while `leads` says so is anything written."""

    def __init__(
        self,
        engine: Engine,
        client: KubeClient,
        waiting: WaitingPods,
        metrics: Metrics,
        *,
        nodes_of: Callable[[Waiting], Collection[str] | None],
        leads: Callable[[], bool],
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        """`nodes_of`: the nodes that kube-scheduler asked about with the pod (the others are out for reasons of its own); None: not known any more."""
        self._engine, self._client, self._waiting, self._metrics = engine, client, waiting, metrics
        self._nodes_of, self._leads, self._settle_seconds = nodes_of, leads, settle_seconds
        self._freed_at = float("-inf")
        self._why = ""
        self._poked = asyncio.Event()

    def freed(self, why: str) -> None:
        """Something that was taken, broken or silent is not any more."""
        self._freed_at, self._why = time.monotonic(), why
        self._poked.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._poked.wait()
            self._poked.clear()
            if not len(self._waiting) or not self._leads():
                continue
            await asyncio.sleep(self._settle_seconds)
            if await self.round():
                self._poked.set()  # there may be more of them
                await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> int:
        """Tell those whose time it is; returns how many were told."""
        now = time.monotonic()
        told = worth_telling(self._waiting, self._fitting, self._freed_at, now)[:PER_ROUND]
        for pod in told:
            pod.hinted_at, pod.hints = now, pod.hints + 1
        await asyncio.gather(*map(self._tell, told))
        return len(told)

    def _fitting(self, pods: Iterable[Waiting]) -> Collection[str]:
        # Those under way (at most a few rounds') come first in any case: they are the most important ones of their time.
        under_way = sum(pod.hinted_at is not None for pod in self._waiting)
        return self._engine.fitting(((pod.request, self._nodes_of(pod)) for pod in pods), PER_ROUND + under_way)

    async def _tell(self, pod: Waiting) -> None:
        request = pod.request
        try:
            url = path("pods", namespace=request.namespace, name=request.name, subresource="status")
            await self._client.call(self._client.patch, url, condition(request.uid, self._why), STRATEGIC_MERGE)
        except ApiError as error:
            if error.not_found or error.conflict:  # it is gone, or its name is another's by now
                self._waiting.done(request.uid)
                return
            self._failed(pod, error)
        except KubeError as error:
            self._failed(pod, error)
        else:
            self._metrics.hints.inc()

    def _failed(self, pod: Waiting, error: KubeError) -> None:
        _log.warning("pod %s/%s would fit now, and kube-scheduler could not be told: %s", pod.request.namespace, pod.request.name, error)


def condition(uid: str, why: str) -> Object:
    """The patch: one condition, different each time (a patch that changes nothing makes no event)."""
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    words = f"devices that this pod waited for came free at {now.isoformat(timespec='milliseconds')} ({why})"
    return {
        "metadata": {"uid": uid},
        "status": {
            "conditions": [{"type": CONDITION, "status": "True", "reason": "TryAgain", "message": words, "lastProbeTime": stamp, "lastTransitionTime": stamp}]
        },
    }
