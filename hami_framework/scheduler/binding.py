# SPDX-License-Identifier: Apache-2.0
"""The one write of the extender: a Binding with the UID as precondition and the grant as annotation.

A definite refusal (4xx) frees the reservation at once. After an unknown outcome (timeout, reset, 5xx) the reservation
stays until the pod is *seen* bound here, bound elsewhere, gone, or still unbound once the API server can no longer be
working on our request. The API server merges a Binding's annotations into the pod in the same write
(`BindingREST.setPodNodeAndMetadata`), so a bound pod without its grant is never visible.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.codec.words import summary
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError, KubeError
from hami_framework.kube.writer import Writer
from hami_framework.model import PodGrant, PodRequest
from hami_framework.placement.engine import Engine
from hami_framework.scheduler.metrics import Metrics

SERVER_SECONDS = 3
"""`?timeout=` of the POST: after this the API server gives the request up (`WithRequestDeadline` in k8s.io/apiserver)."""

SETTLE_SECONDS = SERVER_SECONDS + 1.0
"""Only after this may "still unbound" be believed: until then our request may yet be carried out."""

ANSWER_SECONDS = 4.0
"""kube-scheduler waits 5 s for an extender by default (`httpTimeout`); we go on finding out after we have answered."""

LOOK_AGAIN_SECONDS = (0.1, 5.0)

_log = logging.getLogger(__name__)


class NotLeading(KubeError):
    """Nothing was sent: this extender could not be sure to lead until the end of it."""

    outcome_unknown = False


def _no_fence() -> None:
    """The only extender there is may always write."""


class Seen(StrEnum):
    """What a look at the pod shows, compared with what we wanted."""

    BOUND = "bound"
    ELSEWHERE = "bound to another node or with another grant"
    UNBOUND = "not bound"
    GONE = "gone"


@dataclass(frozen=True)
class Target:
    """Which incarnation of which pod goes to which node."""

    namespace: str
    name: str
    uid: str
    node: str

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name} (uid {self.uid}) on node {self.node}"


@dataclass
class _Attempt:
    """A binding under way. `grant_text` is None for a pod that asks for no device."""

    target: Target
    grant_text: str | None
    settled_at: float = 0.0
    """Not before this time (`time.monotonic()`) is "still unbound" the end of it."""
    seen: Seen | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def compare(self, uid: str, node: str | None, grant_text: str | None) -> Seen:
        """What this state of the pod says about our binding."""
        if uid != self.target.uid:
            return Seen.GONE
        if not node:
            return Seen.UNBOUND
        return Seen.BOUND if (node, grant_text) == (self.target.node, self.grant_text) else Seen.ELSEWHERE


class Binder:
    """Reserves, writes, and finds out. At most one attempt per pod UID at a time."""

    def __init__(
        self, engine: Engine, client: KubeClient, metrics: Metrics, *, settle_seconds: float = SETTLE_SECONDS, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._engine, self._client, self._metrics = engine, client, metrics
        self._writer = Writer(client)
        self._settle_seconds, self._answer_seconds = settle_seconds, answer_seconds
        self.fence: Callable[[], None] = _no_fence
        """Called right before a Binding is sent; raises NotLeading when it must not be."""
        self.on_freed: Callable[[str], None] = lambda why: None
        """Called when a reservation came to nothing, so that others may have the place."""
        self._attempts: dict[str, _Attempt] = {}
        self._tasks: set[asyncio.Task[str]] = set()

    def undecided(self, uid: str) -> bool:
        """True while a binding of this pod is under way or its outcome is unknown."""
        return uid in self._attempts

    @property
    def undecided_count(self) -> int:
        return len(self._attempts)

    async def bind(self, target: Target, request: PodRequest) -> str:
        """Bind the pod; the answer is empty on success, else says why not (or that it is not known yet)."""
        if self.undecided(target.uid):
            return f"{target}: an earlier binding of this pod is not decided yet; try again"
        grant_text = None
        if not request.empty:
            grant = self._engine.reserve(request, target.node)
            if not isinstance(grant, PodGrant):
                self._metrics.bindings.labels("lost").inc()
                return f"{target}: no longer fits: {summary(grant)}"
            grant_text = encode_grant(grant)
        attempt = self._attempts[target.uid] = _Attempt(target, grant_text)
        task = asyncio.create_task(self._carry_out(attempt), name=f"bind {target.uid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        done, _ = await asyncio.wait({task}, timeout=self._answer_seconds)
        return task.result() if done else f"{target}: the API server did not say whether it was bound; what it was given stays reserved until that is known"

    def pod_seen(self, uid: str, node: str, grant_text: str | None) -> None:
        """The watch shows the pod on a node: that decides. (An unbound pod proves nothing, the watch may lag.)"""
        if (attempt := self._attempts.get(uid)) is not None:
            attempt.seen = attempt.compare(uid, node, grant_text)
            attempt.news.set()

    def pod_gone(self, uid: str) -> None:
        """The watch shows that this UID no longer exists."""
        if (attempt := self._attempts.get(uid)) is not None:
            attempt.seen = Seen.GONE
            attempt.news.set()

    async def drain(self, seconds: float) -> bool:
        """Wait for the bindings under way to be decided; False when one is not in this time."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        return not self._attempts

    async def stop(self) -> None:
        """Give up finding out: a successor rebuilds from what the pods say."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()

    async def _carry_out(self, attempt: _Attempt) -> str:
        """Send the Binding once, then decide or find out."""
        target = attempt.target
        url = path("pods", namespace=target.namespace, name=target.name, subresource="binding")
        try:
            await self._writer.create(url, _binding(attempt), {"timeout": f"{SERVER_SECONDS}s"}, before_sending=self.fence)
        except KubeError as error:
            return await self._after_failure(attempt, error)
        return self._decide(attempt, Seen.BOUND, "")

    async def _after_failure(self, attempt: _Attempt, error: KubeError) -> str:
        if not error.outcome_unknown and not (isinstance(error, ApiError) and error.conflict):
            return self._decide(attempt, Seen.UNBOUND, str(error))
        if error.outcome_unknown:
            self._metrics.bindings.labels("unknown").inc()
            _log.warning("%s: binding has an unknown outcome (%s); keeping the reservation until it is known", attempt.target, error)
            attempt.settled_at = time.monotonic() + self._settle_seconds
        # A conflict is definite, but may be with our own earlier write: one look decides.
        return self._decide(attempt, await self._find_out(attempt), str(error))

    async def _find_out(self, attempt: _Attempt) -> Seen:
        """Look at the pod until what is seen is final; news from the watch wakes it."""
        delay, longest = LOOK_AGAIN_SECONDS
        while True:
            asked_at = time.monotonic()
            seen = attempt.seen or await self._look(attempt)
            if seen is not None and (seen is not Seen.UNBOUND or asked_at >= attempt.settled_at):
                return seen
            wait = min(delay, max(attempt.settled_at - time.monotonic(), 0.0)) if seen is Seen.UNBOUND else delay
            try:
                async with asyncio.timeout(wait):
                    await attempt.news.wait()
            except TimeoutError:
                delay = min(delay * 2, longest)

    async def _look(self, attempt: _Attempt) -> Seen | None:
        """One GET; None when it did not answer."""
        target = attempt.target
        try:
            pod = await self._client.call(self._client.get, path("pods", namespace=target.namespace, name=target.name))
            metadata = pod["metadata"]
            return attempt.compare(metadata["uid"], pod["spec"].get("nodeName"), (metadata.get("annotations") or {}).get(GRANT_ANNOTATION))
        except ApiError as error:
            if error.not_found:
                return Seen.GONE
            _log.warning("%s: cannot see whether it was bound: %s", target, error)
        except KubeError as error:
            _log.warning("%s: cannot see whether it was bound: %s", target, error)
        return None

    def _decide(self, attempt: _Attempt, seen: Seen, problem: str) -> str:
        """The end of an attempt: what was reserved is now held, or free again."""
        uid = attempt.target.uid
        del self._attempts[uid]
        if seen is Seen.BOUND:
            self._metrics.bindings.labels("bound").inc()
            self._engine.commit(uid)
            return ""
        self._metrics.bindings.labels("refused").inc()
        # Bound elsewhere: the watch has told, or will tell, the engine what the pod holds there; only our reservation goes.
        self._engine.rollback(uid)
        self.on_freed("a binding failed")
        return f"{attempt.target}: {seen.value}: {problem}"


def _binding(attempt: _Attempt) -> dict[str, Any]:
    target = attempt.target
    annotations = {} if attempt.grant_text is None else {GRANT_ANNOTATION: attempt.grant_text}
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": target.name, "namespace": target.namespace, "uid": target.uid, "annotations": annotations},
        "target": {"apiVersion": "v1", "kind": "Node", "name": target.node},
    }
