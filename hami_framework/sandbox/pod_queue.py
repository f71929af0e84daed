# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's queue: active pods by priority, pods in backoff by time, and pods that wait for something to change.

Source: pkg/scheduler/backend/queue/scheduling_queue.go of Kubernetes.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field


@dataclass
class Waiting:
    """One pod that is to be scheduled. Times are the event loop's seconds."""

    uid: str
    namespace: str
    name: str
    priority: int
    attempts: int = 0
    added: float = 0.0
    """When it last became unschedulable."""
    backoff_until: float = 0.0
    order: int = 0


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Seconds a pod rests after failed attempts: doubled each time from `first` up to `longest` (kube-scheduler: 1 and 10)."""

    first: float = 1.0
    longest: float = 10.0
    flush: float = 300.0
    """How long a pod stays unschedulable at most before it is tried again, whatever happens."""

    def seconds(self, attempts: int) -> float:
        return float(min(self.longest, self.first * 2 ** max(0, attempts - 1)))


@dataclass
class SchedulingQueue:
    """Pods by UID, each in exactly one of the three places or taken by the scheduling cycle."""

    backoff: Backoff
    _active: list[tuple[int, int, Waiting]] = field(default_factory=list)
    _resting: list[tuple[float, int, Waiting]] = field(default_factory=list)
    _stuck: dict[str, Waiting] = field(default_factory=dict)
    _members: dict[str, Waiting] = field(default_factory=dict)
    _moves: int = 0
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _stirred: asyncio.Event = field(default_factory=asyncio.Event)

    def __contains__(self, uid: str) -> bool:
        return uid in self._members

    def __len__(self) -> int:
        return len(self._members)

    def add(self, pod: Waiting) -> None:
        """A new pod; one already known is left where it is."""
        if pod.uid not in self._members:
            pod.order = next(self._order)
            self._members[pod.uid] = pod
            self._activate(pod)

    def forget(self, uid: str) -> None:
        """The pod is gone or bound."""
        self._members.pop(uid, None)
        self._stuck.pop(uid, None)

    def failed(self, pod: Waiting, moves_seen: int, *, retry: bool) -> None:
        """A cycle ended without a node: the pod rests (`retry`, or something changed meanwhile), or waits for a change."""
        if pod.uid not in self._members:
            return
        now = asyncio.get_running_loop().time()
        pod.backoff_until, pod.added = now + self.backoff.seconds(pod.attempts), now
        if retry or self._moves != moves_seen:
            self._rest(pod)
        else:
            self._stuck[pod.uid] = pod

    def move_all(self) -> None:
        """Something changed in the cluster: every pod that waits for that is tried again, once its backoff is over."""
        self._moves += 1
        stuck, self._stuck = self._stuck, {}
        for pod in stuck.values():
            self._rest(pod)

    def move(self, uid: str) -> None:
        """This pod itself changed."""
        pod = self._stuck.pop(uid, None)
        if pod is not None:
            self._rest(pod)

    async def take(self) -> tuple[Waiting, int]:
        """The next pod, highest priority first, oldest among equals; and the count of moves so far, for `failed`."""
        while True:
            self._wake()
            while self._active:
                pod = heapq.heappop(self._active)[2]
                if self._members.get(pod.uid) is pod:
                    pod.attempts += 1
                    return pod, self._moves
            self._stirred.clear()
            try:
                async with asyncio.timeout(self._next_wake()):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    def _activate(self, pod: Waiting) -> None:
        heapq.heappush(self._active, (-pod.priority, pod.order, pod))
        self._stirred.set()

    def _rest(self, pod: Waiting) -> None:
        heapq.heappush(self._resting, (pod.backoff_until, pod.order, pod))
        self._stirred.set()

    def _wake(self) -> None:
        now = asyncio.get_running_loop().time()
        for pod in [pod for pod in self._stuck.values() if pod.added + self.backoff.flush <= now]:
            self.move(pod.uid)
        while self._resting and self._resting[0][0] <= now:
            pod = heapq.heappop(self._resting)[2]
            if self._members.get(pod.uid) is pod:
                self._activate(pod)

    def _next_wake(self) -> float | None:
        times = [self._resting[0][0]] if self._resting else []
        times += [min(pod.added for pod in self._stuck.values()) + self.backoff.flush] if self._stuck else []
        return max(0.0, min(times) - asyncio.get_running_loop().time()) if times else None
