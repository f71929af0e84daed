# SPDX-License-Identifier: Apache-2.0
"""Makes room for pods that only devices refuse: picks the victims, evicts them, holds what they leave for the pod.

kube-scheduler offers the `preempt` verb only nodes on which a filter of its own fails (elsewhere its dry run finds that nobody has to go), so on
nodes with free CPU, memory and slots it never evicts for devices. The leading extender does, by its rules: only lower priorities, only
pods whose going helps, disruption budgets kept (the eviction API has the last word; nothing is ever deleted), `preemptionPolicy: Never`
kept, graceful termination waited for. Permissions: `create` on `pods/eviction`, `list` and `watch` on `poddisruptionbudgets`.

One need, one round: what is made free is entered into the ledger for its pod before the first eviction is sent, so that nobody
else's refusal leads to the same victims, and the same pod's not to more. Decisions: `placement.preemption`; `best` below.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import TOO_MANY_REQUESTS, ApiError, KubeError
from hami_framework.placement.engine import Engine
from hami_framework.placement.preemption import Room
from hami_framework.scheduler.disruption import Resident, Residents
from hami_framework.scheduler.events import EventWriter
from hami_framework.scheduler.metrics import Metrics
from hami_framework.scheduler.waiting import Waiting, WaitingPods

CONSIDER_SECONDS = 0.3
"""After a refusal kube-scheduler may call the preempt verb (its own dry run comes first); if it evicts, we do not."""
VERB_SECONDS = 30.0
"""For so long after the verb offered kube-scheduler a way, the eviction is its own business."""
ENOUGH_NODES = 100
"""So many nodes on which it would work are compared, as kube-scheduler does (`minCandidateNodesAbsolute`)."""
AT_ONCE = 10
"""Nodes looked at before other work of the loop has its turn."""
HOLD_SECONDS = 60.0
"""After the last victim left, the room is held for so long; kube-scheduler's longest backoff is 10 s."""
LONGEST_SECONDS = 900.0
"""Victims that are still there after this will not leave (a dead kubelet, a finalizer): the room is given up."""
RETRY_SECONDS = (1.0, 30.0)

_log = logging.getLogger(__name__)


@dataclass
class Nomination:
    """Room that is being made, and held, for one pod."""

    uid: str
    node: str
    victims: frozenset[str]
    began: float
    unevicted: list[str] = field(default_factory=list)
    left_at: float | None = None
    """When the last victim was seen gone."""

    def over(self, now: float) -> bool:
        """Whether the time to come for it has run out."""
        return now - self.began > LONGEST_SECONDS or (self.left_at is not None and now - self.left_at > HOLD_SECONDS)


def best(rooms: Iterable[Room], latest_start: Callable[[Sequence[str]], str]) -> Room | None:
    """Pure: as kube-scheduler compares (`pickOneNodeForPreemption`): the least important highest victim, the smallest sum of priorities,
    the fewest victims, then the node whose most important victims started last; then by name.
    """

    def most_important(room: Room) -> list[str]:
        return [uid for uid, priority in zip(room.victims, room.priorities, strict=True) if priority == max(room.priorities)]

    found = sorted(rooms, key=lambda room: room.node)
    found.sort(key=lambda room: latest_start(most_important(room)) if room.victims else "", reverse=True)
    lowest = -(1 << 40)
    offset = 1 << 31  # all terms positive, as kube-scheduler has it: more victims never make a smaller sum
    found.sort(key=lambda room: (max(room.priorities, default=lowest), sum(priority + offset + 1 for priority in room.priorities), len(room.victims)))
    return found[0] if found else None


class Evictions:
    """`refused` for each pod that fits nowhere; `run` until cancelled."""

    def __init__(
        self,
        engine: Engine,
        client: KubeClient,
        waiting: WaitingPods,
        residents: Residents,
        events: EventWriter,
        metrics: Metrics,
        *,
        nodes_of: Callable[[Waiting], Sequence[str]],
        leads: Callable[[], bool],
        freed: Callable[[str], None],
        enabled: bool = True,
        consider_seconds: float = CONSIDER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`nodes_of`: the nodes that were refused for what victims could give back; `freed`: tell the hints that the room may be there."""
        self._engine, self._client, self._waiting, self._residents = engine, client, waiting, residents
        self._events, self._metrics = events, metrics
        self._nodes_of, self._leads, self._freed, self._enabled = nodes_of, leads, freed, enabled
        self._consider_seconds, self._clock = consider_seconds, clock
        self.nominations: dict[str, Nomination] = {}
        self._due: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._offered: dict[str, float] = {}
        self._spared_until: dict[str, float] = {}
        self._poked = asyncio.Event()

    # -- what others tell ---------------------------------------------------------------------------------------

    def refused(self, uid: str) -> None:
        """The pod was refused everywhere, and waits."""
        waiting = self._waiting.get(uid)
        if self._enabled and waiting is not None and waiting.may_preempt and uid not in self.nominations:
            self._due.setdefault(uid, self._clock() + self._consider_seconds)
            self._poked.set()

    def offered(self, uid: str) -> None:
        """The verb showed kube-scheduler a node where evictions make room: it will do them itself."""
        self._offered[uid] = self._clock()

    def placed(self, uid: str) -> None:
        """The pod was bound (or reserved a place): what was held for it is its own, or free again."""
        self._tries.pop(uid, None)
        self._due.pop(uid, None)
        self._offered.pop(uid, None)
        if self.nominations.pop(uid, None) is not None:
            self._engine.denominate(uid)

    def gone(self, uid: str) -> None:
        """A pod is gone: perhaps one that room was made for, perhaps a victim."""
        self.placed(uid)
        self._spared_until.pop(uid, None)
        for nomination in self.nominations.values():
            if uid in nomination.victims:
                self._poked.set()

    # -- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever; errors of the API server's are logged and tried again."""
        while True:
            try:
                async with asyncio.timeout(1.0 if self.nominations or self._due else None):
                    await self._poked.wait()
            except TimeoutError:
                pass  # time alone may have made something due
            self._poked.clear()
            await self.step()

    async def step(self) -> None:
        """Look after what is held, then after the pods that are due, the most important first."""
        now = self._clock()
        self._offered = {uid: at for uid, at in self._offered.items() if now - at < VERB_SECONDS}
        self._spared_until = {uid: until for uid, until in self._spared_until.items() if until > now}
        for nomination in list(self.nominations.values()):
            await self._follow(nomination, now)
        due = [waiting for uid, at in self._due.items() if at <= now and (waiting := self._waiting.get(uid)) is not None]
        self._due = {uid: at for uid, at in self._due.items() if at > now}
        for waiting in sorted(due, key=lambda waiting: -waiting.request.priority):
            if self._leads():
                await self._make_room(waiting)
        if self._due:
            await asyncio.sleep(min(max(min(self._due.values()) - self._clock(), 0.0), 1.0))
            self._poked.set()

    async def _follow(self, nomination: Nomination, now: float) -> None:
        """Evict what could not be evicted yet; see when the last victim has left; end what nobody came for."""
        if self._engine.nominated(nomination.uid) is None:
            # It has a place by now (then `placed` follows), or a more important pod took the room.
            entry = self._engine.entry(nomination.uid)
            if entry is None:
                self._end(nomination, "its place was taken or given up")
            return
        if nomination.unevicted and self._leads():
            await self._evict(nomination)
        if nomination.left_at is None and not nomination.victims & self._residents.pods.keys():
            nomination.left_at = now
            self._freed(f"victims left {nomination.node}")
        if nomination.over(now):
            self._end(nomination, "it did not come in time")

    def _end(self, nomination: Nomination, why: str) -> None:
        _log.info("nothing is held for pod %s on %s any more: %s", nomination.uid, nomination.node, why)
        self.nominations.pop(nomination.uid, None)
        self._engine.denominate(nomination.uid)
        self._freed("a held place was given up")

    # -- one round ----------------------------------------------------------------------------------------------

    async def _make_room(self, waiting: Waiting) -> None:
        request = waiting.request
        if request.uid in self.nominations or request.uid in self._offered or self._engine.entry(request.uid) is not None:
            return
        if waiting.nominated_node and self._lesser_leaving(waiting):
            return  # kube-scheduler's own victims are still leaving (`PodEligibleToPreemptOthers`)
        room = best(await self._rooms(waiting), self._residents.latest_start)
        # While other work had its turn the picture may have changed: what is done is decided anew, in one piece.
        if room is not None:
            room = self._room(waiting, room.node)
        if room is None or self._waiting.get(request.uid) is not waiting or not self._leads() or request.uid in self._offered:
            return
        if self._engine.nominate(request, room.node, (*room.victims, *self._leaving(room.node))) is None:
            return
        waits_for = frozenset({*room.victims, *self._leaving(room.node)})
        nomination = Nomination(request.uid, room.node, waits_for, self._clock(), list(room.victims))
        self.nominations[request.uid] = nomination
        if room.victims:
            _log.info("pod %s/%s: making room on %s: evicting %d pods", request.namespace, request.name, room.node, len(room.victims))
            await self._evict(nomination)

    async def _rooms(self, waiting: Waiting) -> list[Room]:
        """Nodes on which it would work, at most `ENOUGH_NODES`."""
        lowest = self._engine.least_important()
        nodes = [node for node in self._nodes_of(waiting) if lowest.get(node, waiting.request.priority) < waiting.request.priority or self._leaving(node)]
        found: list[Room] = []
        for number, node in enumerate(nodes):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            room = self._room(waiting, node)
            if room is not None:
                found.append(room)
            if len(found) >= ENOUGH_NODES:
                break
        return found

    def _room(self, waiting: Waiting, node: str) -> Room | None:
        return self._engine.room(waiting.request, node, leaving=self._leaving(node), spared=self._spared)

    def _leaving(self, node: str) -> set[str]:
        """Who leaves this node anyway, what others wait for included."""
        return self._residents.leaving(node) | {uid for other in self.nominations.values() if other.node == node for uid in other.victims}

    def _spared(self, uids: Collection[str]) -> Collection[str]:
        """Who may not be evicted with the rest: budgets, and those that the API server has just refused to evict; owners that are no pods we see."""
        return self._residents.protected(uids) | {uid for uid in uids if uid in self._spared_until or uid not in self._residents.pods}

    def _lesser_leaving(self, waiting: Waiting) -> bool:
        entries = (self._engine.entry(uid) for uid in self._leaving(waiting.nominated_node))
        return any(entry is not None and entry.priority < waiting.request.priority for entry in entries)

    # -- evicting -----------------------------------------------------------------------------------------------

    async def _evict(self, nomination: Nomination) -> None:
        """Evict what is left to evict. Before the first is evicted, a refusal ends the round; after it, the rest is tried again later."""
        for uid in list(nomination.unevicted):
            victim, waiting = self._residents.pods.get(uid), self._waiting.get(nomination.uid)
            if waiting is None or self._engine.nominated(nomination.uid) is None:
                nomination.unevicted.clear()
                return
            if victim is None or victim.leaving:
                nomination.unevicted.remove(uid)
                continue
            try:
                await self._client.call(self._client.create, _url(victim), _eviction(victim, uid))
            except ApiError as error:
                if error.not_found or error.conflict:
                    nomination.unevicted.remove(uid)  # gone, or the name is another's by now
                    continue
                self._refusal(nomination, uid, victim, error)
                return
            except KubeError as error:
                _log.warning("pod %s/%s may or may not have been evicted: %s; trying again", victim.namespace, victim.name, error)
                return
            nomination.unevicted.remove(uid)
            self._tell(nomination, uid, victim, waiting)
            self._metrics.evictions.labels("evicted").inc()

    def _refusal(self, nomination: Nomination, uid: str, victim: Resident, error: ApiError) -> None:
        """A disruption budget (429), or we may not evict at all."""
        self._metrics.evictions.labels("refused").inc()
        first, longest = RETRY_SECONDS
        tries = self._tries[nomination.uid] = self._tries.get(nomination.uid, 0) + 1
        wait = max(error.retry_after_seconds or 0.0, min(first * 2 ** min(tries - 1, 10), longest))
        kept = "its disruption budget keeps it" if error.status == TOO_MANY_REQUESTS else str(error)
        _log.warning("pod %s/%s is not evicted: %s", victim.namespace, victim.name, kept)
        self._spared_until[uid] = self._clock() + wait
        evicted = len(nomination.victims) - len(nomination.unevicted)
        if not evicted:
            self.nominations.pop(nomination.uid, None)
            self._engine.denominate(nomination.uid)
            # Another node may do at once; without one, again when the budget may have room.
            self._due[nomination.uid] = self._clock() + (0.0 if tries == 1 else wait)

    def _tell(self, nomination: Nomination, uid: str, victim: Resident, waiting: Waiting) -> None:
        request = waiting.request
        who = f"pod {request.namespace}/{request.name} (priority {request.priority})"
        self._events.tell(
            (victim.namespace, victim.name, uid),
            "Normal",
            "Preempted",
            f"evicted from {nomination.node} for its devices by {who}",
            same=("preempted", request.uid),
        )
        self._events.tell(
            (request.namespace, request.name, request.uid),
            "Normal",
            "Preempting",
            f"evicting pods of lower priority from {nomination.node} for their devices, first {victim.namespace}/{victim.name}",
            same=("preempting", nomination.node, min(nomination.victims)),
        )


def _url(victim: Resident) -> str:
    return path("pods", namespace=victim.namespace, name=victim.name, subresource="eviction")


def _eviction(victim: Resident, uid: str) -> dict[str, object]:
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": victim.name, "namespace": victim.namespace},
        "deleteOptions": {"preconditions": {"uid": uid}},
    }
