# SPDX-License-Identifier: Apache-2.0
"""The short way for kube-scheduler's requests. A pod costs three of them, and a general web server's bookkeeping costs more than the answers.

A connection whose next request is a plain POST of a verb is answered right where its bytes arrive. At the first
request that is anything else (another path, a chunked body, a head in pieces, an `Expect`), the connection is handed
over to uvicorn for good, whose application knows the verbs too: so what is not plain is slower, never wrong.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

JSON = "application/json"

LONGEST_HEAD = 8192
LONGEST_BODY = 64 << 20
"""5,000 full nodes are some 50 MB; beyond that uvicorn may collect it."""

_PLAIN = re.compile(rb"POST /(\w+) HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?=\r\n)", re.IGNORECASE)
_SPECIAL = re.compile(rb"\r\n(?:transfer-encoding|expect|connection|upgrade)[ \t]*:", re.IGNORECASE)
_REASONS = {200: "OK", 400: "Bad Request", 500: "Internal Server Error"}

_log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """What a verb answers."""

    body: bytes
    status: int = 200
    media_type: str = JSON


Verb = Callable[[bytes], Reply | Awaitable[Reply]]
"""Body → reply, at once or later."""


class VerbProtocol(asyncio.Protocol):
    """One connection. uvicorn makes, counts and ends it like one of its own (`uvicorn.Config(http=…)`)."""

    def __init__(self, verbs: Mapping[str, Verb], **uvicorns: Any) -> None:
        self._verbs, self._uvicorns = verbs, uvicorns
        self._connections: set[Any] = uvicorns["server_state"].connections
        self._keep_alive_seconds: float = uvicorns["config"].timeout_keep_alive
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._data = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._heard_at = self._loop.time()
        self._idle = self._loop.call_later(self._keep_alive_seconds, self._end_if_idle)

    # -- what asyncio and uvicorn call --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._task is None:
            self._next()
        elif len(self._data) > LONGEST_HEAD:
            self._transport.pause_reading()  # nobody asks on before the answer has come; who does may wait

    def shutdown(self) -> None:
        """Let the answer under way out, then close."""
        self._ending = True
        if self._task is None:
            self._transport.close()

    # -- requests -----------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Answer what is complete; at most one at a time is under way."""
        while self._data and self._task is None:
            head_end = self._data.find(b"\r\n\r\n", 0, LONGEST_HEAD)
            plain = _PLAIN.match(self._data)
            verb = self._verbs.get(plain[1].decode()) if plain and head_end > 0 else None
            head = bytes(self._data[: head_end + 2])
            lengths = _LENGTH.findall(head)
            if verb is None or len(lengths) != 1 or _SPECIAL.search(head) or int(lengths[0]) > LONGEST_BODY:
                self._hand_over()
                return
            end = head_end + 4 + int(lengths[0])
            if len(self._data) < end:
                return
            body = bytes(self._data[head_end + 4 : end])
            del self._data[:end]
            self._answer(verb, body)

    def _answer(self, verb: Verb, body: bytes) -> None:
        try:
            reply = verb(body)
        except Exception:
            self._failed()
            return
        if isinstance(reply, Reply):
            self._send(reply)
        else:
            self._task = self._loop.create_task(self._finish(reply))

    async def _finish(self, coming: Awaitable[Reply]) -> None:
        try:
            reply = await coming
        except Exception:
            self._task = None
            self._failed()
            return
        self._task = None
        if self._transport.is_closing():
            return
        self._send(reply)
        self._transport.resume_reading()
        self._next()

    def _failed(self) -> None:
        _log.exception("a request of kube-scheduler's could not be answered")
        self._send(Reply(b"Internal Server Error\n", 500, "text/plain"))

    def _send(self, reply: Reply) -> None:
        head = f"HTTP/1.1 {reply.status} {_REASONS[reply.status]}\r\nContent-Type: {reply.media_type}\r\nContent-Length: {len(reply.body)}\r\n\r\n"
        self._transport.write(head.encode() + reply.body)
        self._heard_at = self._loop.time()
        if self._ending:
            self._transport.close()

    # -- the end ------------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        self._forget()
        successor = HttpToolsProtocol(**self._uvicorns)
        self._transport.set_protocol(successor)
        successor.connection_made(self._transport)
        successor.data_received(bytes(self._data))

    def _end_if_idle(self) -> None:
        quiet = self._loop.time() - self._heard_at
        if self._task is None and quiet >= self._keep_alive_seconds:
            self._transport.close()
        else:
            self._idle = self._loop.call_later(max(self._keep_alive_seconds - quiet, 1.0), self._end_if_idle)

    def _forget(self) -> None:
        self._idle.cancel()
        self._connections.discard(self)


def protocol(verbs: Mapping[str, Verb]) -> Any:
    """What `uvicorn.Config(http=…)` wants."""
    return functools.partial(VerbProtocol, verbs)
