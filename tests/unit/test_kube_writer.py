# SPDX-License-Identifier: Apache-2.0
"""Writes from the event loop: sent once, on kept connections, and errors that say whether the outcome is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext

import pytest

from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import ApiError, KubeError, TransportError
from hami_framework.kube.writer import Writer

CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
LAST = CREATED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
REFUSAL = json.dumps({"kind": "Status", "reason": "Conflict", "message": "somebody else was quicker", "code": 409}).encode()
CONFLICT = b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n%s" % (len(REFUSAL), REFUSAL)
IN_CHUNKS = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
SILENCE = b""


class Server:
    """Answers each request with the next of `answers` (the last for ever); `None` hangs up instead."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.under_way = self.most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length"))
                self.requests.append(head + await reader.readexactly(length))
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                await asyncio.sleep(0.01)
                self.under_way -= 1
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the writer hung up
        finally:
            writer.close()


@asynccontextmanager
async def writing(server: Server, connections: int = 4, timeout_seconds: float = 2.0) -> AsyncIterator[Writer]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    client = KubeClient(Credentials(server=f"http://127.0.0.1:{port}", authorization="Bearer secret"), timeout_seconds=timeout_seconds)
    writer = Writer(client, connections)
    try:
        yield writer
    finally:
        writer.close()
        client.close()
        listening.close()


async def test_a_request_is_whole_and_says_who_asks() -> None:
    server = Server(CREATED)
    async with writing(server) as writer:
        await writer.create("/api/v1/things", {"a": "ü"}, {"timeout": "4s"})
    [request] = server.requests
    assert request.startswith(b"POST /api/v1/things?timeout=4s HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer secret\r\n" in request
    assert b"\r\nContent-Type: application/json\r\n" in request
    assert json.loads(request.partition(b"\r\n\r\n")[2]) == {"a": "ü"}


@pytest.mark.parametrize(("answer", "connections"), [(CREATED, 1), (IN_CHUNKS, 1), (CONFLICT, 1), (LAST, 3)], ids=["kept", "in chunks", "refused", "not kept"])
async def test_connections_are_used_again_as_the_server_allows(answer: bytes, connections: int) -> None:
    server = Server(answer)
    async with writing(server) as writer:
        for _ in range(3):
            with pytest.raises(ApiError, match="somebody else was quicker") if answer is CONFLICT else nullcontext():
                await writer.create("/x", {})
    assert server.connections == connections


async def test_no_more_are_under_way_than_allowed() -> None:
    server = Server(CREATED)
    async with writing(server, connections=3) as writer:
        await asyncio.gather(*(writer.create("/x", {"number": number}) for number in range(20)))
    assert (len(server.requests), server.most) == (20, 3)


async def test_when_to_come_back_is_told() -> None:
    async with writing(Server(BUSY)) as writer:
        with pytest.raises(ApiError) as caught:
            await writer.create("/x", {})
    assert (caught.value.status, caught.value.retry_after_seconds, caught.value.outcome_unknown) == (429, 7.0, False)


@pytest.mark.parametrize("answer", [None, SILENCE, b"HTTP/1.1 201 Cre", b"this is no HTTP\r\n\r\n"], ids=["hangs up", "says nothing", "half", "rubbish"])
async def test_without_a_whole_answer_the_outcome_is_unknown_and_nothing_is_sent_twice(answer: bytes | None) -> None:
    server = Server(answer)
    async with writing(server, timeout_seconds=0.3) as writer:
        with pytest.raises(TransportError) as caught:
            await writer.create("/x", {})
    assert caught.value.outcome_unknown
    assert len(server.requests) == 1


async def test_a_server_that_is_not_there_has_got_nothing() -> None:
    client = KubeClient(Credentials(server="http://127.0.0.1:9"), timeout_seconds=1)
    with pytest.raises(TransportError) as caught:
        await Writer(client).create("/x", {})
    client.close()
    assert not caught.value.outcome_unknown


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used() -> None:
    server = Server(CREATED, None, CREATED)
    async with writing(server) as writer:
        await writer.create("/x", {})
        with pytest.raises(TransportError):
            await writer.create("/x", {})
        await asyncio.sleep(0.05)
        await writer.create("/x", {})
    assert (len(server.requests), server.connections) == (3, 2)


class Fenced(KubeError):
    """Raised before anything is sent."""


async def test_what_is_checked_before_sending_stops_it() -> None:
    def fence() -> None:
        raise Fenced("not now")

    checks: list[Callable[[], None]] = [fence, lambda: None]
    server = Server(CREATED)
    async with writing(server) as writer:
        with pytest.raises(Fenced):
            await writer.create("/x", {}, before_sending=checks[0])
        assert server.requests == []
        await writer.create("/x", {}, before_sending=checks[1])
    assert len(server.requests) == 1


async def test_who_is_cancelled_leaves_no_connection_behind() -> None:
    server = Server(SILENCE, CREATED)
    async with writing(server, connections=1) as writer:
        waiting = asyncio.create_task(writer.create("/x", {}))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await writer.create("/x", {})
    assert server.connections == 2
