# SPDX-License-Identifier: Apache-2.0
"""Events on pods: the words that do not fit into FailedNodes. A pod is told once per kind of trouble, not once per retry.

That holds over restarts and over several extenders: an event's name is made from what it says, so that the API server itself refuses
the second of a kind (409) for as long as it keeps the first (an hour by default, `--event-ttl`).
Events are a courtesy: they wait in a bounded queue, are written one after the other, and one that fails is counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Literal

from hami_framework.kube.client import KubeClient, Object, path
from hami_framework.kube.errors import ApiError, KubeError
from hami_framework.scheduler.metrics import Metrics

COMPONENT = "hami-scheduler"
LONGEST_MESSAGE = 1024
"""The API server refuses a longer `message` (events validation, core/v1)."""
LONGEST_NAME = 230
"""Of 253 (DNS subdomain): the rest is what tells events of one pod apart."""
QUEUE_LENGTH = 1000
REMEMBERED_PODS = 20_000

_log = logging.getLogger(__name__)


class EventWriter:
    """`tell` never blocks; `run` writes until cancelled."""

    def __init__(self, client: KubeClient, metrics: Metrics) -> None:
        self._client, self._metrics = client, metrics
        self._queue: asyncio.Queue[Object] = asyncio.Queue(QUEUE_LENGTH)
        self._unwritten = 0
        self._told: OrderedDict[str, Hashable] = OrderedDict()

    def tell(self, pod: tuple[str, str, str], kind: Literal["Normal", "Warning"], reason: str, message: str, *, same: Hashable) -> None:
        """Tell the pod (namespace, name, uid), unless the last thing it was told was the same in kind."""
        uid = pod[2]
        if self._told.get(uid) == same:
            return
        self._told[uid] = same
        self._told.move_to_end(uid)
        if len(self._told) > REMEMBERED_PODS:
            self._told.popitem(last=False)
        try:
            self._queue.put_nowait(_event(pod, kind, reason, message, same))
        except asyncio.QueueFull:
            self._metrics.events_lost.inc()
            return
        self._unwritten += 1

    def forget(self, uid: str) -> None:
        """The pod is gone."""
        self._told.pop(uid, None)

    @property
    def idle(self) -> bool:
        """True when all events have been written (or given up)."""
        return self._unwritten == 0

    async def run(self) -> None:
        """Write events as they come, until cancelled."""
        while True:
            event = await self._queue.get()
            try:
                await self._client.call(self._client.create, path("events", namespace=event["metadata"]["namespace"]), event)
            except KubeError as error:
                if isinstance(error, ApiError) and error.conflict:
                    self._unwritten -= 1
                    continue  # told before, perhaps by another life of ours
                self._metrics.events_lost.inc()
                _log.warning("event %r on pod %s was not written: %s", event["reason"], event["involvedObject"]["name"], error)
            self._unwritten -= 1


def _digest(uid: str, reason: str, same: Hashable) -> str:
    """The same for the same thing, in every process: sets have no order of their own."""
    words = sorted(map(str, same)) if isinstance(same, frozenset) else same
    return hashlib.sha256(repr((uid, reason, words)).encode()).hexdigest()[:16]


def _event(pod: tuple[str, str, str], kind: str, reason: str, message: str, same: Hashable) -> Object:
    namespace, name, uid = pod
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": f"{name[:LONGEST_NAME]}.{_digest(uid, reason, same)}"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
        "type": kind,
        "reason": reason,
        "message": message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 1]}…",
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
