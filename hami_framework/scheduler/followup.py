# SPDX-License-Identifier: Apache-2.0
"""What the extender does beyond answering, put together: signs of life, pods that wait, hints, evictions.

Only an extender that answers (`ready`: it knows the whole cluster, and leads) writes anything; all of them watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from hami_framework.errors import FormatError, InvalidRequest
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import KubeError
from hami_framework.kube.reflector import Reflector
from hami_framework.model import PodRequest, Reason
from hami_framework.placement.engine import Engine
from hami_framework.scheduler.disruption import Budget, Resident, Residents
from hami_framework.scheduler.events import EventWriter
from hami_framework.scheduler.evictions import Evictions
from hami_framework.scheduler.hints import Hints
from hami_framework.scheduler.liveness import NAMESPACE, Liveness
from hami_framework.scheduler.metrics import Metrics
from hami_framework.scheduler.service import Extender
from hami_framework.scheduler.state import PodView
from hami_framework.scheduler.waiting import PODS_KEPT, Waiting, WaitingPods

LOOK_SECONDS = 0.2
PAGE = 500
AGAIN_SECONDS = 5.0

_log = logging.getLogger(__name__)


class FollowUp:
    """Told by the extender and by the watches; `run` until cancelled."""

    def __init__(
        self,
        engine: Engine,
        client: KubeClient,
        extender: Extender,
        read_pod: Callable[[dict[str, Any]], PodRequest],
        events: EventWriter,
        metrics: Metrics,
        *,
        lease_namespace: str = NAMESPACE,
        preemption: bool = True,
        **reflector_options: Any,
    ) -> None:
        self.waiting = WaitingPods()
        self._silent_before: frozenset[str] = frozenset()
        self.residents = Residents()
        self._engine, self._client, self._extender, self._read_pod, self._metrics = engine, client, extender, read_pod, metrics
        self.liveness = Liveness(client, self._silent, namespace=lease_namespace, **reflector_options)
        self.budgets: Reflector[Budget] = Reflector(
            client,
            path("poddisruptionbudgets", group="policy"),
            on_upsert=self.residents.budget,
            on_delete=lambda metadata: self.residents.budget_gone(metadata.namespace, metadata.name),
            decode=msgspec.json.Decoder(Budget).decode,
            **reflector_options,
        )
        self.hints = Hints(engine, client, self.waiting, metrics, nodes_of=self._asked_about, leads=lambda: extender.ready)
        self.evictions = Evictions(
            engine,
            client,
            self.waiting,
            self.residents,
            events,
            metrics,
            nodes_of=self._worth_emptying,
            leads=lambda: extender.ready and self.budgets.synced.is_set(),
            freed=self.hints.freed,
            enabled=preemption,
        )
        extender.on_refused, extender.on_feasible, extender.on_offered = self._refused, self.waiting.done, self.evictions.offered
        extender.violations = lambda uids: len(self.residents.protected(uids))

    async def run(self) -> None:
        """For ever. Errors of the API server's are logged and tried again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.liveness.run(), name="signs of life")
            group.create_task(self.budgets.run(), name="reflector disruption budgets")
            group.create_task(self.hints.run(), name="hints")
            group.create_task(self.evictions.run(), name="evictions")
            group.create_task(self._adopt_for_ever(), name="waiting pods")

    # -- what the watches show ----------------------------------------------------------------------------------

    def pod_bound(self, pod: PodView) -> None:
        """A pod is on a node, or one that is has changed."""
        uid = pod.metadata.uid
        self.waiting.done(uid)
        self.evictions.placed(uid)
        if pod.grant_text is not None:
            leaving = pod.metadata.deletion_timestamp is not None
            made = Resident(pod.metadata.namespace, pod.metadata.name, pod.spec.node_name, pod.metadata.labels or {}, pod.status.start_time or "", leaving)
            self.residents.put(uid, made)

    def pod_gone(self, uid: str) -> None:
        """A pod was deleted or has ended."""
        self.waiting.done(uid)
        self.residents.drop(uid)
        self.evictions.gone(uid)

    def _silent(self, nodes: frozenset[str]) -> None:
        came_back = self._silent_before - nodes
        self._silent_before = nodes
        self._engine.set_silent(nodes)
        if came_back:
            self.hints.freed("a node was heard of again")

    # -- what the extender was asked ----------------------------------------------------------------------------

    def _refused(self, request: PodRequest, pod: Mapping[str, Any], now: float) -> None:
        self.waiting.refused(request, pod, now)
        self.evictions.refused(request.uid)

    def _record(self, waiting: Waiting) -> Mapping[Reason, Sequence[str]] | None:
        record = self._extender.verdicts.get(waiting.request.namespace, waiting.request.name)
        return record.refused if record is not None and record.uid == waiting.request.uid else None

    def _asked_about(self, waiting: Waiting) -> Collection[str] | None:
        refused = self._record(waiting)
        return None if refused is None else _Names(refused)

    def _worth_emptying(self, waiting: Waiting) -> Sequence[str]:
        refused = self._record(waiting) or {}
        return [node for code, nodes in refused.items() if not code.final and code is not Reason.NODE_SILENT for node in nodes]

    # -- pods that an earlier life, or another extender, refused -----------------------------------------------------

    async def _adopt_for_ever(self) -> None:
        """Each time we begin to answer: whoever waits was refused by somebody else, and nobody told us."""
        adopted = False
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._extender.ready:
                adopted = False
            elif not adopted:
                try:
                    await self._adopt()
                    adopted = True
                except KubeError as error:
                    _log.warning("pods that wait cannot be read: %s; again in %.0f s", error, AGAIN_SECONDS)
                    await asyncio.sleep(AGAIN_SECONDS)

    async def _adopt(self) -> None:
        query = {"fieldSelector": "spec.nodeName=", "limit": str(PAGE)}
        while True:
            page = await self._client.call(self._client.get, path("pods"), query)
            for pod in page.get("items") or ():
                self._adopt_one(pod)
            following = (page.get("metadata") or {}).get("continue")
            if not following or len(self.waiting) >= PODS_KEPT:
                break
            query["continue"] = following
        if len(self.waiting):
            self.hints.freed("hami-scheduler began to answer")

    def _adopt_one(self, pod: dict[str, Any]) -> None:
        status = pod.get("status") or {}
        refused = any(condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable" for condition in status.get("conditions") or ())
        if not refused or self.waiting.get(pod["metadata"]["uid"]) is not None:
            return
        try:
            request = self._read_pod(pod)
        except (InvalidRequest, FormatError):
            return  # kube-scheduler will ask, and be told what is wrong with it
        if not request.empty and self._engine.entry(request.uid) is None:
            self.waiting.refused(request, pod, float("-inf"))


class _Names(Collection[str]):
    """The nodes of a verdict, as a set that is only made when it is looked into."""

    def __init__(self, refused: Mapping[Reason, Sequence[str]]) -> None:
        self._refused = refused
        self._made: frozenset[str] | None = None

    def __contains__(self, node: object) -> bool:
        if self._made is None:
            self._made = frozenset(self)
        return node in self._made

    def __iter__(self) -> Iterator[str]:
        return (node for nodes in self._refused.values() for node in nodes)

    def __len__(self) -> int:
        return sum(map(len, self._refused.values()))
