# SPDX-License-Identifier: Apache-2.0
"""The pods of this node as the API server tells them, and the grant that each carries.

Fed by list+watch with `spec.nodeName=<this node>`. The extender writes the grant in the same request that sets the node,
so a pod that is seen here has it, unless somebody else bound it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Literal

from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant
from hami_framework.deviceplugin.identity import container_statuses
from hami_framework.deviceplugin.ports import Json
from hami_framework.errors import FormatError, HamiError, Unavailable
from hami_framework.model import PodGrant, Reason, Rejection

Fate = Literal["alive", "ended", "vanished", "unknown"]

_REMEMBERED_ENDS = 4096


class GrantRefused(HamiError):
    """This grant will not take effect here: it is damaged, meant for another pod or node, or there is no room for it."""

    def __init__(self, rejections: Iterable[Rejection]) -> None:
        self.rejections = tuple(rejections)
        super().__init__("; ".join(describe(rejection) for rejection in self.rejections))


def describe(rejection: Rejection) -> str:
    """One refusal in one line: code, device, amounts, words."""
    parts = [rejection.reason.value]
    if rejection.device:
        parts.append(f"device {rejection.device}")
    if rejection.dimension:
        parts.append(f"{rejection.dimension}: wanted {rejection.wanted}, free {rejection.free}")
    if rejection.message:
        parts.append(rejection.message)
    return ", ".join(parts)


def grant_of(pod: Json, node: str) -> PodGrant:
    """The grant the pod carries, if it is this pod's, for this node.

    Raises Unavailable when it has none (yet), GrantRefused when it has a wrong one.
    """
    metadata = pod["metadata"]
    who = f"pod {metadata.get('namespace')}/{metadata.get('name')} (UID {metadata.get('uid')})"
    text = (metadata.get("annotations") or {}).get(GRANT_ANNOTATION)
    if not text:
        raise Unavailable(f"{who} has no annotation {GRANT_ANNOTATION}: it was not bound by the hami scheduler extender, or this is not visible yet")
    try:
        grant = decode_grant(text)
    except FormatError as error:
        raise _invalid(f"{who}: {error}") from error
    if grant.owner.uid != metadata.get("uid"):
        raise _invalid(f"{who} carries the grant of another owner: {grant.owner.kind} with UID {grant.owner.uid}")
    if grant.node != node:
        raise _invalid(f"{who} carries a grant for node {grant.node!r}, this is {node!r}")
    return grant


def _invalid(message: str) -> GrantRefused:
    return GrantRefused([Rejection(reason=Reason.ANNOTATION_INVALID, message=message)])


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set before the time is over.

    Not `asyncio.wait_for`: up to Python 3.11 that swallows a cancellation that comes together with the event, and a loop
    that should end goes on for ever.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class PodBook:
    """The pods of this node by UID, and how those that left have ended."""

    def __init__(self) -> None:
        self._pods: dict[str, Json] = {}
        self._ends: dict[str, tuple[float, bool]] = {}
        self._pulse = asyncio.Event()
        self.synced = False

    def upsert(self, pod: Json) -> None:
        """A pod was added or changed."""
        self._pods[pod["metadata"]["uid"]] = pod
        self._beat()

    def remove(self, uid: str) -> None:
        """The pod's object was deleted."""
        last = self._pods.pop(uid, None)
        if last is not None:
            self._left(uid, last)
            self._beat()

    def get(self, uid: str) -> Json | None:
        """The pod of this UID, None when it is not known (yet)."""
        return self._pods.get(uid)

    def running(self) -> list[Json]:
        """The pods of which something has started."""
        return [pod for pod in self._pods.values() if _phase(pod) == "Running"]

    def not_admitted(self) -> list[Json]:
        """The pods with a grant that kubelet failed because it could not allocate (its words: k8s.io/kubernetes pkg/kubelet/cm/topologymanager)."""
        return [pod for pod in self._pods.values() if _phase(pod) == "Failed" and _allocation_failed(pod["status"]) and _granted(pod)]

    def fate(self, uid: str) -> Fate:
        """What became of a pod. `vanished`: its object is gone although a container was last seen running (forced deletion)."""
        pod = self._pods.get(uid)
        if pod is not None:
            return "ended" if _phase(pod) in ("Succeeded", "Failed") else "alive"
        if uid in self._ends:
            return "ended" if self._ends[uid][1] else "vanished"
        return "vanished" if self.synced else "unknown"

    def absent_seconds(self, uid: str) -> float:
        """For how long a vanished pod has been missing; starts to count when first asked about a pod never seen."""
        since, _ = self._ends.setdefault(uid, (time.monotonic(), False))
        return time.monotonic() - since

    async def changed(self, timeout: float) -> None:
        """Return at the next change, or after `timeout` seconds."""
        await set_within(self._pulse, timeout)

    def _left(self, uid: str, last: Json) -> None:
        still = any("running" in (status.get("state") or {}) for status in container_statuses(last).values())
        self._ends[uid] = (time.monotonic(), not still or _phase(last) in ("Succeeded", "Failed"))
        while len(self._ends) > _REMEMBERED_ENDS:
            self._ends.pop(next(iter(self._ends)))

    def _beat(self) -> None:
        pulse, self._pulse = self._pulse, asyncio.Event()
        pulse.set()


def _allocation_failed(status: Json) -> bool:
    return status.get("reason") == "UnexpectedAdmissionError" and "Allocate failed" in (status.get("message") or "")


def _granted(pod: Json) -> bool:
    return GRANT_ANNOTATION in (pod["metadata"].get("annotations") or {})


def _phase(pod: Json) -> Any:
    return (pod.get("status") or {}).get("phase")
