# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's side of the extender: its exact JSON, every node answered for, words for people."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hami_framework.model import Health


async def test_readiness_waits_for_the_first_full_sync(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    for _ in range(12):
        api.order_fault("GET", "/nodeinventories", "503")
    async with cluster.extender(wait=False):
        assert (await cluster.request("GET", "/healthz"))[0] == 200
        assert (await cluster.request("GET", "/readyz"))[0] == 503
        answer = await cluster.ask("filter", {"Pod": cluster.pod("early"), "NodeNames": ["n1"]})
        assert "not read the whole cluster" in answer["Error"]
        assert not answer["NodeNames"]
        await cluster.until(lambda: cluster.scheduler.extender.ready, 15)
        assert (await cluster.request("GET", "/readyz"))[0] == 200
        assert (await cluster.filter(cluster.pod("late"), ["n1"]))["NodeNames"] == ["n1"]


async def test_every_refused_node_is_named_with_its_code(cluster: Any) -> None:
    cluster.node("free")
    cluster.node("full")
    cluster.node("sick", health=Health(state="unhealthy", reason="fell off the bus"))
    cluster.granted_pod("resident", "u-resident", "full", memory_bytes=14 << 30)
    async with cluster.extender():
        answer = await cluster.filter(cluster.pod("p"), ["free", "full", "sick", "unknown"])
    assert answer["NodeNames"] == ["free"]
    assert answer["FailedNodes"] == {"full": "memory", "sick": "health"}
    assert answer["FailedAndUnresolvableNodes"] == {"unknown": "no-inventory"}


@pytest.mark.parametrize("nodes", [0, 1, 700])
async def test_no_node_is_lost_at_any_size(cluster: Any, nodes: int) -> None:
    cluster.node("n0")
    names = [f"n{number}" for number in range(nodes)]
    async with cluster.extender():
        answer = await cluster.filter(cluster.pod("p"), names)
        assert answer["NodeNames"] == names[:1]
        assert len(answer["FailedAndUnresolvableNodes"]) == max(nodes - 1, 0)


async def test_the_full_node_form_is_answered_in_that_form(cluster: Any) -> None:
    cluster.node("n1")
    cluster.node("n2", devices=2)
    nodes = {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": name, "labels": {"keep": name}}} for name in ("n1", "n2")]}
    async with cluster.extender():
        answer = await cluster.ask("filter", {"Pod": cluster.pod("p", count=2), "Nodes": nodes, "NodeNames": None})
        assert answer["Nodes"]["items"] == [nodes["items"][1]]
        assert answer["NodeNames"] is None
        assert list({**answer["FailedNodes"], **answer["FailedAndUnresolvableNodes"]}) == ["n1"]
        through = await cluster.ask("filter", {"Pod": cluster.plain_pod("q", {"cpu": "1"}), "Nodes": nodes, "NodeNames": None})
        assert through["Nodes"] == nodes


async def test_pods_without_devices_pass_everywhere(cluster: Any) -> None:
    async with cluster.extender():
        pod = cluster.plain_pod("web", {"cpu": "1"})
        answer = await cluster.filter(pod, ["a", "b"])
        assert answer["NodeNames"] == ["a", "b"]
        assert await cluster.bind(pod, "b") == ""
    assert cluster.stored("web")["spec"]["nodeName"] == "b"
    assert "annotations" not in cluster.stored("web")["metadata"] or "hami.io/grant" not in cluster.stored("web")["metadata"]["annotations"]


async def test_a_pod_that_is_wrong_is_refused_everywhere_once_in_words(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    pod = cluster.plain_pod("wrong", {"acme.com/xpumem": "4096"})
    async with cluster.extender():
        for _ in range(5):
            answer = await cluster.filter(pod, ["n1", "n2"])
            assert answer["FailedAndUnresolvableNodes"] == {"n1": "count-missing", "n2": "count-missing"}
        await cluster.until(lambda: api.collections.get("events"))
        status, body = await cluster.request("GET", "/explain?namespace=d&name=wrong")
    [event] = api.collections["events"].values()
    assert event["type"] == "Warning"
    assert event["involvedObject"]["uid"] == pod["metadata"]["uid"]
    assert "acme.com/xpu" in event["message"]
    told = json.loads(body)
    assert (status, told["state"]) == (200, "invalid")
    assert told["invalid"][0]["reason"] == "count-missing"


async def test_explain_says_why_and_with_which_figures(api: Any, cluster: Any) -> None:
    cluster.node("n1")
    cluster.granted_pod("resident", "u-resident", "n1", memory_bytes=15 << 30)
    async with cluster.extender():
        await cluster.filter(cluster.pod("p", 4096), ["n1"])
        _, body = await cluster.request("GET", "/explain?namespace=d&name=p")
        assert (await cluster.request("GET", "/explain?namespace=d&name=nobody"))[0] == 404
        await cluster.until(lambda: api.collections.get("events"))
    told = json.loads(body)
    assert (told["state"], told["asked"], told["feasible"], told["codes"]) == ("refused", 1, 0, {"memory": 1})
    [reason] = told["nodes"]["n1"]["rejections"]
    assert (reason["reason"], reason["wanted"], reason["free"]) == ("memory", 4 << 30, 1 << 30)
    assert "4096 MiB" in reason["sentence"]
    assert told["nodes"]["n1"]["final"] is False


async def test_a_pod_is_told_once_for_each_kind_of_trouble(api: Any, cluster: Any) -> None:
    for name, resident_gib in (("n1", 15), ("n2", 13)):
        cluster.node(name)
        cluster.granted_pod(f"resident-{name}", f"u-{name}", name, memory_bytes=resident_gib << 30)
    pod = cluster.pod("p", 4096)

    async def told() -> list[str]:
        await cluster.until(lambda: cluster.scheduler.events.idle)
        return [event["message"] for event in api.collections.get("events", {}).values()]

    async with cluster.extender():
        for _ in range(4):
            await cluster.filter(pod, ["n1", "n2"])
        [message] = await told()
        assert message.startswith("0 of 2 nodes can take it: [memory] 2 nodes, nearest n2: ")
        cluster.node("n1", health=Health(state="unhealthy", reason="fell off the bus"))
        await cluster.until(lambda: not cluster.scheduler.state.inventory_of["n1"].devices[0].health.ok)
        for _ in range(4):
            await cluster.filter(pod, ["n1", "n2"])
        messages = await told()
    assert len(messages) == 2
    assert any("fell off the bus" in message for message in messages)


async def test_prioritize_scores_up_to_10_and_leaves_zeros_out(cluster: Any) -> None:
    for name in ("n1", "n2", "n3"):
        cluster.node(name)
    async with cluster.extender():
        pod = cluster.pod("p")
        names = (await cluster.filter(pod, ["n1", "n2", "n3"]))["NodeNames"]
        scores = await cluster.ask("prioritize", {"Pod": pod, "NodeNames": [*names, "stranger"]})
    assert {line["Host"] for line in scores} <= {"n1", "n2", "n3"}
    assert all(0 < line["Score"] <= 10 for line in scores)
    best = max(line["Score"] for line in scores)
    assert sum(line["Score"] == best for line in scores) == 1, "one node alone stands at the top: kube-scheduler draws among equals"


async def test_preempt_names_lower_priority_pods_that_make_room(cluster: Any) -> None:
    cluster.node("n1")
    cluster.granted_pod("low", "u-low", "n1", memory_bytes=14 << 30)
    async with cluster.extender():
        pod = cluster.pod("p")
        pod["spec"]["priority"] = 100
        answer = await cluster.ask("preempt", {"Pod": pod, "NodeNameToMetaVictims": {"n1": {"Pods": [{"UID": "u-low"}], "NumPDBViolations": 1}}})
        full = {"n1": {"Pods": [cluster.stored("low")], "NumPDBViolations": 0}}
        assert "u-low" in json.dumps(await cluster.ask("preempt", {"Pod": pod, "NodeNameToVictims": full}))
    assert answer == {"NodeNameToMetaVictims": {"n1": {"Pods": [{"UID": "u-low"}], "NumPDBViolations": 1}}}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"Pod": 3}'], ids=["empty", "broken", "list", "no pod", "pod is a number"])
async def test_rubbish_is_answered_400(cluster: Any, body: bytes) -> None:
    async with cluster.extender():
        status, answer = await cluster.request("POST", "/filter", body)
    assert status == 400
    assert b"/filter" in answer


async def test_metrics_count_refusals_by_code(cluster: Any) -> None:
    cluster.node("n1")
    async with cluster.extender():
        await cluster.filter(cluster.pod("p"), ["n1", "unknown"])
        _, page = await cluster.request("GET", "/metrics")
    assert b'hami_extender_rejections_total{reason="no-inventory"} 1.0' in page
    assert b'hami_extender_request_seconds_count{verb="filter"} 1.0' in page
    assert b"hami_extender_synced 1.0" in page
