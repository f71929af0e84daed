# SPDX-License-Identifier: Apache-2.0
"""Whose devices a pod may have: the decision, the place that is held, and one round per need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami_framework.kube.errors import ApiError
from hami_framework.model import GIB, Capacity, ContainerRequest, Device, DeviceClass, DeviceRequest, Inventory, PodGrant, PodRequest, ResourceRequest, share
from hami_framework.placement.engine import Engine
from hami_framework.placement.ledger import EntryState
from hami_framework.placement.preemption import Room
from hami_framework.scheduler.disruption import Budget, Resident, Residents
from hami_framework.scheduler.evictions import HOLD_SECONDS, Evictions, best
from hami_framework.scheduler.metrics import Metrics
from hami_framework.scheduler.waiting import WaitingPods

CLASS = DeviceClass(model="X", vendor="one", capacity=Capacity(memory_bytes=16 * GIB, shares=4))


def engine(*nodes: str) -> Engine:
    made = Engine(lambda device_class, request: (share(request.memory_bytes or GIB),))
    for node in nodes:
        made.set_inventory(Inventory(node=node, devices=(Device(id=f"{node}-0", name=f"{node}-0", index=0, device_class=CLASS),)))
    return made


def pod(uid: str, gib: int = 4, **more: Any) -> PodRequest:
    request = ResourceRequest(resource="x/count", request=DeviceRequest(memory_bytes=gib * GIB))
    return PodRequest(uid=uid, namespace="d", name=uid, containers=(ContainerRequest(name="main", requests=(request,)),), **more)


def occupied(*held: tuple[str, str, int, int], nodes: tuple[str, ...] = ("a",)) -> Engine:
    """Pods (uid, node, GiB, priority) that are there. A device has 16 GiB and 4 shares."""
    made = engine(*nodes)
    for uid, node, gib, priority in held:
        grant = made.reserve(pod(uid, gib), node)
        assert isinstance(grant, PodGrant), (uid, grant)
        made.commit(uid)
        made.observe(grant, priority)
    return made


class TestRoom:
    def test_the_least_important_that_is_enough(self) -> None:
        made = occupied(("low", "a", 4, 1), ("mid", "a", 4, 2), ("high", "a", 8, 5))
        assert made.room(pod("new", 4, priority=9), "a") == Room("a", ("low",), (1,))

    def test_equals_stay(self) -> None:
        assert occupied(("x", "a", 16, 9)).room(pod("new", 4, priority=9), "a") is None

    def test_who_leaves_anyway_is_not_evicted_and_enough(self) -> None:
        made = occupied(("leaves", "a", 8, 50), ("low", "a", 8, 1))
        assert made.room(pod("new", 8, priority=9), "a", leaving=("leaves",)) == Room("a", (), ())

    def test_a_protected_one_is_spared_for_a_more_important_one(self) -> None:
        made = occupied(("low", "a", 8, 1), ("mid", "a", 8, 2))
        assert made.room(pod("new", 8, priority=9), "a", spared=lambda uids: {"low"} & set(uids)) == Room("a", ("mid",), (2,))

    def test_none_where_only_a_protected_one_would_do(self) -> None:
        made = occupied(("low", "a", 16, 1))
        assert made.room(pod("new", 8, priority=9), "a", spared=lambda uids: {"low"} & set(uids)) is None


@settings(max_examples=120, deadline=None)
@given(
    held=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=4),
    wanted=st.integers(1, 16),
    priority=st.integers(0, 7),
    protected=st.sets(st.integers(0, 3)),
)
def test_properties_of_a_room(held: list[tuple[int, int]], wanted: int, priority: int, protected: set[int]) -> None:
    made = engine("a")
    for number, (gib, own) in enumerate(held):
        grant = made.reserve(pod(f"h{number}", gib), "a")
        if isinstance(grant, PodGrant):
            made.commit(f"h{number}")
            made.observe(grant, own)
    there = {grant.owner.uid for grant in made.grants()}
    untouchable = {f"h{number}" for number in protected}
    new = pod("new", wanted, priority=priority)
    room = made.room(new, "a", spared=lambda uids: untouchable & set(uids))
    if room is None:
        return
    assert not untouchable & set(room.victims)
    for uid in room.victims:
        entry = made.entry(uid)
        assert entry is not None
        assert entry.priority < priority

    def fits_without(gone: set[str]) -> bool:
        other = engine("a")
        for grant in made.grants():
            if grant.owner.uid not in gone:
                other.observe(grant)
        return bool(other.filter(pod("try", wanted), None).feasible)

    assert set(room.victims) <= there
    assert fits_without(set(room.victims))
    assert all(not fits_without(set(room.victims) - {uid}) for uid in room.victims)


class TestWhatIsHeld:
    def test_counts_against_equals_and_lesser_until_the_pod_comes(self) -> None:
        made = occupied(("victim", "a", 16, 1))
        new = pod("new", 8, priority=5)
        assert made.nominate(new, "a", ["victim"]) is not None
        made.forget("victim")
        assert made.filter(pod("lesser", 12), None).feasible == []
        assert made.filter(pod("equal", 12, priority=5), None).feasible == []
        assert made.filter(pod("small", 8), None).feasible == ["a"]
        made.forget("small")
        assert made.filter(new, None).best == "a"
        entry = made.entry("new")
        assert entry is not None
        assert entry.state is EntryState.TENTATIVE

    def test_it_stays_held_while_the_victim_is_still_there(self) -> None:
        made = occupied(("victim", "a", 16, 1))
        new = pod("new", 8, priority=5)
        made.nominate(new, "a", ["victim"])
        assert made.filter(new, None).feasible == []
        assert made.nominated("new") == "a"
        assert made.over_commitments() == ()

    def test_a_more_important_pod_takes_it(self) -> None:
        made = occupied(("victim", "a", 16, 1))
        made.nominate(pod("new", 16, priority=5), "a", ["victim"])
        made.forget("victim")
        assert made.filter(pod("boss", 16, priority=9), None).best == "a"
        assert made.nominated("new") is None

    def test_a_more_important_pod_that_fits_elsewhere_leaves_it(self) -> None:
        made = occupied(("victim", "a", 16, 1), nodes=("a", "b"))
        made.nominate(pod("new", 16, priority=5), "a", ["victim"])
        assert made.filter(pod("boss", 16, priority=9), None).best == "b"
        assert made.nominated("new") == "a"

    def test_bind_before_the_victim_left_is_refused_and_it_stays_held(self) -> None:
        made = occupied(("victim", "a", 16, 1))
        new = pod("new", 8, priority=5)
        made.nominate(new, "a", ["victim"])
        assert not isinstance(made.reserve(new, "a"), PodGrant)
        assert made.nominated("new") == "a"

    def test_what_waits_is_found_fit_in_order_and_nothing_is_kept(self) -> None:
        made = engine("a")
        pods = [(pod(f"p{number}", 6), None) for number in range(5)]
        before = list(made.grants())
        assert made.fitting(pods, 10) == ["p0", "p1"]
        assert made.fitting([(pod("x", 6), {"elsewhere"})], 10) == []
        assert list(made.grants()) == before


@pytest.mark.parametrize(
    ("rooms", "wanted"),
    [
        pytest.param([Room("a", ("x",), (3,)), Room("b", ("y", "z"), (1, 1))], "b", id="least important highest victim"),
        pytest.param([Room("a", ("x", "w"), (1, 1)), Room("b", ("y",), (1,))], "b", id="fewest"),
        pytest.param([Room("a", ("old",), (1,)), Room("b", ("young",), (1,))], "b", id="started last"),
        pytest.param([Room("a", ("x",), (1,)), Room("b", (), ())], "b", id="nobody at all"),
        pytest.param([Room("b", ("x",), (1,)), Room("a", ("x",), (1,))], "a", id="by name"),
        pytest.param([Room("a", ("x", "y"), (-5, -5)), Room("b", ("z",), (-5,))], "b", id="negative priorities"),
    ],
)
def test_the_best_node(rooms: list[Room], wanted: str) -> None:
    started = {"old": "2026-01-01T00:00:00Z", "young": "2026-02-01T00:00:00Z"}
    chosen = best(rooms, lambda uids: min((started.get(uid, "2026-01-15T00:00:00Z") for uid in uids), default=""))
    assert chosen is not None
    assert chosen.node == wanted


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ({}, {"a": "b"}, True),
        (None, {"a": "b"}, False),
        ({"matchLabels": {"app": "x"}}, {"app": "x", "more": "y"}, True),
        ({"matchLabels": {"app": "x"}}, {"app": "z"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "y"]}]}, {"app": "y"}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}, {"app": "x"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, {"b": "c"}, True),
    ],
)
def test_budgets_select_as_kubernetes_does(selector: Any, labels: dict[str, str], matches: bool) -> None:
    residents = Residents()
    document = {"metadata": {"name": "b", "namespace": "d"}, "spec": {} if selector is None else {"selector": selector}, "status": {"disruptionsAllowed": 0}}
    residents.budget(msgspec.json.decode(msgspec.json.encode(document), type=Budget))
    residents.put("u", Resident("d", "p", "a", labels))
    residents.put("other", Resident("elsewhere", "p", "a", labels))
    assert residents.protected(["u", "other"]) == ({"u"} if matches else set())


def test_a_budget_of_one_lets_one_go() -> None:
    residents = Residents()
    document = {"metadata": {"name": "b", "namespace": "d"}, "spec": {"selector": {}}, "status": {"disruptionsAllowed": 1}}
    residents.budget(msgspec.json.decode(msgspec.json.encode(document), type=Budget))
    for uid in ("u", "v"):
        residents.put(uid, Resident("d", uid, "a", {"x": "y"}))
    assert residents.protected(["u", "v"]) == {"v"}


class FakeClient:
    """Records evictions; answers as ordered. Anything else fails the test."""

    def __init__(self) -> None:
        self.evicted: list[str] = []
        self.refuse: dict[str, int] = {}

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    def create(self, url: str, body: Any) -> Any:
        assert url.endswith("/eviction")
        assert body["kind"] == "Eviction"
        name = body["metadata"]["name"]
        assert body["deleteOptions"]["preconditions"]["uid"] == name
        if name in self.refuse:
            raise ApiError(self.refuse[name], "TooManyRequests", "budget")
        self.evicted.append(name)
        return {}


class FakeEvents:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def tell(self, pod: tuple[str, str, str], kind: str, reason: str, message: str, *, same: Any) -> None:
        self.told.append((pod[1], reason))


class Stage:
    """Evictions over a real engine, with a clock of its own."""

    def __init__(self, made: Engine, nodes: tuple[str, ...] = ("a",), *, enabled: bool = True) -> None:
        self.engine, self.client, self.events, self.now = made, FakeClient(), FakeEvents(), 0.0
        self.waiting, self.residents, self.freed, self.leads = WaitingPods(), Residents(), list[str](), True
        for grant in made.grants():
            self.residents.put(grant.owner.uid, Resident("d", grant.owner.uid, grant.node, {"app": grant.owner.uid}))
        self.evictions = Evictions(
            made, self.client, self.waiting, self.residents, self.events, Metrics(),  # type: ignore[arg-type]
            nodes_of=lambda waiting: nodes, leads=lambda: self.leads, freed=self.freed.append, enabled=enabled, consider_seconds=0.0, clock=lambda: self.now,
        )  # fmt: skip

    async def refuse(self, request: PodRequest, **spec: Any) -> None:
        """kube-scheduler asks, nothing fits, and the loop has its turn."""
        assert self.engine.filter(request, None).feasible == []
        self.waiting.refused(request, {"spec": spec}, self.now)
        self.evictions.refused(request.uid)
        await self.evictions.step()

    def leave(self, uid: str) -> None:
        self.engine.forget(uid)
        self.residents.drop(uid)
        self.evictions.gone(uid)


class TestRounds:
    async def test_one_need_one_round(self) -> None:
        stage = Stage(occupied(("v1", "a", 8, 1), ("v2", "a", 8, 1)))
        new = pod("new", 8, priority=5)
        for _ in range(3):
            await stage.refuse(new)
        assert stage.client.evicted == ["v2"] or stage.client.evicted == ["v1"]
        assert ("new", "Preempting") in stage.events.told
        assert (stage.client.evicted[0], "Preempted") in stage.events.told

    async def test_a_second_pod_gets_victims_of_its_own_and_a_third_none(self) -> None:
        stage = Stage(occupied(("v1", "a", 8, 1), ("v2", "a", 8, 1)))
        for name in ("n1", "n2", "n3"):
            await stage.refuse(pod(name, 8, priority=5))
        assert sorted(stage.client.evicted) == ["v1", "v2"]

    async def test_the_room_is_held_until_it_comes_and_then_for_a_while_only(self) -> None:
        stage = Stage(occupied(("v", "a", 16, 1)))
        await stage.refuse(pod("new", 16, priority=5))
        stage.leave("v")
        await stage.evictions.step()
        assert stage.freed
        assert stage.engine.filter(pod("thief", 16), None).feasible == []
        stage.now = HOLD_SECONDS + 1
        await stage.evictions.step()
        assert stage.engine.filter(pod("thief", 16), None).feasible == ["a"]

    async def test_the_pod_goes(self) -> None:
        stage = Stage(occupied(("v", "a", 16, 1)))
        await stage.refuse(pod("new", 16, priority=5))
        stage.waiting.done("new")
        stage.evictions.gone("new")
        stage.leave("v")
        assert stage.engine.filter(pod("other", 16), None).feasible == ["a"]

    async def test_a_budget_refuses_and_the_next_node_does(self) -> None:
        stage = Stage(occupied(("v1", "a", 16, 1), ("v2", "b", 16, 1), nodes=("a", "b")), ("a", "b"))
        stage.client.refuse["v1"] = 429
        await stage.refuse(pod("new", 16, priority=5))
        assert stage.client.evicted == []
        await stage.evictions.step()
        assert stage.client.evicted == ["v2"]

    async def test_a_budget_everywhere_means_waiting_not_deleting(self) -> None:
        stage = Stage(occupied(("v1", "a", 16, 1)))
        stage.client.refuse["v1"] = 429
        await stage.refuse(pod("new", 16, priority=5))
        assert (stage.client.evicted, stage.engine.nominated("new")) == ([], None)
        del stage.client.refuse["v1"]
        stage.now = 5.0
        await stage.refuse(pod("new", 16, priority=5))
        assert stage.client.evicted == ["v1"]

    @pytest.mark.parametrize("why", ["never", "off", "not leading", "the verb offered a way", "no lower priority"])
    async def test_nobody_is_evicted(self, why: str) -> None:
        stage = Stage(occupied(("v1", "a", 16, 5 if why == "no lower priority" else 1)), enabled=why != "off")
        stage.leads = why != "not leading"
        if why == "the verb offered a way":
            stage.evictions.offered("new")
        await stage.refuse(pod("new", 16, priority=5), **({"preemptionPolicy": "Never"} if why == "never" else {}))
        assert stage.client.evicted == []

    async def test_a_leaving_victim_is_waited_for(self) -> None:
        stage = Stage(occupied(("v1", "a", 8, 1), ("v2", "a", 8, 1)))
        stage.residents.pods["v1"].leaving = True
        await stage.refuse(pod("new", 8, priority=5))
        assert (stage.client.evicted, stage.engine.nominated("new")) == ([], "a")
