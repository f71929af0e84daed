# SPDX-License-Identifier: Apache-2.0
"""The reflector through everything that happens to a watch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError, TransportError
from hami_framework.kube.reflector import Metadata, Reflector


def pod(name: str, uid: str | None = None, node: str = "n1") -> dict[str, Any]:
    return {"metadata": {"namespace": "d", "name": name, **({"uid": uid} if uid else {})}, "spec": {"nodeName": node}}


class Mirror:
    """A reflector with handlers that write down what they saw."""

    def __init__(self, client: KubeClient, **options: Any) -> None:
        self.log: list[tuple[str, str, str]] = []
        options = {"read_deadline_seconds": 0.6, "backoff_seconds": (0.02, 0.1), **options}
        self.reflector: Reflector[dict[str, Any]] = Reflector(client, path("pods"), on_upsert=self.upsert, on_delete=self.delete, **options)
        self.task = asyncio.create_task(self.reflector.run())

    def upsert(self, obj: dict[str, Any]) -> None:
        if obj["metadata"]["name"] == "poison":
            raise ValueError("cannot read this one")
        self.log.append(("upsert", obj["metadata"]["name"], obj["metadata"]["uid"]))

    def delete(self, metadata: Metadata) -> None:
        self.log.append(("delete", metadata.name, metadata.uid))

    @property
    def stats(self) -> Any:
        return self.reflector.stats

    async def synced(self) -> Mirror:
        await asyncio.wait_for(self.reflector.synced.wait(), 5)
        return self


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("waited 5 s in vain")


@pytest.fixture
async def mirrors() -> AsyncIterator[list[Mirror]]:
    made: list[Mirror] = []
    yield made
    for mirror in made:
        mirror.task.cancel()
    await asyncio.gather(*(mirror.task for mirror in made), return_exceptions=True)


async def start(mirrors: list[Mirror], client: KubeClient, **options: Any) -> Mirror:
    mirror = Mirror(client, **options)
    mirrors.append(mirror)
    return await mirror.synced()


async def test_lists_in_pages_then_follows(api: Any, client: KubeClient, mirrors: list[Mirror]) -> None:
    for number in range(5):
        api.put("pods", pod(f"p{number}", f"u{number}"))
    mirror = await start(mirrors, client, page_size=2)
    assert [name for _, name, _ in mirror.log] == ["p0", "p1", "p2", "p3", "p4"]
    await until(lambda: mirror.stats.watches)
    api.put("pods", pod("late", "u9"))
    api.remove("pods", "d/p0")
    await until(lambda: mirror.log[5:] == [("upsert", "late", "u9"), ("delete", "p0", "u0")])
    assert mirror.stats.lists == 1


async def test_a_dropped_watch_resumes_without_listing_and_misses_nothing(api: Any, client: KubeClient, mirrors: list[Mirror]) -> None:
    mirror = await start(mirrors, client)
    for number in range(5):
        await until(lambda: api.watch_sockets)
        api.drop_watches()
        api.put("pods", pod(f"p{number}", f"u{number}"))
        await until(lambda number=number: ("upsert", f"p{number}", f"u{number}") in mirror.log)
    assert len(mirror.log) == 5
    assert mirror.stats.lists == 1


async def test_a_half_open_watch_is_noticed(api: Any, client: KubeClient, mirrors: list[Mirror]) -> None:
    mirror = await start(mirrors, client)
    await until(lambda: mirror.stats.watches == 1)
    api.frozen = True
    api.put("pods", pod("silent", "u1"))
    await until(lambda: mirror.stats.failures)
    api.frozen = False
    await until(lambda: ("upsert", "silent", "u1") in mirror.log)
    assert mirror.stats.lists == 1


async def test_bookmarks_keep_a_quiet_watch_young_enough_to_resume(api: Any, client: KubeClient, mirrors: list[Mirror]) -> None:
    mirror = await start(mirrors, client)
    await until(lambda: mirror.stats.watches == 1)
    api.put("nodes", {"metadata": {"name": "elsewhere"}})
    seen = mirror.stats.events
    await until(lambda: mirror.stats.events > seen + 1)
    api.compact()
    api.drop_watches()
    await until(lambda: mirror.stats.watches == 2)
    assert mirror.stats.lists == 1


@pytest.mark.parametrize("as_event", [False, True], ids=["http-410", "error-event-410"])
async def test_gone_lists_again_and_reports_the_difference_only(api: Any, client: KubeClient, mirrors: list[Mirror], as_event: bool) -> None:
    for name in ("same", "changed", "deleted", "reborn"):
        api.put("pods", pod(name, f"u-{name}"))
    mirror = await start(mirrors, client)
    await until(lambda: mirror.stats.watches == 1)
    del mirror.log[:]
    api.gone_as_event, api.frozen = as_event, True
    api.put("pods", pod("changed", "u-changed"))
    api.remove("pods", "d/deleted")
    api.remove("pods", "d/reborn")
    api.put("pods", pod("reborn", "u-reborn-2"))
    api.put("pods", pod("added", "u-added"))
    api.compact()
    api.drop_watches()
    api.frozen = False
    await until(lambda: mirror.stats.lists == 2)
    assert sorted(mirror.log) == sorted(
        [
            ("upsert", "changed", "u-changed"),
            ("delete", "deleted", "u-deleted"),
            ("delete", "reborn", "u-reborn"),
            ("upsert", "reborn", "u-reborn-2"),
            ("upsert", "added", "u-added"),
        ]
    )
    assert mirror.log.index(("delete", "reborn", "u-reborn")) < mirror.log.index(("upsert", "reborn", "u-reborn-2"))


async def test_an_expired_continue_token_starts_the_list_over(api: Any, client: KubeClient, mirrors: list[Mirror]) -> None:
    for number in range(4):
        api.put("pods", pod(f"p{number}"))
    api.order_fault("GET", "continue=", "410")
    mirror = await start(mirrors, client, page_size=2)
    assert sorted(name for _, name, _ in mirror.log) == ["p0", "p1", "p2", "p3"]


async def test_an_object_the_handler_chokes_on_stops_nothing(api: Any, client: KubeClient, mirrors: list[Mirror], caplog: pytest.LogCaptureFixture) -> None:
    api.put("pods", pod("poison", "u1"))
    api.put("pods", pod("sound", "u2"))
    mirror = await start(mirrors, client)
    assert mirror.log == [("upsert", "sound", "u2")]
    assert mirror.stats.handler_errors == 1
    assert "d/poison" in caplog.text


async def test_field_selectors_reach_list_and_watch(api: Any, client: KubeClient, mirrors: list[Mirror]) -> None:
    api.put("pods", pod("mine", "u1", node="n1"))
    api.put("pods", pod("other", "u2", node="n2"))
    mirror = await start(mirrors, client, field_selector="spec.nodeName=n1")
    await until(lambda: mirror.stats.watches)
    api.put("pods", pod("other2", "u3", node="n2"))
    api.put("pods", pod("mine2", "u4", node="n1"))
    await until(lambda: len(mirror.log) == 2)
    assert [name for _, name, _ in mirror.log] == ["mine", "mine2"]


async def test_an_api_server_that_is_away_is_waited_for(api: Any, client: KubeClient, mirrors: list[Mirror]) -> None:
    for _ in range(5):
        api.order_fault("GET", "/pods", "503")
    mirror = await start(mirrors, client)
    assert mirror.stats.failures >= 1
    assert mirror.stats.lists == 1


async def test_a_refresh_wakes_a_mirror_that_waits_out_its_failures(api: Any, client: KubeClient, mirrors: list[Mirror]) -> None:
    mirror = await start(mirrors, client, backoff_seconds=(60.0, 60.0))
    await until(lambda: mirror.stats.watches)
    api.order_fault("GET", "/pods", "503")
    api.drop_watches()
    await until(lambda: mirror.stats.failures)
    api.put("pods", pod("late", "u9"))
    async with asyncio.timeout(5):
        await mirror.reflector.refresh()
    assert mirror.log[-1] == ("upsert", "late", "u9")


async def test_gone_after_other_trouble_lists_again_at_once_but_not_for_ever(
    api: Any, client: KubeClient, mirrors: list[Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = await start(mirrors, client)
    waited: list[float] = []

    def no_wait(_: float, high: float) -> float:
        waited.append(high)
        return 0.0

    monkeypatch.setattr(random, "uniform", no_wait)
    gone = ApiError(410, "Expired", "too old")
    for error in (TransportError("reset", sent=True), gone, gone):
        await mirror.reflector._recover(error, 3 + len(waited))
    assert len(waited) == 2, "the reset and the second 410 wait, the first 410 does not"


async def test_cancelling_ends_a_blocked_read_at_once(api: Any, client: KubeClient) -> None:
    mirror = await Mirror(client, read_deadline_seconds=30.0).synced()
    api.bookmark_seconds = 30.0
    await until(lambda: mirror.stats.watches)
    mirror.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(mirror.task, 2)
