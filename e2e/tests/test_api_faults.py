# SPDX-License-Identifier: Apache-2.0
"""The extender and the agent behind an API server that is down, slow, refuses, forgets, or goes silent: no wrong decision, and recovery.

64 pods fill the nodes exactly and 80 are placed, so a grant that was lost or given twice shows in the oracle at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from e2e.faults.stand import VENDOR, Stand, standing
from e2e.lab import Lab
from hami_framework.codec import inventories
from hami_framework.kube.credentials import Credentials, load
from hami_framework.kube.errors import ApiError
from hami_framework.model import Inventory

FITS, ASKED = 64, 80
BINDING = r"^POST /api/v1/namespaces/default/pods/[^/]+/binding"
WATCH = r"watch=1"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def credentials(control_plane: Lab) -> Credentials:
    control_plane.apply(inventories.CRD)
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{inventories.CRD['metadata']['name']}", "--timeout=20s")
    control_plane.wait("the service account of the pods", lambda: control_plane.kubectl("get", "sa", "default", check=False).returncode == 0, 30)
    return load(str(control_plane.kubeconfig))


@pytest.fixture
async def stand(credentials: Credentials, tmp_path: Path) -> AsyncIterator[Stand]:
    async with standing(credentials, tmp_path) as made:
        yield made


async def fill(stand: Stand, seconds: float = 60.0) -> None:
    """80 pods at 64 places: placed, judged."""
    pods = await stand.pods(ASKED)
    await settled(stand, pods, seconds)


async def settled(stand: Stand, pods: list[dict[str, object]], seconds: float) -> None:
    """Goes on until exactly what fits is bound, and judges at every step."""
    ended = time.monotonic() + seconds
    while True:
        await stand.place(pods, max(1.0, ended - time.monotonic()))
        found = await stand.verdict()
        assert not found.wrong, found.wrong
        if found.bound == FITS:
            return
        assert time.monotonic() < ended, f"{found.bound} of {FITS} were bound in time"
        await asyncio.sleep(0.5)


async def follows(stand: Stand, within: float) -> float:
    """How long until the extender has seen that all pods are gone and takes new ones."""
    listed = (await stand.client.call(stand.client.list, "/api/v1/namespaces/default/pods"))["items"]
    await stand.remove(listed)
    began = time.monotonic()
    (pod,) = await stand.pods(1, "after")
    results = await stand.place([pod], within, stop_when_full=False)
    assert results == {"after-0": "bound"}, results
    assert not (await stand.verdict()).wrong
    return time.monotonic() - began


async def test_without_a_fault_exactly_what_fits_is_bound(stand: Stand) -> None:
    await fill(stand)


async def _lost_answers(stand: Stand) -> None:
    stand.proxy.orders.add(BINDING, "swallow", times=20)


async def _bindings_sent_twice(stand: Stand) -> None:
    stand.proxy.orders.add(BINDING, "twice", times=40)


async def _cut_answers(stand: Stand) -> None:
    stand.proxy.orders.add(BINDING, "cut", times=15)
    stand.proxy.orders.add(r"^GET /api/v1/namespaces/default/pods/", "cut", times=5)


async def _too_many_requests(stand: Stand) -> None:
    stand.proxy.orders.add(BINDING, "answer", status=429, times=30, retry_after="1")


async def _internal_errors_after_which_nobody_knows(stand: Stand) -> None:
    stand.proxy.orders.add(BINDING, "answer", status=504, times=10)


async def _late_answers(stand: Stand) -> None:
    stand.proxy.orders.add(BINDING, "slow", seconds=6.0, times=8)


@pytest.mark.parametrize(
    "fault",
    [_lost_answers, _bindings_sent_twice, _cut_answers, _too_many_requests, _internal_errors_after_which_nobody_knows, _late_answers],
    ids=lambda fault: fault.__name__.strip("_"),
)
async def test_bindings_with_unknown_or_doubled_outcomes_grant_nothing_twice(stand: Stand, fault: Callable[[Stand], Awaitable[None]]) -> None:
    await fault(stand)
    (first,) = stand.proxy.orders.active[:1]
    await fill(stand, 90.0)
    assert first.hits, "the fault never struck"


async def test_the_api_server_goes_down_in_the_middle_and_comes_back(stand: Stand) -> None:
    pods = await stand.pods(ASKED)
    placing = asyncio.create_task(stand.place(pods, 60.0))
    await asyncio.sleep(0.3)
    await stand.proxy.go_down()
    await asyncio.sleep(8.0)
    await stand.proxy.come_up()
    await placing
    await settled(stand, pods, 60.0)
    print(f"sees deletions again after {await follows(stand, 60.0):.1f} s")


async def test_watches_that_expire_or_are_dropped_lose_nothing(stand: Stand) -> None:
    await fill(stand)
    for _ in range(5):
        stand.proxy.drop_watches()
        await asyncio.sleep(0.2)
    stand.proxy.orders.add(WATCH, "expire", times=6)
    stand.proxy.drop_watches()
    stand.proxy.orders.add(WATCH, "answer", times=3, status=410)
    print(f"sees deletions after {await follows(stand, 60.0):.1f} s")


async def test_a_server_that_lists_but_refuses_watches_is_not_hammered(stand: Stand) -> None:
    stand.proxy.orders.add(WATCH, "answer", times=None, status=503)
    stand.proxy.drop_watches()
    before = len(stand.proxy.requests)
    await asyncio.sleep(10.0)
    asked = len(stand.proxy.requests) - before
    stand.proxy.orders.clear()
    assert asked < 90, f"{asked} requests in 10 s for 3 collections"
    await follows(stand, 60.0)


async def test_half_open_watches_are_noticed_and_nothing_wrong_is_done_meanwhile(stand: Stand) -> None:
    await fill(stand)
    assert stand.proxy.half_open() >= 3
    seconds = await follows(stand, 150.0)
    print(f"sees deletions again {seconds:.0f} s after the watches went silent")
    assert seconds < 120


async def test_a_burst_of_refused_reads_and_a_black_hole(stand: Stand) -> None:
    stand.proxy.orders.add(r"^GET /api/v1/namespaces/default/pods/", "answer", status=429, times=40, retry_after="1")
    stand.proxy.orders.add(BINDING, "blackhole", times=6)
    await fill(stand, 90.0)


async def test_the_agent_publishes_through_lost_refused_and_cut_answers(stand: Stand, tmp_path: Path) -> None:
    orders, name = stand.proxy.orders, "fault-agent"
    orders.add(rf"^GET /apis/hami.io/v1alpha1/nodeinventories/{name}", "cut", times=2)
    orders.add(r"^POST /apis/hami.io/v1alpha1/nodeinventories", "swallow", times=1)
    orders.add(rf"^GET /apis/hami.io/v1alpha1/nodeinventories/{name}", "answer", status=429, times=3, retry_after="1")
    orders.add(WATCH, "expire", times=4)
    await stand.make("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    words = ["--node", name, "--kubeconfig", str(tmp_path / "kubeconfig"), "--plugin", str(VENDOR), "--allow", "acme"]
    short = Path(tempfile.mkdtemp(prefix="hami-"))  # unix sockets have short names
    words += [text for folder in ("kubelet", "cdi", "state") for text in (f"--{folder}-dir", str(short / folder))]
    (short / "kubelet" / "device-plugins").mkdir(parents=True)
    with (tmp_path / "agent.log").open("w") as log:
        agent = subprocess.Popen([sys.executable, "-m", "hami_framework.deviceplugin", *words], stderr=log)
    try:
        published = await appears(stand, name, 40.0)
        assert [device.id for device in published.devices] == ["x0", "x1", "x2", "x3"]
        assert published.generation == 1, "a lost answer was taken for a refusal, and written again"
        await stand.proxy.go_down()
        await stand.client.call(stand.client.delete, f"/apis/{inventories.API_VERSION}/{inventories.PLURAL}/{name}")
        await asyncio.sleep(3.0)
        await stand.proxy.come_up()
        assert len((await appears(stand, name, 90.0)).devices) == 4
        assert agent.poll() is None
    finally:
        agent.terminate()
        agent.wait(20)
        shutil.rmtree(short)
        for place in (f"/api/v1/nodes/{name}", f"/apis/{inventories.API_VERSION}/{inventories.PLURAL}/{name}"):
            with contextlib.suppress(ApiError):  # the test may have ended before it was there
                await stand.client.call(stand.client.delete, place)


async def appears(stand: Stand, name: str, seconds: float) -> Inventory:
    """The node's inventory, once it is there."""
    began = time.monotonic()
    while True:
        try:
            return inventories.from_object(await stand.client.call(stand.client.get, f"/apis/{inventories.API_VERSION}/{inventories.PLURAL}/{name}"))
        except ApiError as error:
            if not error.not_found:
                raise
        assert time.monotonic() - began < seconds, "the inventory was not published"
        await asyncio.sleep(0.2)
