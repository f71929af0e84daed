# SPDX-License-Identifier: Apache-2.0
"""Binding under every kind of failure: nothing is promised twice, nothing is lost, whatever the API server did."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant

pytestmark = pytest.mark.deep

TWELVE_GIB_MIB = 12 * 1024
"""On a 16 GiB device only one such pod fits."""


async def test_the_grant_travels_in_the_binding(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    pod = cluster.pod("p")
    async with cluster.extender():
        assert await cluster.place(pod, "n1") == ""
        assert await cluster.promised_mib("n1") == 4096
    stored = cluster.stored("p")
    grant = decode_grant(stored["metadata"]["annotations"][GRANT_ANNOTATION])
    assert (grant.node, grant.owner.uid) == ("n1", pod["metadata"]["uid"])
    assert grant.containers[0].devices[0].device_id == "n1-x0"
    assert api.count("POST", "/binding") == 1
    assert api.count("GET", "/pods/p") == 0
    assert api.count("PATCH", "") == 0


async def test_filter_asks_the_api_server_nothing(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    pod = cluster.pod("p")
    async with cluster.extender():
        watches = len(cluster.scheduler.state.reflectors) + 2  # signs of life, disruption budgets
        await cluster.until(lambda: api.count("GET", "watch=1") == watches and api.count("GET", "fieldSelector=spec.nodeName") == 1)
        before = len(api.requests)
        for _ in range(10):
            await cluster.filter(pod, ["n1", "n2"])
        assert len(api.requests) == before


@pytest.mark.parametrize("fault", ["403", "404", "422", "429"])
async def test_a_definite_refusal_frees_the_device_at_once(api: Any, cluster: Any, fault: str) -> None:
    cluster.node("n1")
    api.order_fault("POST", "/binding", fault)
    async with cluster.extender():
        assert fault in await cluster.place(cluster.pod("p", TWELVE_GIB_MIB), "n1")
        assert await cluster.promised_mib("n1") == 0
        assert await cluster.place(cluster.pod("q", TWELVE_GIB_MIB), "n1") == ""


@pytest.mark.parametrize("fault", ["after-500", "after-reset", "after-hang"])
async def test_an_unknown_outcome_that_was_applied_is_a_success(api: Any, cluster: Any, fault: str) -> None:
    cluster.node("n1")
    api.order_fault("POST", "/binding", fault)
    async with cluster.extender(settle_seconds=30.0):
        assert await cluster.place(cluster.pod("p", TWELVE_GIB_MIB), "n1") == ""
        assert await cluster.promised_mib("n1") == TWELVE_GIB_MIB
        other = await cluster.filter(cluster.pod("q", TWELVE_GIB_MIB), ["n1"])
    assert other["FailedNodes"] == {"n1": "memory"}
    assert api.count("POST", "/binding") == 1


@pytest.mark.parametrize("fault", ["before-500", "before-reset", "before-hang"])
async def test_an_unknown_outcome_that_was_not_applied_keeps_the_device_until_that_is_known(api: Any, cluster: Any, fault: str) -> None:
    cluster.node("n1")
    api.order_fault("POST", "/binding", fault)
    pod = cluster.pod("p", TWELVE_GIB_MIB)
    async with cluster.extender(settle_seconds=1.0, answer_seconds=0.1):
        assert "stays reserved" in await cluster.place(pod, "n1")
        assert "not decided" in await cluster.bind(pod, "n1")
        assert "not known yet" in (await cluster.ask("filter", {"Pod": pod, "NodeNames": ["n1"]}))["Error"]
        refused = await cluster.filter(cluster.pod("q", TWELVE_GIB_MIB), ["n1"])
        assert refused["FailedNodes"] == {"n1": "memory"}
        await cluster.until(lambda: not cluster.scheduler.binder.undecided_count)
        assert await cluster.promised_mib("n1") == 0
        assert await cluster.place(pod, "n1") == ""
    assert cluster.stored("p")["spec"]["nodeName"] == "n1"


async def test_the_watch_decides_when_get_does_not_answer(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    api.order_fault("POST", "/binding", "after-reset")
    for _ in range(50):
        api.order_fault("GET", "/pods/p$", "503")
    async with cluster.extender(settle_seconds=30.0):
        assert await cluster.place(cluster.pod("p"), "n1") == ""
        assert await cluster.promised_mib("n1") == 4096


@pytest.mark.parametrize("reborn", [False, True], ids=["deleted", "deleted and made again"])
async def test_a_pod_that_vanished_meanwhile_holds_nothing(api: Any, cluster: Any, reborn: bool) -> None:
    cluster.node("n1")
    api.order_fault("POST", "/binding", "before-reset")
    pod = cluster.pod("p", TWELVE_GIB_MIB)
    async with cluster.extender(settle_seconds=30.0, answer_seconds=0.1):
        assert "stays reserved" in await cluster.place(pod, "n1")
        api.remove("pods", "d/p")
        if reborn:
            cluster.pod("p", TWELVE_GIB_MIB)
        await cluster.until(lambda: not cluster.scheduler.binder.undecided_count)
        assert await cluster.promised_mib("n1") == 0
        assert await cluster.place(cluster.pod("q", TWELVE_GIB_MIB), "n1") == ""


async def test_already_assigned_with_our_grant_is_success(api: Any, cluster: Any) -> None:
    """The first answer is lost, the extender restarts, and kube-scheduler's second try meets 409."""
    cluster.node("n1")
    pod = cluster.pod("p")
    async with cluster.extender():
        assert await cluster.place(pod, "n1") == ""
        bound = cluster.stored("p")
        stale = {**pod, "metadata": {**pod["metadata"]}}
        await cluster.filter(stale, ["n1"])
        assert await cluster.bind(stale, "n1") == ""
        assert await cluster.promised_mib("n1") == 4096
    assert cluster.stored("p") == bound


async def test_already_assigned_elsewhere_frees_ours(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    pod = cluster.pod("p", TWELVE_GIB_MIB)
    async with cluster.extender():
        await cluster.filter(pod, ["n1"])
        api.frozen = True
        api.put("pods", {**pod, "spec": {**pod["spec"], "nodeName": "n9"}})
        assert "already assigned" in await cluster.bind(pod, "n1")
        api.frozen = False
        assert await cluster.promised_mib("n1") == 0


async def test_a_wrong_uid_is_refused_and_frees(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    pod = cluster.pod("p", TWELVE_GIB_MIB)
    async with cluster.extender():
        await cluster.filter(pod, ["n1"])
        api.frozen = True
        api.remove("pods", "d/p")
        cluster.pod("p", TWELVE_GIB_MIB)
        assert "Precondition failed" in await cluster.bind(pod, "n1")
        api.frozen = False
        assert await cluster.promised_mib("n1") == 0


async def test_a_pod_filtered_before_a_restart_can_be_bound(cluster: Any) -> None:
    cluster.node("n1")
    pod = cluster.pod("p")
    async with cluster.extender():
        assert await cluster.bind(pod, "n1") == ""
    assert cluster.stored("p")["spec"]["nodeName"] == "n1"


@pytest.mark.parametrize("seed", range(25 if os.environ.get("HAMI_TEST_DEEP") else 2))
async def test_many_pods_at_once_never_overfill_a_device(api: Any, cluster: Any, seed: int) -> None:
    """Every pod gets through or is told; faults of every kind in between; what is promised is what is bound."""
    for number in range(4):
        cluster.node(f"n{number}", devices=2)
    nodes = [f"n{number}" for number in range(4)]
    chance = random.Random(seed)
    for number in chance.sample(range(40), 18):
        api.order_fault("POST", f"/pods/p{number}/binding", chance.choice(["403", "429", "before-500", "before-reset", "after-500", "after-reset"]))
    pods = [cluster.pod(f"p{number}", 4096) for number in range(40)]
    async with cluster.extender(settle_seconds=0.3):

        async def through(pod: Any) -> None:
            for _ in range(30):
                answer = await cluster.ask("filter", {"Pod": pod, "NodeNames": nodes})
                if not answer["Error"] and not answer["NodeNames"]:
                    return
                if not answer["Error"]:
                    scores = await cluster.ask("prioritize", {"Pod": pod, "NodeNames": answer["NodeNames"]})
                    best = max(scores, key=lambda line: line["Score"])["Host"]
                    if await cluster.bind(pod, best) == "":
                        return
                await asyncio.sleep(0.05)

        await asyncio.gather(*(through(pod) for pod in pods))
        await cluster.until(lambda: not cluster.scheduler.binder.undecided_count)
        promised = sum([await cluster.promised_mib(node) for node in nodes])
    taken: dict[str, int] = {}
    for pod in api.collections["pods"].values():
        if pod["spec"].get("nodeName"):
            [device] = decode_grant(pod["metadata"]["annotations"][GRANT_ANNOTATION]).containers[0].devices
            taken[device.device_id] = taken.get(device.device_id, 0) + device.offer.cost.memory_bytes
    assert max(taken.values()) <= 16 << 30
    assert sum(taken.values()) == promised << 20
    assert sum(taken.values()) == 8 * (16 << 30), "8 devices of 16 GiB hold 32 of the 40 pods, and no room is lost"
