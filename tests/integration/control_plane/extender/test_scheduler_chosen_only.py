# SPDX-License-Identifier: Apache-2.0
"""`placement.authority: decisive`: filter names the node that our ranking would have decided for, and no other."""

from __future__ import annotations

import json
from typing import Any

NODES = ["n1", "n2", "n3"]


async def chosen(cluster: Any, pod: dict[str, Any], nodes: list[str]) -> dict[str, Any]:
    answer: dict[str, Any] = await cluster.ask("filter", {"Pod": pod, "Nodes": None, "NodeNames": nodes})
    assert not answer["Error"]
    return answer


async def ranked(cluster: Any, pod: dict[str, Any]) -> str:
    """The node at the top when all feasible ones are answered and prioritized."""
    names = (await cluster.filter(pod, NODES))["NodeNames"]
    scores = await cluster.ask("prioritize", {"Pod": pod, "NodeNames": names})
    return str(max(scores, key=lambda line: line["Score"])["Host"])


def fill(cluster: Any) -> None:
    for number, name in enumerate(NODES):
        cluster.node(name)
        cluster.granted_pod(f"old-{name}", f"u-{name}", name, memory_bytes=(number + 1) << 30)


async def test_the_one_node_is_the_one_that_prioritize_puts_at_the_top(cluster: Any) -> None:
    fill(cluster)
    async with cluster.extender():
        wanted = await ranked(cluster, cluster.pod("p"))
    async with cluster.extender(chosen_only=True):
        answer = await chosen(cluster, cluster.pod("p"), NODES)
    assert answer["NodeNames"] == [wanted] == ["n3"]
    assert not answer["FailedNodes"]
    assert not answer["FailedAndUnresolvableNodes"]


async def test_with_full_nodes_the_same_one_is_named(cluster: Any) -> None:
    fill(cluster)
    async with cluster.extender(chosen_only=True):
        body = {"Pod": cluster.pod("p"), "Nodes": {"items": [{"metadata": {"name": name}} for name in NODES]}, "NodeNames": None}
        answer = await cluster.ask("filter", body)
    assert [item["metadata"]["name"] for item in answer["Nodes"]["items"]] == ["n3"]


async def test_where_nothing_fits_every_node_still_says_why(cluster: Any) -> None:
    fill(cluster)
    async with cluster.extender(chosen_only=True):
        answer = await cluster.filter(cluster.pod("p", 16000), NODES)
    assert answer["NodeNames"] == []
    assert set(answer["FailedNodes"]) == set(NODES)


async def test_pods_filtered_one_after_the_other_see_each_others_place(cluster: Any) -> None:
    for name in NODES:
        cluster.node(name)
    async with cluster.extender(chosen_only=True):
        answers = [await chosen(cluster, cluster.pod(f"p{number}", 12 << 10), NODES) for number in range(4)]
    assert sorted(name for answer in answers[:3] for name in answer["NodeNames"]) == NODES
    assert answers[3]["NodeNames"] == []
    assert "memory" in json.dumps(answers[3]["FailedNodes"])


async def test_a_pod_without_devices_passes_everywhere(cluster: Any) -> None:
    fill(cluster)
    async with cluster.extender(chosen_only=True):
        answer = await chosen(cluster, cluster.plain_pod("p", {}), NODES)
    assert sorted(answer["NodeNames"]) == NODES
