# SPDX-License-Identifier: Apache-2.0
"""One watch: a stream of JSON lines, with bookmarks, a server-side timeout, and 410 for those who fall behind.

Source of the rules: "Efficient detection of changes" in the Kubernetes API concepts, and `sendInitialEvents` (KEP-3157).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from hami_framework.sandbox.resources import Kind
from hami_framework.sandbox.selectors import Test
from hami_framework.sandbox.status import ApiRefusal
from hami_framework.sandbox.storage import Store, encode

END_OF_INITIAL_EVENTS = "k8s.io/initial-events-end"


@dataclass(frozen=True, kw_only=True)
class WatchRequest:
    """What a client asked to see. `version` None or 0: begin with the present state as ADDED events."""

    kind: Kind
    namespace: str | None = None
    test: Test | None = None
    version: int | None = None
    bookmarks: bool = False
    initial_events: bool = False
    timeout_s: float | None = None


class WatchCut(Exception):
    """The connection of a watch is to break off in the middle (fault injection)."""


@dataclass
class Watches:
    """All watches of one server, so that they can be ended."""

    store: Store
    bookmark_s: float = 5.0
    """Seconds between bookmarks; about a minute on the real server."""
    _open: set[asyncio.Event] = field(default_factory=set)
    _cut: set[asyncio.Event] = field(default_factory=set)
    gone_as_event: bool = True
    """How a watch from a forgotten version is answered: 200 and an ERROR event (the real watch cache), or HTTP 410."""
    stopping: bool = False

    @property
    def count(self) -> int:
        return len(self._open)

    def drop(self) -> None:
        """Break every watch off, as a lost connection does."""
        self._cut = set(self._open)
        for listener in self._open:
            listener.set()

    def stop(self) -> None:
        """End every watch in order."""
        self.stopping = True
        for listener in self._open:
            listener.set()

    async def stream(self, request: WatchRequest) -> AsyncIterator[bytes]:
        """The events. Raises `ApiRefusal` 410 before the first one when the version is too old."""
        listener = self.store.listen()
        self._open.add(listener)
        try:
            async for chunk in self._events(request, listener):
                yield chunk
        finally:
            self._open.discard(listener)
            self.store.unlisten(listener)
            self._cut.discard(listener)

    async def _events(self, request: WatchRequest, listener: asyncio.Event) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (request.timeout_s or random.uniform(1800, 3600))
        bookmark_at = loop.time() + self.bookmark_s
        try:
            position, first = self._beginning(request)
        except ApiRefusal as refusal:
            if refusal.code != 410 or not self.gone_as_event:
                raise
            position, first = -1, b""
        yield first
        while not self.stopping:
            listener.clear()
            if listener in self._cut:
                raise WatchCut
            try:
                changes = self.store.since(position)
            except ApiRefusal as refusal:
                yield encode({"type": "ERROR", "object": refusal.status()}) + b"\n"
                return
            lines = []
            for change in changes:
                position = change.version
                line = change.event(request.test, request.namespace) if change.kind.storage == request.kind.storage else None
                lines += [line] if line is not None else []
            if lines:
                yield b"".join(lines)
            now = loop.time()
            if request.bookmarks and now >= min(bookmark_at, deadline):
                bookmark_at = now + self.bookmark_s
                yield _bookmark(request.kind, position)
            if now >= deadline:
                return
            await _wait(listener, min(deadline, bookmark_at if request.bookmarks else deadline) - now)

    def _beginning(self, request: WatchRequest) -> tuple[int, bytes]:
        """Where to go on from, and what to say first."""
        if request.version and not request.initial_events:
            if request.version > self.store.version:
                raise ApiRefusal(504, f"Too large resource version: {request.version}, current: {self.store.version}", reason="Timeout")
            self.store.since(request.version)
            return request.version, b""
        present = self.store.list(request.kind, request.namespace, request.test)
        lines = [encode({"type": "ADDED", "object": obj}) + b"\n" for obj in present]
        if request.initial_events and request.bookmarks:
            lines.append(_bookmark(request.kind, self.store.version, {END_OF_INITIAL_EVENTS: "true"}))
        return self.store.version, b"".join(lines)


async def _wait(listener: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await listener.wait()
    except TimeoutError:
        return


def _bookmark(kind: Kind, version: int, annotations: dict[str, str] | None = None) -> bytes:
    metadata: dict[str, object] = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    return encode({"type": "BOOKMARK", "object": {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}}) + b"\n"
