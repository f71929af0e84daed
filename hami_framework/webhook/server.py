# SPDX-License-Identifier: Apache-2.0
"""Puts the webhook together and keeps it running: HTTPS for the API server, plain HTTP for probes and metrics."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

from hami_framework.kube.client import KubeClient
from hami_framework.webhook.app import make_app
from hami_framework.webhook.live import LOOK_SECONDS, LiveCertificate, Texts
from hami_framework.webhook.metrics import Metrics
from hami_framework.webhook.quotas import QuotaBook
from hami_framework.webhook.rules import Reading

DRAIN_SECONDS = 3.0
"""Between "not ready" and the end: API servers need a moment to hear that this replica is going."""
KEEP_ALIVE_SECONDS = 180
"""As in the extender: longer than the API server keeps an idle connection (90 s, Go's `http.DefaultTransport`)."""
STOP_SECONDS = 5

_log = logging.getLogger(__name__)


class Webhook:
    """All parts of one webhook. Make it inside the running event loop."""

    def __init__(self, reading: Reading, client: KubeClient, metrics: Metrics, read: Callable[[dict[str, Any]], Any]) -> None:
        self.metrics = metrics
        self.certificate = LiveCertificate(metrics)
        self.quotas = QuotaBook(client, reading.catalog, read, metrics)
        self.stopping = False
        self.app = make_app(reading, self.quotas.look, self._missing, metrics)
        self.plain_app = make_app(reading, self.quotas.look, self._missing, metrics, mutate=False)

    def _missing(self) -> str:
        if self.stopping:
            return "this replica is going"
        return "" if self.certificate.usable else "there is no certificate that is good today; see the log for where it should come from"


@asynccontextmanager
async def serving(
    webhook: Webhook,
    https: socket.socket,
    http: socket.socket | None,
    read_certificate: Callable[[], Awaitable[Texts]],
    where: str,
    others: Sequence[Coroutine[Any, Any, None]] = (),
    *,
    look_seconds: float = LOOK_SECONDS,
) -> AsyncIterator[tuple[asyncio.Task[None], ...]]:
    """Serve on bound sockets while the body runs; the tasks are handed to it. `others`: what runs beside (election, keeper)."""
    for sock in (https, http):
        if sock is not None:  # accepted sockets inherit it; see scheduler/server.py
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    servers = [(_Server(_config(webhook.app, webhook)), https)]
    if http is not None:
        servers.append((_Server(_config(webhook.plain_app, None)), http))
    tasks = (
        *(asyncio.create_task(server.serve(sockets=[sock]), name="https" if sock is https else "http") for server, sock in servers),
        asyncio.create_task(webhook.certificate.follow(read_certificate, where, look_seconds), name="certificate"),
        asyncio.create_task(webhook.quotas.run(), name="quotas"),
        *(asyncio.create_task(other, name=f"other {number}") for number, other in enumerate(others)),
    )
    try:
        yield tasks
    finally:
        for server, _ in servers:
            server.should_exit = True
        for task in tasks[len(servers) :]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(webhook: Webhook, *arguments: Any, drain_seconds: float = DRAIN_SECONDS, look_seconds: float = LOOK_SECONDS) -> None:
    """Serve until SIGTERM or SIGINT (`arguments`: as for `serving`). Raises what a part of it died of."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(webhook, *arguments, look_seconds=look_seconds) as tasks:
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done - {stopped}:
            task.result()
        webhook.stopping = True
        await asyncio.sleep(drain_seconds)


class _Server(uvicorn.Server):
    """Two of them run in one process, so neither may take the signals for itself."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Any, webhook: Webhook | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    config.load()
    if webhook is not None:
        config.ssl = webhook.certificate.context
    return config
