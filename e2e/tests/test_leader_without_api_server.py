# SPDX-License-Identifier: Apache-2.0
"""The leading extender alone cannot reach the API server, or cannot renew its Lease: it stops binding by its own clock before another begins.

Both extenders are asked about the same pods all the time, as by a kube-scheduler that has not yet heard who leads.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.faults.stand import Stand, standing
from e2e.lab import Lab
from hami_framework.codec import inventories
from hami_framework.kube.credentials import Credentials, load
from hami_framework.scheduler.leadership import FENCE_SECONDS, LEASE_NAME, LEASE_SECONDS

FITS, ASKED = 64, 80
BINDING = re.compile(r"^POST /api/v1/namespaces/default/pods/[^/]+/binding")
LEASE = rf"leases/{LEASE_NAME}"
PACE_SECONDS = 0.15
"""Between two pods, so that there is something to bind at every moment of the first seconds."""
MOST_SECONDS = 15.0
SLACK_SECONDS = 0.7
"""The proxy notes a request when it has read it."""


@pytest.fixture(scope="module")
def credentials(control_plane: Lab) -> Credentials:
    control_plane.apply(inventories.CRD)
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{inventories.CRD['metadata']['name']}", "--timeout=20s")
    return load(str(control_plane.kubeconfig))


@asynccontextmanager
async def two(credentials: Credentials, directory: Path) -> AsyncIterator[tuple[Stand, Stand]]:
    """The one that leads, and the one that follows; each has an API server of its own to lose."""

    def words(name: str) -> list[str]:
        return ["--leader-elect", "--identity", name]

    async with (
        standing(credentials, directory / "first", arguments=words("first")) as first,
        standing(credentials, directory / "second", arguments=words("second"), wait=False) as second,
    ):
        yield first, second


async def stream(stand: Stand, pods: Sequence[dict[str, Any]], seconds: float) -> None:
    """Ask about one pod after another, over and over; what others have bound is left alone."""
    ended, at = time.monotonic() + seconds, 0
    while time.monotonic() < ended:
        await stand.place([pods[at % len(pods)]], 0.01)
        at += 1
        await asyncio.sleep(PACE_SECONDS)


async def last_binding(stand: Stand, seconds: float) -> float:
    """`time.monotonic()` at which the last Binding was seen on its way to the API server within this time; 0 when none was."""
    last, seen = 0.0, len(stand.proxy.requests)
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        await asyncio.sleep(0.05)
        new, seen = stand.proxy.requests[seen:], len(stand.proxy.requests)
        if any(BINDING.search(request) for request in new):
            last = time.monotonic()
    return last


@pytest.mark.parametrize("what", ["the whole API server for 20 s", "its Lease alone"])
async def test_a_leader_that_loses_it_stops_in_time_and_the_other_takes_over(credentials: Credentials, tmp_path: Path, what: str) -> None:
    async with two(credentials, tmp_path) as (first, second):
        pods = await first.pods(ASKED)
        await first.place(pods[:8], 10.0)
        began = time.monotonic()
        streams = [asyncio.create_task(stream(stand, pods[8:], 20.0)) for stand in (first, second)]
        if "Lease" in what:
            first.proxy.orders.add(LEASE, "answer", times=None, status=503)
        else:
            await first.proxy.go_down()
        watching = asyncio.create_task(last_binding(first, 20.0))
        await second.ready(30.0)
        taken_over = time.monotonic()
        await asyncio.gather(*streams)
        last = await watching
        print(f"lost {what}: last binding after {last - began if last else 0:.1f} s, the other answered after {taken_over - began:.1f} s")
        assert taken_over - began <= MOST_SECONDS
        assert last < taken_over
        assert last <= began + LEASE_SECONDS - FENCE_SECONDS + SLACK_SECONDS
        if "Lease" in what:
            assert last, "the old leader could still bind, and did not"
        first.proxy.orders.clear()
        if "Lease" not in what:
            await first.proxy.come_up()
        await second.place(pods, 30.0)
        found = await second.verdict()
        assert not found.wrong, found.wrong
        assert found.bound == FITS
        assert (await first.ask("readyz", None))[0] != 200, "it must follow now"
