# SPDX-License-Identifier: Apache-2.0
"""Writes from the event loop: what `KubeClient.create` does, for a writer that sends hundreds a second.

A thread per request and `http.client` cost more CPU than the rest of a placement; here a request is one `send` on a kept
connection, and its answer one `recv`. Only connecting goes through the client's threads. Rules as in `client`: a write is
sent exactly once, its error says whether the outcome is known, and a request that is given up is torn out of the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

import httptools
import msgspec

from hami_framework.kube.client import IDLE_SECONDS, JSON, KubeClient, Object
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import TransportError, from_answer

CONNECTIONS = 16
"""Requests under way at once; the API server works on a few at a time, more only wait there instead of here."""

LARGEST_READ = 65_536
NOT_TAKEN_SECONDS = 0.005
"""Pause when the kernel takes no more of a request: it holds many times one, so the other side does not read."""

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Writer:
    """POSTs with a client's identity. Make and use it inside one event loop."""

    def __init__(self, client: KubeClient, connections: int = CONNECTIONS) -> None:
        self._client = client
        self._free = asyncio.Semaphore(connections)
        self._idle: list[_Connection] = []

    async def create(self, path: str, body: Object, query: Mapping[str, str] | None = None, *, before_sending: Callable[[], None] | None = None) -> None:
        """POST; returns on 2xx. Raises ApiError, TransportError, and what `before_sending` raises (then nothing was sent)."""
        payload = msgspec.json.encode(body)
        url = self._client._url(path, query)
        async with self._free:
            connection = self._take() or await self._connect(url)
            answer = await self._exchange(connection, url, payload, before_sending)
        if 200 <= answer.status < 300:
            return
        if answer.status == HTTPStatus.UNAUTHORIZED:
            await self._client.call(self._client._renew)
        raise from_answer(answer.status, answer.reason, bytes(answer.body), answer.retry_after)

    def close(self) -> None:
        """Close idle connections; requests under way are their callers' to cancel."""
        while self._idle:
            self._idle.pop().close()

    async def _exchange(self, connection: _Connection, url: str, payload: bytes, before_sending: Callable[[], None] | None) -> _Answer:
        server = self._client.credentials.server
        reused, sent = connection.used, False
        try:
            head = self._head(url, len(payload))
            if before_sending is not None:
                before_sending()
            sent = True
            async with asyncio.timeout(self._client.timeout_seconds):
                answer = await connection.ask(head + payload)
        except BaseException as error:
            connection.abort()
            if sent and reused:
                self.close()  # the others went the same way
            if isinstance(error, OSError | httptools.HttpParserError):
                raise TransportError(f"POST {server}{url}: {type(error).__name__}: {error}", sent=sent) from error
            raise
        if answer.keep:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _take(self) -> _Connection | None:
        """A connection of the present identity that is open as far as one can know."""
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh and connection.credentials is self._client.credentials:
                return connection
            connection.close()
        return None

    async def _connect(self, url: str) -> _Connection:
        client = self._client
        credentials = client.credentials

        def dial() -> socket.socket:
            connection = client._connect(client.timeout_seconds)
            connection.connect()
            return connection.sock

        try:
            return _Connection(await client.call(dial), credentials)
        except OSError as error:
            raise TransportError(f"POST {credentials.server}{url}: {type(error).__name__}: {error}", sent=False) from error

    def _head(self, url: str, length: int) -> bytes:
        lines = [f"POST {url} HTTP/1.1", f"Host: {self._client._server.netloc}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in self._client._headers(JSON).items()]
        return "\r\n".join((*lines, "", "")).encode()


class _Answer:
    """Collects one answer; `complete` is set when it is whole. Its `on_…` are called by the parser."""

    def __init__(self) -> None:
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status, self.reason, self.body = 0, "", bytearray()
        self.retry_after: str | None = None
        self.keep = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_status(self, reason: bytes) -> None:
        self.reason = reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.retry_after = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.keep = self._parser.should_keep_alive()
        if not self.complete.done():
            self.complete.set_result(None)


class _Connection:
    """A connected socket, read by the event loop; one request at a time."""

    def __init__(self, sock: socket.socket, credentials: Credentials) -> None:
        self.credentials = credentials
        self.used = False
        self._sock = sock
        self._last = time.monotonic()
        self._open = True
        self._answer: _Answer | None = None
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    @property
    def fresh(self) -> bool:
        """Nothing says that the other side has closed it, or is about to."""
        return self._open and time.monotonic() - self._last < IDLE_SECONDS

    async def ask(self, request: bytes) -> _Answer:
        """Send, and wait for the answer. Raises OSError, HttpParserError."""
        if not self._open:
            raise ConnectionResetError("the API server closed the connection")
        self._answer = answer = _Answer()
        self.used = True
        rest = memoryview(request)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except _NOT_NOW:
                await asyncio.sleep(NOT_TAKEN_SECONDS)
        await answer.complete
        self._answer = None
        self._last = time.monotonic()
        return answer

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def abort(self) -> None:
        """Close so that bytes still in our kernel are thrown away."""
        if self._open:
            with contextlib.suppress(OSError):  # already torn down by the other side
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def _readable(self) -> None:
        try:
            while data := self._sock.recv(LARGEST_READ):
                if self._answer is None:
                    break  # it speaks out of turn
                self._answer.feed(data)
        except _NOT_NOW:
            return
        except (OSError, httptools.HttpParserError) as error:
            self._lost(error)
            return
        self._lost(ConnectionResetError("the API server closed the connection"))

    def _lost(self, error: Exception) -> None:
        self.abort()
        if self._answer is not None and not self._answer.complete.done():
            self._answer.complete.set_exception(error)
