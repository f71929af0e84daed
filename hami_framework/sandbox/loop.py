# SPDX-License-Identifier: Apache-2.0
"""The scheduling loop: one pod at a time through filter and score, then an asynchronous bind, as kube-scheduler does it.

Serial cycle → in-tree filters → extender filter → extender prioritize → one of the best at random → assumed → bind in
the background. What fails rests in the queue until its backoff is over, or until something changes. In-tree scores are
all equal here, so the extender's decide; nothing else of kube-scheduler's scoring is simulated.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hami_framework.errors import HamiError
from hami_framework.sandbox import preemption
from hami_framework.sandbox.cluster_view import ClusterView, terminal
from hami_framework.sandbox.extender import Extender, Victims
from hami_framework.sandbox.fit import Amounts, Unfit, check, priority, requests
from hami_framework.sandbox.operations import Operations
from hami_framework.sandbox.pod_queue import Backoff, SchedulingQueue, Waiting
from hami_framework.sandbox.recorder import Recorder
from hami_framework.sandbox.resources import PODS
from hami_framework.sandbox.status import ApiRefusal
from hami_framework.sandbox.storage import Change, timestamp

log = logging.getLogger(__name__)

Json = dict[str, Any]
INVENTORIES = ("hami.io", "nodeinventories")


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop is configured; the defaults are kube-scheduler's, but for `also_requeue_on`."""

    scheduler_name: str = "default-scheduler"
    ignored: frozenset[str] = frozenset()
    """Resources that NodeResourcesFit leaves alone (`ignoredByScheduler`)."""
    backoff: Backoff = field(default_factory=Backoff)
    seed: int = 0
    also_requeue_on: frozenset[tuple[str, str]] = frozenset({INVENTORIES})
    """(group, plural) of kinds whose changes wake waiting pods. kube-scheduler knows Node and Pod only and would wait for its flush."""


class NoFit(Exception):
    """No node will do: why, for each."""

    def __init__(self, unfit: dict[str, Unfit], total: int) -> None:
        super().__init__(unfit)
        self.unfit, self.total = unfit, total

    def message(self) -> str:
        """kube-scheduler's sentence: `0/6 nodes are available: 2 Insufficient cpu, 4 …`."""
        counts = Counter(reason for unfit in self.unfit.values() for reason in unfit.reasons)
        reasons = ", ".join(sorted(f"{count} {reason}" for reason, count in counts.items()))
        return f"0/{self.total} nodes are available: {reasons or 'no nodes'}."


class SchedulingLoop:
    """Schedules the pods of one API server. `extender` None: only in-tree filters and the default binder."""

    def __init__(self, operations: Operations, extender: Extender | None = None, options: LoopOptions | None = None) -> None:
        self.options = options or LoopOptions()
        self.queue = SchedulingQueue(self.options.backoff)
        self._operations, self._extender = operations, extender
        self._random = Random(self.options.seed)
        self._recorder = Recorder(operations, self.options.scheduler_name)
        self._binding: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._view: ClusterView | None = None

    async def start(self) -> None:
        """Take in what is there, then schedule in the background until `stop`."""
        self._view = ClusterView(self._operations.store, self._pod_changed, self.queue.move_all, self.options.also_requeue_on)
        for pod in self._operations.store.list(PODS):
            self._enqueue(pod)
        self._runner = asyncio.create_task(self._run(self._view), name="sandbox scheduling loop")

    async def stop(self) -> None:
        """Stop scheduling; binds in flight are given up."""
        tasks = [task for task in (self._runner, *self._binding) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        view, self._view = self._view, None
        if view is not None:
            view.close()
        if self._extender is not None:
            await self._extender.close()

    # -- the queue

    def _pod_changed(self, change: Change) -> None:
        pod = change.after
        uid = pod["metadata"]["uid"]
        if change.type == "DELETED" or pod["spec"].get("nodeName") or terminal(pod):
            self.queue.forget(uid)
        elif uid not in self.queue:
            self._enqueue(pod)
        elif change.before is not None and _wishes(change.before) != _wishes(pod):
            self.queue.move(uid)

    def _enqueue(self, pod: Json) -> None:
        metadata, spec = pod["metadata"], pod["spec"]
        mine = spec.get("schedulerName") == self.options.scheduler_name
        if mine and not (spec.get("nodeName") or spec.get("schedulingGates") or terminal(pod) or "deletionTimestamp" in metadata):
            self.queue.add(Waiting(metadata["uid"], metadata["namespace"], metadata["name"], priority(pod)))

    async def _run(self, view: ClusterView) -> None:
        while True:
            waiting, moves = await self.queue.take()
            pod = self._operations.store.find(PODS, waiting.namespace, waiting.name)
            if pod is None or pod["metadata"]["uid"] != waiting.uid or pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
                self.queue.forget(waiting.uid)
                continue
            try:
                node = await self._choose(pod, view)
            except NoFit as nofit:
                await self._no_fit(pod, nofit, view)
                self.queue.failed(waiting, moves, retry=False)
            except HamiError as error:
                self._report(pod, "SchedulerError", str(error))
                self.queue.failed(waiting, moves, retry=True)
            except Exception as error:
                log.exception("scheduling %s/%s", waiting.namespace, waiting.name)
                self._report(pod, "SchedulerError", f"{type(error).__name__}: {error}")
                self.queue.failed(waiting, moves, retry=True)
            else:
                view.assume(pod, node)
                task = asyncio.create_task(self._bind(pod, node, waiting, moves, view), name=f"bind {waiting.name}")
                self._binding.add(task)
                task.add_done_callback(self._binding.discard)

    # -- one cycle

    async def _choose(self, pod: Json, view: ClusterView) -> str:
        """The node to bind to. Raises `NoFit`, or `Unavailable` when the extender does not answer."""
        wanted = requests(pod)
        verdicts = {name: check(pod, wanted, state, self.options.ignored) for name, state in view.nodes.items()}
        unfit = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
        passed = [name for name, verdict in verdicts.items() if verdict is None]
        total = len(verdicts)
        extender = self._extender if self._extender and self._extender.interested(pod) else None
        if extender and passed:
            result = await extender.filter(pod, passed)
            unfit |= {node: Unfit((reason,), resolvable=True) for node, reason in result.failed.items()}
            unfit |= {node: Unfit((reason,), resolvable=False) for node, reason in result.unresolvable.items()}
            passed = [node for node in result.passed if node in view.nodes]
        if not passed:
            raise NoFit(unfit, total)
        if len(passed) == 1:
            return passed[0]
        scores = await self._scores(extender, pod, passed)
        top = max(scores.values())
        return self._random.choice(sorted(node for node, score in scores.items() if score == top))

    async def _scores(self, extender: Extender | None, pod: Json, nodes: list[str]) -> dict[str, int]:
        """An extender that cannot rank is no reason not to schedule, as in kube-scheduler."""
        equal = dict.fromkeys(nodes, 0)
        if extender is None:
            return equal
        try:
            given = await extender.prioritize(pod, nodes)
        except HamiError as error:
            log.warning("%s: %s; all nodes count as equal", pod["metadata"]["name"], error)
            return equal
        return {node: given.get(node, 0) for node in nodes}

    async def _bind(self, pod: Json, node: str, waiting: Waiting, moves: int, view: ClusterView) -> None:
        metadata = pod["metadata"]
        try:
            if self._extender and self._extender.interested(pod):
                await self._extender.bind(pod, node)
            else:
                body = {"metadata": {"name": metadata["name"], "uid": metadata["uid"]}, "target": {"kind": "Node", "name": node}}
                self._operations.bind(metadata["namespace"], metadata["name"], body)
        except (HamiError, ApiRefusal) as error:
            self._unbound(pod, node, str(error), view)
            self.queue.failed(waiting, moves, retry=True)
            return
        self.queue.forget(metadata["uid"])
        self._recorder.record(pod, "Normal", "Scheduled", f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}")

    def _unbound(self, pod: Json, node: str, problem: str, view: ClusterView) -> None:
        """The bind call failed. The pod may be bound all the same; the store knows, and the watch would have told."""
        held = self._operations.store.find(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        if held is not None and held["metadata"]["uid"] == pod["metadata"]["uid"] and held["spec"].get("nodeName"):
            return
        view.forget(pod["metadata"]["uid"])
        self.queue.move_all()
        if held is not None:
            self._report(held, "SchedulerError", f"binding rejected on node {node}: {problem}")

    # -- no node

    async def _no_fit(self, pod: Json, nofit: NoFit, view: ClusterView) -> None:
        said = nofit.message()
        if pod["spec"].get("preemptionPolicy") == "Never":
            said += f" preemption: 0/{nofit.total} nodes are available: not eligible due to preemptionPolicy=Never."
        else:
            nominated, outcome = await self._preempt(pod, nofit, view)
            said += "" if nominated else f" {outcome}"
        self._report(pod, "Unschedulable", said)

    async def _preempt(self, pod: Json, nofit: NoFit, view: ClusterView) -> tuple[str | None, str]:
        """The node whose pods were sent away for this one, or None and the words for it."""
        resolvable = [view.nodes[name] for name, unfit in nofit.unfit.items() if unfit.resolvable and name in view.nodes]
        words = preemption.message(nofit.total, len(resolvable))
        if self._room_is_coming(pod, view):
            return None, "preemption: waiting for earlier victims to leave."
        wanted: Amounts = requests(pod)
        victims = preemption.candidates(pod, wanted, resolvable, self.options.ignored)
        if victims and self._extender and self._extender.interested(pod):
            try:
                victims = self._known(await self._extender.preempt(pod, victims), view)
            except HamiError as error:
                return None, f"preemption: {error}."
        if not victims:
            return None, words
        node = preemption.best(victims, view.nodes)
        for uid in victims[node]:
            self._evict(view.nodes[node].pods[uid], pod, node)
        view.nominate(pod, node)
        self._set_status(pod, {"nominatedNodeName": node})
        return node, ""

    def _known(self, victims: Victims, view: ClusterView) -> Victims:
        """Victims that the extender chose; naming a pod that is not on the node makes the whole answer void, as in kube-scheduler."""
        strangers = [uid for node, uids in victims.items() for uid in uids if uid not in view.nodes[node].pods]
        if strangers:
            raise HamiError(f"extender preempt: victims that are not on their node: {', '.join(strangers)}")
        return {node: uids for node, uids in victims.items() if uids}

    def _room_is_coming(self, pod: Json, view: ClusterView) -> bool:
        """True while pods that were sent away for this one have not left yet: nobody else has to go for it."""
        state = next((state for state in view.nodes.values() if pod["metadata"]["uid"] in state.nominated), None)
        return state is not None and any("deletionTimestamp" in other["metadata"] and priority(other) < priority(pod) for other in state.pods.values())

    def _evict(self, victim: Json, preemptor: Json, node: str) -> None:
        metadata = victim["metadata"]
        who = f"{preemptor['metadata']['namespace']}/{preemptor['metadata']['name']}"
        self._recorder.record(victim, "Normal", "Preempted", f"Preempted by pod {who} on node {node}")
        try:
            self._operations.delete(PODS, metadata["namespace"], metadata["name"], {"preconditions": {"uid": metadata["uid"]}})
        except ApiRefusal as refusal:
            if refusal.code not in (404, 409):
                raise

    # -- what people see

    def _report(self, pod: Json, reason: str, message: str) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        self._set_status(pod, {}, condition)
        self._recorder.record(pod, "Warning", "FailedScheduling", message)

    def _set_status(self, pod: Json, fields: Json, condition: Json | None = None) -> None:
        held = self._operations.store.find(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        if held is None or held["metadata"]["uid"] != pod["metadata"]["uid"] or held["spec"].get("nodeName"):
            return
        conditions = held["status"].get("conditions") or []
        old: Json = next((item for item in conditions if item["type"] == "PodScheduled"), {})
        if condition is not None and {key: old.get(key) for key in condition} != condition:
            since = old["lastTransitionTime"] if old.get("status") == condition["status"] and "lastTransitionTime" in old else timestamp()
            conditions = [item for item in conditions if item["type"] != "PodScheduled"] + [condition | {"lastProbeTime": None, "lastTransitionTime": since}]
        changed = {**held, "status": {**held["status"], **fields, **({"conditions": conditions} if conditions else {})}}
        self._operations.store.replace(PODS, held, changed)


def _wishes(pod: Json) -> tuple[Any, ...]:
    """What of a pod decides where it may go."""
    return pod["spec"], pod["metadata"].get("annotations"), pod["metadata"].get("labels")
