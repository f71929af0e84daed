# SPDX-License-Identifier: Apache-2.0
"""What the extender believes of the cluster: rebuilt from annotations, kept up by watches, never poisoned."""

from __future__ import annotations

from typing import Any

import pytest

from hami_framework.codec.grants import encode_grant
from hami_framework.model import GIB, ContainerGrant, DeviceGrant, Owner, PodGrant, share


async def test_a_restart_rebuilds_what_is_promised(cluster: Any) -> None:
    cluster.node("n1")
    async with cluster.extender():
        for number in range(3):
            assert await cluster.place(cluster.pod(f"p{number}"), "n1") == ""
        assert await cluster.promised_mib("n1") == 3 * 4096
    async with cluster.extender():
        assert await cluster.promised_mib("n1") == 3 * 4096
        assert (await cluster.filter(cluster.pod("big", 8192), ["n1"]))["FailedNodes"] == {"n1": "memory"}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_pods_that_have_ended_hold_nothing(cluster: Any, phase: str) -> None:
    cluster.node("n1")
    cluster.granted_pod("done", "u-done", "n1", phase=phase)
    async with cluster.extender():
        assert await cluster.promised_mib("n1") == 0


async def test_ending_and_deletion_free_devices_live(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    first, second = cluster.granted_pod("a", "u-a", "n1"), cluster.granted_pod("b", "u-b", "n1")
    async with cluster.extender():
        assert await cluster.promised_mib("n1") == 8192
        api.put("pods", {**first, "status": {"phase": "Succeeded"}})
        await cluster.until(lambda: len(list(cluster.scheduler.engine.grants())) == 1)
        api.remove("pods", f"d/{second['metadata']['name']}")
        await cluster.until(lambda: not list(cluster.scheduler.engine.grants()))
        assert await cluster.promised_mib("n1") == 0


@pytest.mark.parametrize(
    "changes",
    [{"text": "{"}, {"text": '{"version":"9.0"}'}, {"text": "7"}, {"owner_uid": "someone-else"}, {"node_name": "n2"}],
    ids=["broken", "from the future", "no object", "copied from another pod", "for another node"],
)
async def test_a_bad_grant_is_reported_once_and_counts_for_nothing(api: Any, cluster: Any, changes: dict[str, Any]) -> None:
    cluster.node("n1")
    bad = cluster.granted_pod("bad", "u-bad", "n1", **changes)
    cluster.granted_pod("good", "u-good", "n1")
    async with cluster.extender():
        assert await cluster.promised_mib("n1") == 4096
        for number in range(3):
            api.put("pods", {**bad, "status": {"phase": "Running", "message": str(number)}})
        cluster.granted_pod("later", "u-later", "n1")
        await cluster.until(lambda: len(list(cluster.scheduler.engine.grants())) == 2)
        await cluster.until(lambda: api.collections.get("events"))
        _, page = await cluster.request("GET", "/metrics")
    assert b'hami_extender_bad_objects_total{kind="grant"} 1.0' in page
    [event] = api.collections["events"].values()
    assert (event["reason"], event["involvedObject"]["name"]) == ("BadGrant", "bad")


async def test_an_annotation_on_a_pod_that_is_not_bound_grants_nothing_and_its_author_is_told(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    forged = cluster.granted_pod("forged", "u-forged", "n1", node_name="")
    async with cluster.extender():
        assert await cluster.promised_mib("n1") == 0
        await cluster.until(lambda: api.collections.get("events"))
        # Somebody binds it where the forger guessed that it would go.
        api.put("pods", {**forged, "spec": {**forged["spec"], "nodeName": "n1"}})
        cluster.granted_pod("good", "u-good", "n1")
        await cluster.until(lambda: list(cluster.scheduler.engine.grants()))
        assert await cluster.promised_mib("n1") == 4096
    [event] = api.collections["events"].values()
    assert (event["reason"], event["involvedObject"]["name"]) == ("BadGrant", "forged")
    assert "stood on the pod before it was bound" in event["message"]


async def test_nodes_come_and_go(api: Any, cluster: Any) -> None:
    async with cluster.extender():
        cluster.node("n1")
        await cluster.until(lambda: "n1" in cluster.scheduler.state.inventory_of)
        assert (await cluster.filter(cluster.pod("p"), ["n1"]))["NodeNames"] == ["n1"]
        api.remove("nodes", "n1")
        await cluster.until(lambda: "n1" not in cluster.scheduler.state.inventory_of)
        assert (await cluster.filter(cluster.pod("p"), ["n1"]))["FailedAndUnresolvableNodes"] == {"n1": "no-inventory"}
        api.put("nodes", {"metadata": {"name": "n1"}})
        await cluster.until(lambda: "n1" in cluster.scheduler.state.inventory_of)
        assert (await cluster.filter(cluster.pod("p"), ["n1"]))["NodeNames"] == ["n1"]


async def test_an_unreadable_inventory_leaves_the_last_readable_one(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    async with cluster.extender():
        stored = api.collections["nodeinventories"]["n1"]
        api.put("nodeinventories", {**stored, "spec": {"generation": "many"}})
        await cluster.until(lambda: cluster.scheduler.metrics.bad_objects.labels("inventory")._value.get() == 1)
        assert (await cluster.filter(cluster.pod("p"), ["n1"]))["NodeNames"] == ["n1"]


async def test_what_local_runs_hold_on_a_node_is_counted_while_its_inventory_says_so(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    cluster.node("n2")
    stored = api.collections["nodeinventories"]["n1"]
    device = stored["spec"]["devices"][0]
    held = DeviceGrant(device_id=device["id"], device_name=device["id"], vendor="acme", resource="acme.com/xpu", offer=share(10 * GIB))
    containers = (ContainerGrant(container="main", devices=(held,)),)
    local = PodGrant(owner=Owner(kind="local", uid="local-1"), node="n1", containers=containers)
    forged = (
        PodGrant(owner=Owner(kind="pod", uid="u-a"), node="n1", containers=containers),
        PodGrant(owner=Owner(kind="local", uid="local-2"), node="n2", containers=containers),
    )
    cluster.granted_pod("a", "u-a", "n2")
    async with cluster.extender():
        api.put("nodeinventories", {**stored, "spec": {**stored["spec"], "held": [encode_grant(grant) for grant in (local, *forged)]}})
        await cluster.until(lambda: len(list(cluster.scheduler.engine.grants())) == 2)
        assert (await cluster.promised_mib("n1"), await cluster.promised_mib("n2")) == (10 * 1024, 4096)
        assert (await cluster.filter(cluster.pod("big", 8192), ["n1"]))["FailedNodes"] == {"n1": "memory"}
        api.put("nodeinventories", {**stored, "spec": {**stored["spec"], "held": []}})
        await cluster.until(lambda: len(list(cluster.scheduler.engine.grants())) == 1)
        assert (await cluster.filter(cluster.pod("big", 8192), ["n1"]))["NodeNames"] == ["n1"]


async def test_410_and_dropped_watches_lose_nothing(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    async with cluster.extender():
        await cluster.until(lambda: len(api.watch_sockets) == len(cluster.scheduler.state.reflectors) + 2)
        api.frozen = True
        cluster.granted_pod("a", "u-a", "n1")
        api.compact()
        api.drop_watches()
        api.frozen = False
        await cluster.until(lambda: len(list(cluster.scheduler.engine.grants())) == 1)
        assert cluster.scheduler.state.reflectors["pods"].stats.lists == 2
        assert cluster.scheduler.extender.ready
