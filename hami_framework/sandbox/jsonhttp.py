# SPDX-License-Identifier: Apache-2.0
"""JSON over kept-alive connections to one host, as kube-scheduler calls an extender. Nothing more."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import msgspec

from hami_framework.errors import Unavailable

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LARGEST_LINE = 1 << 20


class JsonClient:
    """A client of one base URL. A connection that the server closed meanwhile is replaced once."""

    def __init__(self, base_url: str, timeout_s: float = 5.0) -> None:
        parts = urlsplit(base_url)
        self._host, self._port, self._prefix = parts.hostname or "127.0.0.1", parts.port or 80, parts.path.rstrip("/")
        self._timeout = timeout_s
        self._idle: list[Connection] = []

    async def post(self, path: str, body: object) -> Any:
        """The decoded answer. Raises `Unavailable` when there is none in time, or it is not 200."""
        where = f"http://{self._host}:{self._port}{self._prefix}{path}"
        try:
            async with asyncio.timeout(self._timeout):
                status, answer = await self._exchange("POST", self._prefix + path, msgspec.json.encode(body))
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            raise Unavailable(f"POST {where}: {str(error) or type(error).__name__}") from error
        if status != 200:
            raise Unavailable(f"POST {where}: HTTP {status}: {answer[:300].decode(errors='replace')}")
        try:
            return msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            raise Unavailable(f"POST {where}: the answer is not JSON: {error}") from error

    async def answers_ok(self, path: str) -> bool:
        """True when a GET of this path is answered with 200."""
        try:
            async with asyncio.timeout(self._timeout):
                status, _ = await self._exchange("GET", self._prefix + path, b"")
        except (OSError, EOFError, TimeoutError, ValueError):
            return False
        return status == 200

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _exchange(self, verb: str, target: str, body: bytes) -> tuple[int, bytes]:
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._talk(connection, verb, target, body)
            except (ConnectionError, asyncio.IncompleteReadError):
                continue
        return await self._talk(await asyncio.open_connection(self._host, self._port, limit=LARGEST_LINE), verb, target, body)

    async def _talk(self, connection: Connection, verb: str, target: str, body: bytes) -> tuple[int, bytes]:
        reader, writer = connection
        keep = False
        try:
            head = f"{verb} {target} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
            answer = await _body(reader, headers)
            keep = headers.get("connection", "").lower() != "close"
            return status, answer
        finally:
            if keep:
                self._idle.append(connection)
            else:
                writer.close()


def _head(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = raw.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return int(first.split(" ", 2)[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    chunks = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readline()
    return b"".join(chunks)
