# SPDX-License-Identifier: Apache-2.0
"""The use cases of the extender: filter, prioritize, preempt, bind. Knows no HTTP, and asks the API server only in bind.

Everything here runs in the event loop's thread, the engine's only one. Every node that kube-scheduler asks about comes
back: passing, or refused with a code (a node missing from the answer counts as unresolvable there).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

from hami_framework.errors import FormatError, InvalidRequest, Unavailable
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import KubeError
from hami_framework.model import PodRequest, Reason
from hami_framework.placement.engine import Engine
from hami_framework.scheduler.binding import Binder, Target
from hami_framework.scheduler.events import EventWriter
from hami_framework.scheduler.metrics import Metrics
from hami_framework.scheduler.verdicts import Record, Verdicts
from hami_framework.scheduler.wire import (
    BindingArgs,
    Candidates,
    ExtenderArgs,
    FilterResult,
    HostPriority,
    MetaPod,
    MetaVictims,
    PreemptionArgs,
    PreemptionResult,
)

REQUESTS_KEPT = 10_000
"""Pods between filter and bind. One that fell out is read from the API server again at bind."""


class Extender:
    """What kube-scheduler may ask. `read_pod` turns pod JSON into a request (`codec.pods.read_pod` with the catalogue)."""

    def __init__(
        self,
        engine: Engine,
        read_pod: Callable[[dict[str, Any]], PodRequest],
        binder: Binder,
        client: KubeClient,
        events: EventWriter,
        metrics: Metrics,
    ) -> None:
        self.ready = False
        """Set once the engine has the whole cluster, and while this extender leads: else every answer would be wrong."""
        self.warm = False
        """Set once the engine has the whole cluster, whoever leads."""
        self.why_not = "it has not read the whole cluster (pods, nodes and inventories) yet"
        """What an extender that is not ready waits for."""
        self.leads_when_asked = False
        """Whether being asked is what makes this extender lead (`--leader-elect=when-asked`)."""
        self.chosen_only = False
        """Whether filter names the one node that our ranking would decide for anyway (`placement.authority: decisive`), instead of all
        that can take the pod: the outcome is the same, and kube-scheduler need not score a thousand nodes first."""
        self.asked_in_vain: Callable[[], None] = lambda: None
        """Called when a verb comes while we are not ready."""
        self.on_refused: Callable[[PodRequest, Mapping[str, Any], float], None] = lambda request, pod, now: None
        """Called with a pod (as asked, and its JSON) that no node can take now, and the time."""
        self.on_feasible: Callable[[str], None] = lambda uid: None
        """Called with the uid of a pod that some node can take."""
        self.on_offered: Callable[[str], None] = lambda uid: None
        """Called when the preempt verb showed kube-scheduler a way to make room for this pod."""
        self.violations: Callable[[Sequence[str]], int] = lambda uids: 0
        """How many of these owners' evictions would break a disruption budget."""
        self.verdicts = Verdicts()
        self._engine, self._read_pod, self._binder, self._client = engine, read_pod, binder, client
        self._events, self._metrics = events, metrics
        self._requests: OrderedDict[str, PodRequest] = OrderedDict()

    # -- filter -------------------------------------------------------------------------------------------------

    def filter(self, args: ExtenderArgs) -> FilterResult:
        """Which of the nodes can take the pod. `error` is set when there is no answer yet; kube-scheduler then tries again."""
        if not self.ready:
            return FilterResult(error=self._not_now())
        candidates = Candidates(args)
        try:
            request = self._read_pod(args.pod)
        except InvalidRequest as error:
            return self._refuse_everywhere(args.pod, error, candidates)
        except FormatError as error:
            return FilterResult(error=str(error))
        if request.empty:
            return candidates.all_pass()
        if self._binder.undecided(request.uid):
            return FilterResult(error=f"pod {request.namespace}/{request.name}: the outcome of its last binding is not known yet; try again")
        self._remember(request)
        verdict = self._engine.filter(request, candidates.names, time.monotonic())
        refused = verdict.by_reason() if verdict.refused else {}
        record = Record(
            uid=request.uid,
            namespace=request.namespace,
            name=request.name,
            asked=len(candidates.names),
            feasible=len(verdict.feasible),
            refused=refused,
            rejections=verdict.rejections,
        )
        self._report(record)
        if record.feasible:
            self.on_feasible(request.uid)
        elif record.asked:
            self.on_refused(request, args.pod, time.monotonic())
        if self.chosen_only and verdict.best is not None:
            return candidates.passing((verdict.best,), {}, {})
        return candidates.passing(verdict.feasible, *_failed(refused))

    def _refuse_everywhere(self, pod: Mapping[str, Any], error: InvalidRequest, candidates: Candidates) -> FilterResult:
        metadata = pod.get("metadata") or {}
        code = error.rejections[0].reason
        record = Record(
            uid=metadata.get("uid", ""),
            namespace=metadata.get("namespace", "default"),
            name=metadata.get("name", ""),
            asked=len(candidates.names),
            feasible=0,
            refused={code: candidates.names},
            rejections=dict.fromkeys(candidates.names, error.rejections),
            invalid=error.rejections,
        )
        self._report(record)
        return candidates.passing((), *_failed(record.refused))

    def _report(self, record: Record) -> None:
        """Count the codes; tell the pod when it fits nowhere, once for each set of codes."""
        self.verdicts.add(record)
        for code, nodes in record.refused.items():
            self._metrics.rejections.labels(code.value).inc(len(nodes))
        if record.feasible == 0 and record.asked:
            kinds = frozenset(rejection.reason for rejection in record.invalid) or frozenset(record.refused)
            pod = (record.namespace, record.name, record.uid)
            self._events.tell(pod, "Warning", "InvalidDeviceRequest" if record.invalid else "DevicesUnavailable", record.words(), same=kinds)

    def _remember(self, request: PodRequest) -> None:
        self._requests[request.uid] = request
        self._requests.move_to_end(request.uid)
        if len(self._requests) > REQUESTS_KEPT:
            self._requests.popitem(last=False)

    # -- prioritize, preempt ------------------------------------------------------------------------------------

    def prioritize(self, args: ExtenderArgs) -> list[HostPriority]:
        """Scores up to 10 for the nodes that every filter let through. Those left out have 0: kube-scheduler adds up what is there, and takes
        longer to read a line for each of a thousand nodes than to place a pod."""
        names = Candidates(args).names
        scores = self._engine.scores(args.pod["metadata"]["uid"], names, time.monotonic()) if self.ready else [0] * len(names)
        return [HostPriority(name, score) for name, score in compress(zip(names, scores, strict=True), scores)]

    def preempt(self, args: PreemptionArgs) -> PreemptionResult:
        """On which candidate nodes the pod would fit without which pods: at least the victims that kube-scheduler chose.

        A node whose victims are not enough, and where no lower-priority pod would make it so, is left out.
        """
        candidates = args.candidates()
        try:
            request = self._read_pod(args.pod)
        except InvalidRequest:
            return PreemptionResult(meta_victims={})
        if not self.ready:
            return PreemptionResult(meta_victims={})
        if request.empty:
            return PreemptionResult(meta_victims=candidates)
        given = {node: [pod.uid for pod in victims.pods or ()] for node, victims in candidates.items()}
        chosen = {node: uids for node, uids in self._engine.preempt(request, given).items() if uids}
        if chosen:
            self.on_offered(request.uid)
        return PreemptionResult(
            meta_victims={
                node: MetaVictims(
                    pods=[MetaPod(uid=uid) for uid in uids],
                    violations=candidates[node].violations + self.violations([uid for uid in uids if uid not in given[node]]),
                )
                for node, uids in chosen.items()
            }
        )

    # -- bind ---------------------------------------------------------------------------------------------------

    async def bind(self, args: BindingArgs) -> str:
        """Bind the pod to the node; empty on success, else what went wrong."""
        if not self.ready:
            return self._not_now()
        target = Target(namespace=args.pod_namespace, name=args.pod_name, uid=args.pod_uid, node=args.node)
        try:
            request = self._requests.get(target.uid) or await self._fetch(target)
        except (InvalidRequest, FormatError, KubeError, Unavailable) as error:
            return f"{target}: {error}"
        problem = await self._binder.bind(target, request)
        if not problem:
            self._requests.pop(target.uid, None)
        return problem

    async def _fetch(self, target: Target) -> PodRequest:
        """The request of a pod that another extender (or we, before a restart) filtered."""
        request = self._read_pod(await self._client.call(self._client.get, path("pods", namespace=target.namespace, name=target.name)))
        if request.uid != target.uid:
            raise Unavailable(f"its name now belongs to another pod (uid {request.uid})")
        return request

    def _not_now(self) -> str:
        self.asked_in_vain()
        return f"this hami-scheduler does not answer: {self.why_not}; try again"

    @property
    def answers_when_asked(self) -> bool:
        """Not leading, but one question away from it."""
        return self.warm and self.leads_when_asked

    # -- what others want to know -------------------------------------------------------------------------------

    def forget(self, namespace: str, name: str, uid: str) -> None:
        """The pod is gone or has ended."""
        self._requests.pop(uid, None)
        self._events.forget(uid)
        record = self.verdicts.get(namespace, name)
        if record is not None and record.uid == uid:
            self.verdicts.forget(namespace, name)

    def explain(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The last verdict on this pod with every node's reasons; None when it was not asked about."""
        record = self.verdicts.get(namespace, name)
        return record.explanation() if record else None


def _failed(refused: Mapping[Reason, Sequence[str]]) -> tuple[dict[str, str], dict[str, str]]:
    """FailedNodes and FailedAndUnresolvableNodes. Thousands of names have a handful of codes, so work goes by code."""
    now: dict[str, str] = {}
    for_good: dict[str, str] = {}
    for code, nodes in refused.items():
        answer = for_good if code.final else now
        word = code.value
        for node in nodes:
            answer[node] = word
    return now, for_good
