# SPDX-License-Identifier: Apache-2.0
"""The short way for verbs: plain requests are answered at once, everything else goes to uvicorn on the same connection."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest
import uvicorn

from hami_framework.scheduler.http import Reply, protocol


class Verbs:
    """Three verbs, and the application behind them, which says that it was asked."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked: list[bytes] = []

    def echo(self, body: bytes) -> Reply:
        self.asked.append(body)
        return Reply(body)

    def later(self, body: bytes) -> Awaitable[Reply]:
        async def answer() -> Reply:
            await self.gate.wait()
            return self.echo(body)

        return answer()

    def broken(self, body: bytes) -> Reply:
        raise RuntimeError(body)

    async def app(self, scope: dict[str, object], receive: object, send: object) -> None:
        assert callable(send)
        assert callable(receive)
        length = len((await receive())["body"])
        answer = json.dumps({"application": scope["path"], "length": length}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(answer)).encode())]})
        await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def served(verbs: Verbs, keep_alive: int = 60) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server with these verbs."""
    http = protocol({"echo": verbs.echo, "later": verbs.later, "broken": verbs.broken})
    config = uvicorn.Config(
        verbs.app,
        http=http,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    sock = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[sock]))
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    try:
        yield reader, writer
    finally:
        server.should_exit = True
        async with asyncio.timeout(5):
            await task
        writer.close()


def post(path: str, body: bytes, *more: str, length: bool = True) -> bytes:
    """The bytes of a request, as Go writes them."""
    lines = [f"POST {path} HTTP/1.1", "Host: here", "User-Agent: Go-http-client/1.1", *([f"Content-Length: {len(body)}"] if length else []), *more, "", ""]
    return "\r\n".join(lines).encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length:")]
        return int(head.split()[1]), await reader.readexactly(lengths[0])


async def test_a_verb_is_answered_again_and_again_on_one_connection() -> None:
    verbs = Verbs()
    async with served(verbs) as (reader, writer):
        for number in range(3):
            writer.write(post("/echo", b"x" * number * 100_000))
            assert await answer(reader) == (200, b"x" * number * 100_000)


async def test_a_body_in_pieces_is_waited_for() -> None:
    verbs = Verbs()
    async with served(verbs) as (reader, writer):
        whole = post("/echo", b"0123456789")
        for cut in (whole[:-7], whole[-7:-2], whole[-2:]):
            writer.write(cut)
            await asyncio.sleep(0.02)
        assert await answer(reader) == (200, b"0123456789")


async def test_requests_that_are_sent_ahead_are_answered_in_order() -> None:
    verbs = Verbs()
    async with served(verbs) as (reader, writer):
        writer.write(post("/later", b"first") + post("/echo", b"second") + post("/elsewhere", b"third"))
        await asyncio.sleep(0.05)
        assert verbs.asked == []
        verbs.gate.set()
        assert await answer(reader) == (200, b"first")
        assert await answer(reader) == (200, b"second")
        assert json.loads((await answer(reader))[1]) == {"application": "/elsewhere", "length": 5}


@pytest.mark.parametrize(
    "request_bytes",
    [
        post("/elsewhere", b"12345"),
        post("/echo", b"5\r\n12345\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=False),
        post("/echo", b"12345", "Connection: close"),
        b"POST /echo?x=1 HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\n12345",
    ],
    ids=["another path", "chunked", "with a wish for the connection", "with a query"],
)
async def test_what_is_not_plain_goes_to_the_application(request_bytes: bytes) -> None:
    verbs = Verbs()
    async with served(verbs) as (reader, writer):
        writer.write(post("/echo", b"before") + request_bytes)
        assert await answer(reader) == (200, b"before")
        status, body = await answer(reader)
    assert (status, json.loads(body)["length"]) == (200, 5)
    assert verbs.asked == [b"before"]


async def test_two_lengths_are_no_plain_request() -> None:
    verbs = Verbs()
    async with served(verbs) as (reader, writer):
        writer.write(post("/echo", b"12345", "Content-Length: 2"))
        assert (await answer(reader))[0] == 400
    assert verbs.asked == []


async def test_a_verb_that_raises_is_answered_500_and_the_connection_lives() -> None:
    verbs = Verbs()
    async with served(verbs) as (reader, writer):
        writer.write(post("/broken", b"x"))
        assert (await answer(reader))[0] == 500
        writer.write(post("/echo", b"y"))
        assert await answer(reader) == (200, b"y")


async def test_the_end_lets_an_answer_under_way_out() -> None:
    verbs = Verbs()
    async with served(verbs) as (reader, writer):
        writer.write(post("/later", b"late"))
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.2, verbs.gate.set)
    assert await answer(reader) == (200, b"late")
    assert await reader.read() == b""


async def test_a_quiet_connection_is_closed() -> None:
    async with served(Verbs(), keep_alive=1) as (reader, _):
        async with asyncio.timeout(5):
            assert await reader.read() == b""
