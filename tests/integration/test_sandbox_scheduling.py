# SPDX-License-Identifier: Apache-2.0
"""The scheduling loop against an extender over real HTTP: what kube-scheduler asks, and what it does with the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hami_framework.sandbox.apiserver import ApiServer
from hami_framework.sandbox.extender import Extender
from hami_framework.sandbox.loop import LoopOptions, SchedulingLoop
from hami_framework.sandbox.pod_queue import Backoff
from hami_framework.sandbox.resources import EVENTS, NODES, PODS

Json = dict[str, Any]
MANAGED = frozenset({"x.com/gpu", "x.com/mem"})


class World:
    """An API server, a loop, and an extender whose answers a test can change."""

    def __init__(self) -> None:
        self.server = ApiServer()
        self.asked: list[tuple[str, Json]] = []
        self.filter: Callable[[Json], Json] = lambda args: {"NodeNames": args["NodeNames"], "FailedNodes": {}}
        self.scores: dict[str, int] = {}
        self.preempt: Callable[[Json], Json] = lambda args: {"NodeNameToMetaVictims": args["NodeNameToMetaVictims"]}
        self.bind_error = ""

    async def start(self) -> None:
        for verb in ("filter", "prioritize", "bind", "preempt"):
            self.server.extra[f"/{verb}"] = self._answer
        await self.server.start()
        self.operations = self.server.operations
        options = LoopOptions(ignored=frozenset({"x.com/mem"}), backoff=Backoff(first=0.02, longest=0.1, flush=30))
        self.loop = SchedulingLoop(self.operations, Extender(self.server.url, MANAGED), options)
        await self.loop.start()

    async def stop(self) -> None:
        await self.loop.stop()
        await self.server.stop()

    async def _answer(self, request: Request) -> Response:
        verb, args = request.url.path.strip("/"), await request.json()
        self.asked.append((verb, args))
        if verb == "filter":
            return JSONResponse(self.filter(args))
        if verb == "prioritize":
            return JSONResponse([{"Host": node, "Score": self.scores.get(node, 0)} for node in args["NodeNames"]])
        if verb == "preempt":
            return JSONResponse(self.preempt(args))
        if not self.bind_error:
            body = {"metadata": {"uid": args["PodUID"], "annotations": {"grant": args["Node"]}}, "target": {"name": args["Node"]}}
            self.operations.bind(args["PodNamespace"], args["PodName"], body)
        return JSONResponse({"Error": self.bind_error})

    def node(self, name: str, gpus: int = 8, **spec: Any) -> None:
        status = {"allocatable": {"cpu": "8", "pods": "20", "x.com/gpu": str(gpus)}}
        self.operations.create(NODES, "", {"metadata": {"name": name}, "spec": spec, "status": status})

    def pod(self, name: str, limits: Json, **spec: Any) -> None:
        body = {
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}], "terminationGracePeriodSeconds": 0, **spec},
        }
        self.operations.create(PODS, "default", body)

    def where(self, name: str) -> str | None:
        found = self.server.store.find(PODS, "default", name)
        return found["spec"].get("nodeName") if found else None

    def message(self, name: str) -> str:
        conditions = self.server.store.get(PODS, "default", name)["status"].get("conditions") or [{}]
        return str(conditions[-1].get("message", ""))

    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.asked]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.start()
    yield world
    await world.stop()


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what} did not come true in 5 s")


async def test_the_extender_is_asked_in_kube_schedulers_words_and_its_favourite_wins(world: World) -> None:
    for name in ("a", "b", "c"):
        world.node(name)
    world.scores = {"b": 10}
    world.pod("p", {"x.com/gpu": 1, "x.com/mem": "4000"})
    await until(lambda: world.where("p"))
    assert world.where("p") == "b"
    assert world.verbs() == ["filter", "prioritize", "bind"]
    args = world.asked[0][1]
    assert (sorted(args["NodeNames"]), args["Nodes"], args["Pod"]["metadata"]["name"]) == (["a", "b", "c"], None, "p")
    assert set(world.asked[2][1]) == {"PodName", "PodNamespace", "PodUID", "Node"}
    assert world.server.store.get(PODS, "default", "p")["metadata"]["annotations"] == {"grant": "b"}
    await until(lambda: [event["reason"] for event in world.server.store.list(EVENTS)] == ["Scheduled"])


async def test_a_pod_without_devices_goes_by_the_default_binder(world: World) -> None:
    world.node("a")
    world.pod("p", {"cpu": "1"})
    await until(lambda: world.where("p") == "a")
    assert world.asked == []


async def test_in_tree_filters_come_first_and_a_waiting_pod_is_told_why(world: World) -> None:
    world.node("full", gpus=0)
    world.node("tainted", taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}])
    world.node("refused")
    world.filter = lambda args: {"NodeNames": [], "FailedNodes": dict.fromkeys(args["NodeNames"], "memory")}
    world.pod("p", {"x.com/gpu": 1})
    await until(lambda: world.message("p"))
    assert world.message("p").startswith("0/3 nodes are available: 1 Insufficient x.com/gpu, 1 memory, 1 node(s) had untolerated taint {k: v}.")
    assert world.asked[0][1]["NodeNames"] == ["refused"]
    condition = world.server.store.get(PODS, "default", "p")["status"]["conditions"][-1]
    assert (condition["type"], condition["status"], condition["reason"]) == ("PodScheduled", "False", "Unschedulable")


async def test_an_assumed_pod_counts_before_its_binding_is_seen(world: World) -> None:
    world.node("a", gpus=1)
    world.server.faults.delay("POST /bind", 0.2)
    world.pod("first", {"x.com/gpu": 1})
    world.pod("second", {"x.com/gpu": 1})
    await until(lambda: world.message("second"))
    assert "Insufficient x.com/gpu" in world.message("second")
    await until(lambda: world.where("first") == "a")
    world.operations.delete(PODS, "default", "first")
    await until(lambda: world.where("second") == "a", "the second pod taking the place of the first")


async def test_a_refused_bind_frees_the_place_and_is_tried_again(world: World) -> None:
    world.node("a", gpus=1)
    world.bind_error = "lost a race"
    world.pod("p", {"x.com/gpu": 1})
    await until(lambda: world.verbs().count("bind") >= 2)
    assert "lost a race" in world.message("p")
    world.bind_error = ""
    await until(lambda: world.where("p") == "a")


async def test_a_bind_whose_answer_was_lost_is_not_repeated(world: World) -> None:
    world.node("a")
    world.server.faults.lose_answer("POST /bind")
    world.pod("p", {"x.com/gpu": 1})
    await until(lambda: world.where("p") == "a")
    await asyncio.sleep(0.2)
    assert world.verbs().count("bind") == 1


async def test_an_extender_that_is_away_or_talks_nonsense_holds_its_pods_back(world: World) -> None:
    world.node("a")
    world.server.faults.refuse("POST /filter", 503, times=2)
    world.filter = lambda args: {"NodeNames": ["a"]} if world.verbs().count("filter") > 1 else {"NodeNames": ["stranger"]}
    world.pod("p", {"x.com/gpu": 1})
    await until(lambda: world.where("p") == "a")
    said = " ".join(event["message"] for event in world.server.store.list(EVENTS))
    assert "HTTP 503" in said
    assert "stranger" in said


async def test_preemption_asks_the_extender_and_sends_its_victims_away(world: World) -> None:
    world.node("a", gpus=2)
    world.pod("low", {"x.com/gpu": 1}, priority=1)
    world.pod("mid", {"x.com/gpu": 1}, priority=2)
    await until(lambda: world.where("low") and world.where("mid"))
    low, mid = (world.server.store.get(PODS, "default", name)["metadata"]["uid"] for name in ("low", "mid"))
    world.preempt = lambda _: {"NodeNameToMetaVictims": {"a": {"Pods": [{"UID": mid}]}}}
    world.pod("vip", {"x.com/gpu": 1}, priority=100)
    await until(lambda: world.where("mid") is None)
    offered = next(args for verb, args in world.asked if verb == "preempt")
    assert offered["NodeNameToMetaVictims"] == {"a": {"Pods": [{"UID": low}], "NumPDBViolations": 0}}

    await until(lambda: world.where("vip") == "a")
    assert world.where("low") == "a"


async def test_a_pod_may_refuse_to_preempt(world: World) -> None:
    world.node("a", gpus=1)
    world.pod("low", {"x.com/gpu": 1})
    await until(lambda: world.where("low"))
    world.pod("polite", {"x.com/gpu": 1}, priority=9, preemptionPolicy="Never")
    await until(lambda: "preemptionPolicy=Never" in world.message("polite"))
    assert "preempt" not in world.verbs()


async def test_more_pods_than_places_fill_the_nodes_exactly(world: World) -> None:
    for number in range(4):
        world.node(f"n{number}", gpus=10)
    for number in range(60):
        world.pod(f"p{number}", {"x.com/gpu": 1})
    await until(lambda: sum(bool(world.where(f"p{number}")) for number in range(60)) == 40)
    await asyncio.sleep(0.1)
    placed = [world.where(f"p{number}") for number in range(60)]
    assert sorted(placed.count(f"n{number}") for number in range(4)) == [10, 10, 10, 10]
