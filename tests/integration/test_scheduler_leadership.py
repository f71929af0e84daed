# SPDX-License-Identifier: Apache-2.0
"""Who answers and when: real elections over a Lease in memory, and what an extender does while leadership comes and goes."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hami_framework.kube.errors import ApiError, TransportError
from hami_framework.kube.lease import WANTED_BY, Election
from hami_framework.scheduler.binding import NotLeading
from hami_framework.scheduler.leadership import Leadership
from hami_framework.scheduler.metrics import Metrics

Object = dict[str, Any]
LEASE, RENEW, HAND_OVER = 0.9, 0.1, 0.4


class LeaseStore:
    """One Lease with the API server's rules, and the verbs of KubeClient that an election uses."""

    def __init__(self) -> None:
        self.lease: Object | None = {"metadata": {"name": "l", "namespace": "n", "resourceVersion": "1"}, "spec": {}}
        self.version, self.lock, self.away, self.slow_seconds = 1, threading.Lock(), False, 0.0

    def get(self, _path: str) -> Object:
        self._answerable()
        with self.lock:
            if self.lease is None:
                raise ApiError(404, "NotFound", "no such lease")
            return copy.deepcopy(self.lease)

    def create(self, _path: str, body: Object) -> Object:
        self._answerable()
        with self.lock:
            if self.lease is not None:
                raise ApiError(409, "AlreadyExists", "there is one")
            return self._keep(body)

    def replace(self, _path: str, body: Object) -> Object:
        self._answerable()
        with self.lock:
            if self.lease is None:
                raise ApiError(404, "NotFound", "no such lease")
            if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", "somebody else wrote")
            return self._keep(body)

    def _keep(self, body: Object) -> Object:
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)

    def _answerable(self) -> None:
        time.sleep(self.slow_seconds)
        if self.away:
            raise TransportError("connection refused", sent=False)

    @property
    def holder(self) -> str:
        return str((self.lease or {"spec": {}})["spec"].get("holderIdentity", ""))


class Bindings:
    """What is under way: as long as `pending`, nothing can be said."""

    def __init__(self) -> None:
        self.pending = False

    async def drain(self, _seconds: float) -> bool:
        return not self.pending


async def nothing() -> None:
    pass


class Extender:
    def __init__(self, store: LeaseStore, name: str, *, when_asked: bool = False, refresh: Callable[[], Awaitable[None]] = nothing) -> None:
        self.verbs = SimpleNamespace(ready=False, why_not="", leads_when_asked=when_asked)
        self.bindings = Bindings()
        self.election = Election(cast(Any, store), namespace="n", name="l", identity=name, lease_seconds=LEASE, renew_seconds=RENEW, when_asked=when_asked)
        self.leadership = Leadership(
            self.election,
            self.verbs,
            cast(Any, self.bindings),
            Metrics(),
            refresh=refresh,
            fence_seconds=0.3,
            hand_over_seconds=HAND_OVER,
            drain_seconds=0.1,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Extender]:
        tasks = [asyncio.create_task(self.election.run()), asyncio.create_task(self.leadership.run())]
        try:
            yield self
        finally:
            await self.leadership.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "waited in vain"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_one_of_two_answers_and_the_other_says_why_not() -> None:
    store = LeaseStore()
    async with Extender(store, "a").running() as first:
        await until(lambda: first.verbs.ready)
        async with Extender(store, "b").running() as second:
            await asyncio.sleep(0.4)
            assert first.verbs.ready
            assert not second.verbs.ready
            assert "another extender leads" in second.verbs.why_not


async def test_the_end_in_good_order_hands_over_without_a_wait() -> None:
    store = LeaseStore()
    async with Extender(store, "b").running() as second:
        async with Extender(store, "a").running() as first:
            await until(lambda: first.verbs.ready or second.verbs.ready)
        if not second.verbs.ready:
            assert await until(lambda: second.verbs.ready) < LEASE
    assert store.holder == ""


async def test_after_an_end_with_an_unknown_binding_the_lease_and_the_hand_over_are_waited_for() -> None:
    store = LeaseStore()
    async with Extender(store, "a").running() as first:
        await until(lambda: first.verbs.ready)
        first.bindings.pending = True
    assert store.holder == first.election.holder, "not freed"
    async with Extender(store, "b").running() as second:
        assert await until(lambda: second.verbs.ready) > 1.0 + HAND_OVER - 0.1  # the Lease says whole seconds


async def test_a_leader_stops_by_its_own_clock_when_the_api_server_is_away() -> None:
    store = LeaseStore()
    async with Extender(store, "a").running() as it:
        await until(lambda: it.verbs.ready)
        store.away = True
        took = await until(lambda: not it.verbs.ready)
        assert took < LEASE + 0.3
        with pytest.raises(NotLeading, match="not sent"):
            it.leadership.fence()
        store.away = False
        await until(lambda: it.verbs.ready)


async def test_the_fence_closes_before_the_lease_ends() -> None:
    store = LeaseStore()
    async with Extender(store, "a").running() as it:
        await until(lambda: it.verbs.ready)
        it.leadership.fence()
        store.away = True
        await until(lambda: it.election.remaining < 0.25)
        assert it.election.leading
        with pytest.raises(NotLeading):
            it.leadership.fence()


async def test_a_slow_api_server_does_not_make_a_second_leader() -> None:
    store = LeaseStore()
    async with Extender(store, "a").running() as first, Extender(store, "b").running() as second:
        await until(lambda: first.verbs.ready or second.verbs.ready)
        for seconds in (0.2, 0.5, 0.0):
            store.slow_seconds = seconds
            for _ in range(60):
                assert not (first.election.leading and second.election.leading)
                await asyncio.sleep(0.01)


async def test_nobody_answers_before_the_picture_is_up_to_date() -> None:
    read = asyncio.Event()

    async def refresh() -> None:
        await read.wait()

    async with Extender(LeaseStore(), "a", refresh=refresh).running() as it:
        await until(lambda: it.election.leading)
        await asyncio.sleep(0.3)
        assert not it.verbs.ready
        read.set()
        await until(lambda: it.verbs.ready)


async def test_one_that_is_asked_takes_over_from_a_living_leader_once_its_bindings_are_done() -> None:
    store = LeaseStore()
    async with Extender(store, "a", when_asked=True).running() as first, Extender(store, "b", when_asked=True).running() as second:
        await asyncio.sleep(0.3)
        assert not first.verbs.ready
        first.leadership.asked()
        await until(lambda: first.verbs.ready)
        second.leadership.asked()
        await until(lambda: second.verbs.ready)
        assert not first.verbs.ready
        await asyncio.sleep(0.3)
        assert second.verbs.ready, "and keeps it until the other is asked"
        first.leadership.asked()
        await until(lambda: first.verbs.ready)
        assert WANTED_BY not in (store.lease or {})["metadata"].get("annotations", {})
