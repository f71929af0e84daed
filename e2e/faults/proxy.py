# SPDX-License-Identifier: Apache-2.0
"""The proxy: plain HTTP/1.1 towards our components on loopback, the API server's TLS and credentials behind it.

One connection to the API server for each connection of a client, as a load balancer on the fourth layer would have it.
It understands just enough HTTP to tell requests apart: a head, and a body of known length or in chunks (RFC 9112).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from e2e.faults.orders import Fault, Orders
from hami_framework.kube.credentials import Credentials

HEAD_LIMIT = 1 << 24
"""Longest line or head, in bytes: an event of a watch is one line."""
GONE = b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old","reason":"Expired","code":410}}\n'

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Ended(Exception):
    """The other side closed, or a fault says that we do."""


class Proxy:
    """`async with Proxy(credentials) as proxy:` and give `proxy.url` to whoever is to suffer. Use it inside one event loop."""

    def __init__(self, credentials: Credentials) -> None:
        server = urlsplit(credentials.server)
        self._host, self._port = str(server.hostname), server.port or 443
        self._tls = credentials.ssl_context() if server.scheme == "https" else None
        self._authorization = credentials.authorization
        self.orders = Orders()
        self.requests: list[str] = []
        self._listening: asyncio.Server | None = None
        self._port_here = 0
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: dict[asyncio.StreamWriter, bool] = {}
        """Open watches → whether their bytes still reach the client."""

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Proxy:
        await self.come_up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_down()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port_here}"

    @property
    def open_watches(self) -> int:
        return len(self._watches)

    # -- faults that concern connections --------------------------------------------------------------------------

    async def go_down(self) -> None:
        """Nobody listens any more, and every connection is reset."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        self.reset_all()
        await asyncio.sleep(0)

    async def come_up(self) -> None:
        """Listen again, at the same address."""
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", self._port_here, limit=HEAD_LIMIT)
        self._port_here = self._listening.sockets[0].getsockname()[1]

    def reset_all(self) -> None:
        """Reset every connection of a client, in the middle of whatever it does."""
        for writer in list(self._clients):
            _reset(writer)

    def drop_watches(self) -> None:
        """Reset the watches alone."""
        for writer in list(self._watches):
            _reset(writer)

    def half_open(self) -> int:
        """Nothing more arrives on the watches that are open now, and nobody is told. How many they are."""
        self._watches = dict.fromkeys(self._watches, False)
        return len(self._watches)

    # -- inside -------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._clients.add(writer)
        behind: list[Streams] = []
        try:
            await self._serve(reader, writer, behind)
        except (Ended, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side is gone: so is this pair of connections
        finally:
            self._clients.discard(writer)
            self._watches.pop(writer, None)
            for end in (writer, *(writer for _, writer in behind)):
                end.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behind: list[Streams]) -> None:
        while True:
            head, fields = await _head(reader)
            body = await reader.readexactly(int(fields.get("content-length", "0")))
            method, target, _ = head.split(" ", 2)
            request = f"{method} {target}"
            self.requests.append(request)
            fault = self.orders.take(request)
            if fault is not None and fault.kind == "slow":
                await asyncio.sleep(fault.seconds)
            if fault is not None and fault.kind in ("answer", "blackhole", "expire"):
                await _own_answer(writer, fault)
                continue
            message = self._message(head, fields, body)
            if fault is not None and fault.kind == "twice":
                async with self._fresh() as extra:
                    await self._forward(extra, message, None, watch=False, client=None)
            if not behind:
                behind.append(await self._connect())
            await self._forward(behind[0], message, fault, watch="watch=1" in target, client=writer)

    def _message(self, head: str, fields: dict[str, str], body: bytes) -> bytes:
        fields = {**fields, "host": f"{self._host}:{self._port}"}
        if self._authorization:
            fields["authorization"] = self._authorization
        return "\r\n".join([head, *(f"{name}: {value}" for name, value in fields.items()), "", ""]).encode() + body

    async def _connect(self) -> Streams:
        return await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=HEAD_LIMIT)

    @contextlib.asynccontextmanager
    async def _fresh(self) -> AsyncIterator[Streams]:
        streams = await self._connect()
        try:
            yield streams
        finally:
            streams[1].transport.abort()

    async def _forward(self, streams: Streams, message: bytes, fault: Fault | None, *, watch: bool, client: asyncio.StreamWriter | None) -> None:
        """One request to the API server, and its answer to the client (None: to nobody) as the fault has it."""
        reader, writer = streams
        writer.write(message)
        await writer.drain()
        kind = fault.kind if fault is not None else ""
        head, fields = await _head(reader)
        lines = "\r\n".join([head, *(f"{name}: {value}" for name, value in fields.items()), "", ""]).encode()
        told = client is not None and kind != "swallow"
        if client is not None and watch:
            self._watches[client] = True
        if client is not None and told:
            client.write(lines)
        async for part in _body(reader, fields):
            if client is None or not told or (watch and not self._watches.get(client, False)):
                continue
            client.write(part[: len(part) // 2] if kind == "cut" else part)
            await client.drain()
            if kind == "cut":
                break
        if client is not None and kind in ("swallow", "cut"):
            _reset(client)
            raise Ended
        if client is not None:
            self._watches.pop(client, None)


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """The first line, and the fields by lower-case name."""
    data = await reader.readuntil(b"\r\n\r\n")
    first, *lines = data.decode("latin-1").strip().split("\r\n")
    return first, {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> AsyncIterator[bytes]:
    """The body's bytes as they stand on the wire, in pieces as they come."""
    if fields.get("transfer-encoding", "").lower() == "chunked":
        size = None
        while size != 0:
            line = await reader.readuntil(b"\r\n")
            size = int(line, 16)
            yield line + await reader.readexactly(size + 2)
        return
    yield await reader.readexactly(int(fields.get("content-length", "0")))


async def _own_answer(writer: asyncio.StreamWriter, fault: Fault) -> None:
    """What we say instead of the API server; nothing at all for a black hole."""
    if fault.kind == "blackhole":
        await asyncio.Event().wait()
    status = 200 if fault.kind == "expire" else fault.status
    failure = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": "ordered by the test", "reason": "Test"}
    body = GONE if fault.kind == "expire" else json.dumps(failure).encode()
    fields = [("content-type", "application/json"), ("content-length", str(len(body))), *fault.headers]
    writer.write(f"HTTP/1.1 {status} Ordered\r\n".encode() + "".join(f"{name}: {value}\r\n" for name, value in fields).encode() + b"\r\n" + body)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees a reset, not an end in good order."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
