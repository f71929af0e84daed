# SPDX-License-Identifier: Apache-2.0
"""Puts the extender together and keeps it running: one event loop for HTTP, reflectors and the engine."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from hami_framework.codec.annotations import POLICIES
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.kube.client import KubeClient
from hami_framework.kube.lease import Election
from hami_framework.model import Inventory, PodRequest
from hami_framework.placement.engine import Engine
from hami_framework.scheduler.app import make_app, make_health_app, make_verbs
from hami_framework.scheduler.binding import Binder
from hami_framework.scheduler.events import EventWriter
from hami_framework.scheduler.followup import FollowUp
from hami_framework.scheduler.http import Verb, protocol
from hami_framework.scheduler.leadership import Leadership
from hami_framework.scheduler.liveness import NAMESPACE
from hami_framework.scheduler.metrics import Metrics
from hami_framework.scheduler.service import Extender
from hami_framework.scheduler.state import ClusterState, Listener, PodView
from hami_framework.scheduler.strangers import Strangers
from hami_framework.scheduler.tls import ReloadingTls
from hami_framework.scheduler.usage import promised

EXPIRY_SECONDS = 1.0
"""How often tentative entries of pods that never came back are looked through."""

STOP_SECONDS = 5

KEEP_ALIVE_SECONDS = 180
"""Longer than kube-scheduler keeps an idle connection (90 s, Go's `http.DefaultTransport`): were we to close first, a POST
could meet the closing connection, and Go does not repeat a POST."""

GC_THRESHOLDS = (50_000, 20, 20)
"""Python's collector (`gc.set_threshold`) once synced. With the default 700 it walks the node names of the last hundred
verdicts every few answers, some milliseconds each time; hardly anything here is in a cycle."""

_log = logging.getLogger(__name__)


class Scheduler(Listener):
    """All parts of one extender. Make it inside the running event loop."""

    def __init__(
        self,
        engine: Engine,
        catalog: ResourceCatalog,
        client: KubeClient,
        *,
        policies: Collection[str] = POLICIES,
        election: Election | None = None,
        bind_client: KubeClient | None = None,
        binder_options: dict[str, Any] | None = None,
        leadership_options: dict[str, Any] | None = None,
        lease_namespace: str = NAMESPACE,
        preemption: bool = True,
        chosen_only: bool = False,
        **reflector_options: Any,
    ) -> None:
        """With `election` the verbs answer only while this extender leads. `bind_client`: what bindings are sent by (default: `client`)."""
        self.engine = engine
        self.metrics = Metrics()
        self.events = EventWriter(client, self.metrics)
        self.binder = Binder(engine, bind_client or client, self.metrics, **(binder_options or {}))
        self.strangers = Strangers(catalog)

        def read(pod: dict[str, Any]) -> PodRequest:
            self.strangers.check(pod)
            return read_pod(pod, catalog, policies=policies)

        self.extender = Extender(engine, read, self.binder, client, self.events, self.metrics)
        self.extender.chosen_only = chosen_only
        self.follow_up = FollowUp(
            engine, client, self.extender, read, self.events, self.metrics, lease_namespace=lease_namespace, preemption=preemption, **reflector_options
        )
        self.binder.on_freed = self.freed
        self.state = ClusterState(engine, client, self.events, self.metrics, self, **reflector_options)
        self.verbs = make_verbs(self.extender, self.metrics)
        self.app = make_app(self.verbs, self.extender, self.metrics, self._promised, self._refresh_gauges)
        self.health = make_health_app(self.extender, self.metrics, self._refresh_gauges)
        self.leadership: Leadership | None = None
        self._election = election
        if election is not None:
            refresh = self.state.reflectors["pods"].refresh
            self.leadership = Leadership(election, self.extender, self.binder, self.metrics, refresh=refresh, **(leadership_options or {}))
            self.binder.fence, self.extender.asked_in_vain = self.leadership.fence, self.leadership.asked
            self.extender.leads_when_asked = election.when_asked

    def inventory_read(self, inventory: Inventory) -> None:
        self.strangers.learn(inventory)

    def pod_bound(self, pod: PodView) -> None:
        self.binder.pod_seen(pod.metadata.uid, pod.spec.node_name, pod.grant_text)
        self.follow_up.pod_bound(pod)

    def pod_gone(self, namespace: str, name: str, uid: str) -> None:
        self.binder.pod_gone(uid)
        self.extender.forget(namespace, name, uid)
        self.follow_up.pod_gone(uid)

    def freed(self, why: str) -> None:
        self.follow_up.hints.freed(why)

    async def run(self) -> None:
        """Follow the cluster, write events, let promises expire; until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.state.run(self._now_ready), name="cluster state")
                group.create_task(self.events.run(), name="events")
                group.create_task(self.follow_up.run(), name="follow-up")
                group.create_task(self._expire(), name="expiry")
                if self._election is not None and self.leadership is not None:
                    # One that has read nothing yet could not lead.
                    await self.state.synced.wait()
                    group.create_task(self._election.run(), name="election")
                    group.create_task(self.leadership.run(), name="leadership")
        finally:
            await self.binder.stop()

    async def wind_down(self) -> None:
        """Answer no more, and let bindings under way end: to be awaited before `run` is cancelled, so that the Lease can be freed at once."""
        if self.leadership is not None:
            await self.leadership.stop()

    def _now_ready(self) -> None:
        # What was read stays for the life of the process; the collector need not walk it in the middle of a filter.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self.extender.warm = True
        self.extender.ready = self._election is None
        self.metrics.synced.set(1)
        _log.info("ready: %d nodes with devices, %d grants", len(self.state.inventory_of), sum(1 for _ in self.engine.grants()))

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            if self.engine.expire(time.monotonic()):
                self.freed("a pod did not come back for its place")

    def _promised(self) -> object:
        return promised(self.engine, self.state.inventory_of.values(), self.follow_up.liveness.word)

    def _refresh_gauges(self) -> None:
        self.metrics.undecided.set(self.binder.undecided_count)
        self.metrics.waiting.set(len(self.follow_up.waiting))
        self.metrics.silent.set(len(self.follow_up.liveness.silent))
        for name, reflector in self.state.reflectors.items():
            self.metrics.watch_failures.labels(name).set(reflector.stats.failures)


def _server(app: Any, tls: ReloadingTls | None = None, verbs: Mapping[str, Verb] | None = None) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=protocol(verbs or {}),
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    config.load()
    config.ssl = tls.context if tls is not None else None
    return uvicorn.Server(config)


@asynccontextmanager
async def serving(
    scheduler: Scheduler, sock: socket.socket, *, tls: ReloadingTls | None = None, health: socket.socket | None = None
) -> AsyncIterator[tuple[asyncio.Task[None], ...]]:
    """Serve HTTP on a bound socket, and run the scheduler's own tasks, while the body runs; the tasks are handed to it.

    `health`: a second socket for probes and metrics alone, always plain: a probe has no client certificate.
    """
    # asyncio sets this on accepted sockets only where the listening one names its protocol; without it every answer that
    # takes more than one packet waits 40 ms for the other side's delayed acknowledgement. Accepted sockets inherit it.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    servers = {"http": (_server(scheduler.app, tls, scheduler.verbs), sock)}
    if health is not None:
        servers["health"] = (_server(scheduler.health), health)
    tasks = [asyncio.create_task(scheduler.run(), name="scheduler")]
    tasks += [asyncio.create_task(server.serve(sockets=[where]), name=name) for name, (server, where) in servers.items()]
    reloading = asyncio.create_task(tls.run(), name="TLS files") if tls is not None else None
    try:
        yield tuple(tasks)
    finally:
        await scheduler.wind_down()
        for server, _ in servers.values():
            server.should_exit = True
        if reloading is not None:
            reloading.cancel()
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(scheduler: Scheduler, sock: socket.socket, **options: Any) -> None:
    """Serve until SIGTERM or SIGINT. Raises what a part of it died of: a half-living extender would give half-true answers."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(scheduler, sock, **options) as tasks:
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done - {stopped}:
            task.result()
