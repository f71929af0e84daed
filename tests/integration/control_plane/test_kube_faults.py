# SPDX-License-Identifier: Apache-2.0
"""What a real network did to the client in `e2e/tests/test_api_faults.py`, each in small: no case may hang, hammer or lose the rest."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hami_framework.kube import client as client_module
from hami_framework.kube import reflector as reflector_module
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.kube.errors import TransportError
from hami_framework.kube.reflector import Reflector

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[int]]]:
    """A server that reads a request and lets `answer` write; its address, and how many connections came."""
    seen: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the client has had enough
            while connection.recv(65536):
                answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                connection, address = listener.accept()
                seen.append(address[1])
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.close()


@pytest.fixture
def made() -> Iterator[Callable[..., KubeClient]]:
    clients: list[KubeClient] = []

    def make(url: str, **options: Any) -> KubeClient:
        clients.append(KubeClient(Credentials(server=url), **{"timeout_seconds": 0.5, "read_attempts": 1, **options}))
        return clients[-1]

    yield make
    for one in clients:
        one.close()


def test_an_answer_that_drips_in_ends_all_the_same(monkeypatch: pytest.MonkeyPatch, made: Callable[..., KubeClient]) -> None:
    monkeypatch.setattr(client_module, "WHOLE_ANSWER_SECONDS", 0.6)

    def drip(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.1)

    with server(drip) as (url, _):
        began = time.monotonic()
        with pytest.raises(TransportError, match="not complete"):
            made(url).get("/x")
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(HEAD + b'Content-Length: 100\r\n\r\n{"a":', id="shorter than announced"),
        pytest.param(HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n', id="no last chunk"),
        pytest.param(HEAD + b"Content-Len", id="in the middle of the head"),
        pytest.param(b"", id="no byte at all"),
    ],
)
def test_an_answer_that_was_cut_is_no_answer_and_its_outcome_is_unknown(made: Callable[..., KubeClient], sent: bytes) -> None:
    def cut(connection: socket.socket) -> None:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_RDWR)

    with server(cut) as (url, _), pytest.raises(TransportError) as failed:
        made(url).create("/x", {})
    assert failed.value.outcome_unknown


def test_connections_that_died_together_cost_one_timeout_together(made: Callable[..., KubeClient]) -> None:
    """Four kept connections go silent, as behind a load balancer that lost its table; the second call must not wait for them in turn."""
    silent = threading.Event()
    opened_before = set[int]()
    gate = threading.Barrier(4)

    def answer(connection: socket.socket) -> None:
        if silent.is_set() and connection.getpeername()[1] in opened_before:
            return  # half-open: taken, never answered
        if not silent.is_set():
            gate.wait(5)  # all four at once, so that each has a connection of its own
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")

    with server(answer) as (url, seen):
        client = made(url, timeout_seconds=1.0)
        threads = [threading.Thread(target=client.get, args=("/x",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        opened_before.update(seen)
        assert len(opened_before) == 4
        silent.set()
        with pytest.raises(TransportError):
            client.get("/x")
        began = time.monotonic()
        assert client.get("/x") == {}
        assert time.monotonic() - began < 0.5


def test_sockets_ask_whether_the_other_side_is_still_there(made: Callable[..., KubeClient]) -> None:
    with server(lambda connection: connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")) as (url, _):
        client = made(url)
        client.get("/x")
        ((_, connection),) = client._idle
        assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15


async def test_a_server_that_lists_but_refuses_watches_is_asked_less_and_less(api: Any, client: KubeClient) -> None:
    for _ in range(200):
        api.order_fault("GET", "watch=1", "503")
    reflector: Reflector[Any] = Reflector(client, path("pods"), on_upsert=lambda _: None, on_delete=lambda _: None, backoff_seconds=(0.05, 10.0))
    task = asyncio.create_task(reflector.run())
    await asyncio.sleep(2.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert reflector.synced.is_set()
    assert 3 <= reflector.stats.lists <= 9, "at the first wait it would have been some forty"


async def test_a_wait_of_a_day_is_not_waited(api: Any, client: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector_module, "LONGEST_RETRY_AFTER_SECONDS", 0.2)
    api.order_fault("GET", "/pods", "429:86400")
    reflector: Reflector[Any] = Reflector(client, path("pods"), on_upsert=lambda _: None, on_delete=lambda _: None)
    task = asyncio.create_task(reflector.run())
    async with asyncio.timeout(5):
        await reflector.synced.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
