# SPDX-License-Identifier: Apache-2.0
"""A local picture of a collection: list, then watch, for ever.

Rules, as client-go's reflector has them: resume by resourceVersion (bookmarks keep it fresh on quiet collections);
410 Gone, as an HTTP answer or as an ERROR event, means list again; a list is compared with what is known by UID and
resourceVersion, so that handlers see only differences; an object that was deleted and made again under its old name is
deleted first. A watch that says nothing within the read deadline is half-open and is dropped. What is known stays
known while the API server is away.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from hami_framework.kube.client import KubeClient
from hami_framework.kube.errors import GONE, ApiError, KubeError, TransportError, from_watch_event
from hami_framework.kube.watch import WatchEvent, WatchStream

T = TypeVar("T")
R = TypeVar("R")

PAGE_SIZE = 500
WATCH_SECONDS = (300, 600)
"""How long a watch may last, drawn at random (client-go: 5 to 10 minutes), so that clients do not come back together."""
READ_DEADLINE_SECONDS = 90.0
"""Longer than the API server's bookmark interval of about a minute: silence beyond it is a dead connection."""
BACKOFF_SECONDS = (0.2, 30.0)
"""First and longest wait after a failure; doubled in between, less a random part of up to half."""
HURRIED_SECONDS = 1.0
"""Longest wait after a failure while somebody waits for a fresh picture."""
LONGEST_RETRY_AFTER_SECONDS = 60.0
"""A proxy that says "in a day" must not keep the picture stale for a day."""
CATCH_UP_SECONDS = 0.3
"""How long `refresh` waits for the watch before it lists: on a busy collection the next event proves it fresh."""
SHORTEST_WATCH_SECONDS = 1.0
"""A watch that ends sooner, with no event, counts as a failure (as in client-go), or we would ask again in a tight loop."""

_log = logging.getLogger(__name__)


class Metadata(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """Who an object is. `namespace` is empty for cluster-scoped kinds."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class _Item(msgspec.Struct):
    metadata: Metadata


class _ListMeta(msgspec.Struct, rename={"resource_version": "resourceVersion", "following": "continue"}):
    resource_version: str = ""
    following: str = ""


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


_item_decoder = msgspec.json.Decoder(_Item)
_page_decoder = msgspec.json.Decoder(_Page)


@dataclass
class Stats:
    """What has happened so far, for metrics and tests."""

    lists: int = 0
    watches: int = 0
    events: int = 0
    failures: int = 0
    handler_errors: int = 0
    last_contact: float = float("-inf")
    """`time.monotonic()` of the last answer of any kind."""


class Reflector(Generic[T]):
    """Mirrors one collection into two callbacks, which run in the event loop and must not block.

    `on_upsert(object)`: new or changed. `on_delete(metadata)`: gone. `synced` is set after the first complete list.
    A callback that raises is logged and counted, and the rest goes on.
    """

    def __init__(
        self,
        client: KubeClient,
        path: str,
        *,
        on_upsert: Callable[[T], None],
        on_delete: Callable[[Metadata], None],
        decode: Callable[[bytes], T] = msgspec.json.decode,
        field_selector: str | None = None,
        label_selector: str | None = None,
        read_deadline_seconds: float = READ_DEADLINE_SECONDS,
        backoff_seconds: tuple[float, float] = BACKOFF_SECONDS,
        page_size: int = PAGE_SIZE,
    ) -> None:
        """`decode` turns the JSON of one object into what `on_upsert` wants; a plain dict by default."""
        self.synced = asyncio.Event()
        self.stats = Stats()
        self._client, self._path = client, path
        self._on_upsert, self._on_delete, self._decode = on_upsert, on_delete, decode
        selectors = {"fieldSelector": field_selector, "labelSelector": label_selector}
        self._selectors: Mapping[str, str] = {key: value for key, value in selectors.items() if value}
        self._read_deadline_seconds = read_deadline_seconds
        self._backoff_seconds = backoff_seconds
        self._page_size = page_size
        self._known: dict[tuple[str, str], Metadata] = {}
        self._resource_version: str | None = None
        self._stream: WatchStream | None = None
        self._lists_asked = self._lists_done = 0
        self._broken_off = False
        self._progress = asyncio.Event()
        self._wake = asyncio.Event()
        self._expired = False
        # A thread of its own: a watch blocks it all the time, and the client's threads must stay free for calls.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reflector")

    async def run(self) -> None:
        """Keep the picture up to date until cancelled. Never ends by an error of the API server's; those are logged and retried."""
        failures = 0
        try:
            while True:
                began, events = time.monotonic(), self.stats.events
                try:
                    while self._resource_version is None or self._lists_done < self._lists_asked:
                        await self._list()
                    await self._watch()
                    failures = 0
                except KubeError as error:
                    if self._broken_off:
                        continue
                    # A list alone is no success: a server that lists but watches nothing would be asked for everything five times a second.
                    worked = self.stats.events > events or time.monotonic() - began > self._read_deadline_seconds
                    failures = 1 if worked else failures + 1
                    await self._recover(error, failures)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def refresh(self) -> None:
        """Return once the picture holds everything that was written before this call. Raises KubeError when the API server does not say.

        A list without resourceVersion is answered as of now (Kubernetes documentation, "Resource versions"), and versions of
        one collection are ordered numbers (KEP-5504). If the watch has not come that far soon, the collection is listed again:
        on a quiet one nothing comes that would prove it fresh.
        """
        newest = (await self._client.call(self._client.get, self._path, {"limit": "1"}))["metadata"]["resourceVersion"]

        def fresh() -> bool:
            return self._resource_version is not None and int(self._resource_version) >= int(newest)

        try:
            async with asyncio.timeout(CATCH_UP_SECONDS):
                await self._until(fresh)
            return
        except TimeoutError:
            self._lists_asked += 1
        self._wake.set()  # the API server has just answered: whoever waits for it to come back need wait no more
        number = self._lists_asked
        if self._stream is not None:
            self._broken_off = True
            await self._client.call(self._stream.close)
        await self._until(lambda: self._lists_done >= number)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._progress.wait()

    def _progressed(self) -> None:
        self._progress, progress = asyncio.Event(), self._progress
        progress.set()

    # -- list ---------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        """Read the whole collection in pages and tell the handlers what differs from what is known."""
        asked, self._broken_off = self._lists_asked, False
        query = {"limit": str(self._page_size), **self._selectors}
        seen: set[tuple[str, str]] = set()
        while True:
            page = await self._in_thread(self._page, query)
            self.stats.last_contact = time.monotonic()
            for raw in page.items or ():
                seen.add(self._upsert(raw))
            if not page.metadata.following:
                break
            query["continue"] = page.metadata.following
        for key in self._known.keys() - seen:
            self._forget(key)
        self.stats.lists += 1
        self._resource_version = page.metadata.resource_version
        self._lists_done = asked
        self.synced.set()
        self._progressed()

    def _page(self, query: Mapping[str, str]) -> _Page:
        body = self._client.request("GET", self._path, query)
        try:
            return _page_decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise TransportError(f"list {self._path}: not a list: {error}", sent=True) from error

    # -- watch --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Follow changes until the server ends the watch in good order."""
        began, events = time.monotonic(), self.stats.events
        async with self._open() as stream:
            self.stats.watches += 1
            self.stats.last_contact = time.monotonic()
            if self._lists_done < self._lists_asked:
                return  # asked for while the watch was being opened
            while (batch := await self._in_thread(stream.batch)) is not None:
                self.stats.last_contact = time.monotonic()
                for event in batch:
                    self._apply(event)
                self._progressed()
        if events == self.stats.events and time.monotonic() - began < SHORTEST_WATCH_SECONDS and not self._broken_off:
            raise TransportError(f"watch {self._path}: ended at once and without an event", sent=True)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[WatchStream]:
        query = {
            "allowWatchBookmarks": "true",
            "resourceVersion": self._resource_version or "",
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
            **self._selectors,
        }
        opening = self._thread.submit(self._client.watch, self._path, query, self._read_deadline_seconds)
        try:
            stream = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            # The thread may still be connecting: what it opens is closed as soon as it is there.
            opening.add_done_callback(lambda done: None if done.cancelled() or done.exception() else done.result().close())
            raise
        self._stream = stream
        try:
            yield stream
        finally:
            self._stream = None
            stream.close()

    def _apply(self, event: WatchEvent) -> None:
        if event.type == "ERROR":
            raise from_watch_event(bytes(event.object))
        metadata = _metadata(event.object)
        if event.type == "DELETED":
            self._forget((metadata.namespace, metadata.name))
        elif event.type != "BOOKMARK":
            self._upsert(event.object)
        self.stats.events += 1
        self._resource_version = metadata.resource_version

    # -- the picture --------------------------------------------------------------------------------------------

    def _upsert(self, raw: msgspec.Raw) -> tuple[str, str]:
        metadata = _metadata(raw)
        key = (metadata.namespace, metadata.name)
        known = self._known.get(key)
        if known == metadata:
            return key
        if known is not None and known.uid != metadata.uid:
            self._forget(key)
        self._known[key] = metadata
        self._handle(lambda: self._on_upsert(self._decode(bytes(raw))), metadata)
        return key

    def _forget(self, key: tuple[str, str]) -> None:
        metadata = self._known.pop(key, None)
        if metadata is not None:
            self._handle(lambda: self._on_delete(metadata), metadata)

    def _handle(self, handler: Callable[[], None], metadata: Metadata) -> None:
        try:
            handler()
        except Exception:  # one object that a handler chokes on must not stop the mirror
            self.stats.handler_errors += 1
            _log.exception("%s: the handler failed for %s/%s (uid %s); going on with the rest", self._path, metadata.namespace, metadata.name, metadata.uid)

    # -- trouble ------------------------------------------------------------------------------------------------

    async def _recover(self, error: KubeError, failures: int) -> None:
        """Decide between listing again and resuming the watch, and wait a little."""
        self.stats.failures += 1
        if isinstance(error, ApiError):
            # Any complaint about the watch itself is best answered by a fresh list; unlike 410 it is worth a word.
            self._resource_version = None
        # After other trouble, 410 is a server's first word that it is back. One that says nothing else must not be asked in a tight loop.
        again, self._expired = self._expired and failures > 1, isinstance(error, ApiError) and error.status == GONE
        if self._expired and not again:
            _log.info("%s: resourceVersion expired; listing again", self._path)
            return
        first, most = self._backoff_seconds
        asked = min(error.retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        if self._lists_done < self._lists_asked:
            most = min(most, HURRIED_SECONDS)
        wait = asked or min(most, first * 2 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)
        _log.warning("%s: %s; again in %.1f s", self._path, error, wait)
        self._wake.clear()
        try:
            async with asyncio.timeout(wait):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _in_thread(self, function: Callable[..., R], *args: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _metadata(raw: msgspec.Raw) -> Metadata:
    try:
        return _item_decoder.decode(raw).metadata
    except msgspec.MsgspecError as error:
        raise TransportError(f"the API server sent an object without usable metadata: {error}", sent=True) from error
