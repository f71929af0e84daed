# SPDX-License-Identifier: Apache-2.0
"""Random inventories, pods and operations against a slow, plain reference of what may be promised.

By default a few hundred operations; HAMI_TEST_DEEP=1 runs at least ten thousand.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from hami_framework.model import (
    Capacity,
    ContainerGrant,
    ContainerRequest,
    Cost,
    Counter,
    Device,
    DeviceClass,
    DeviceGrant,
    DeviceRequest,
    GroupRule,
    Health,
    Interval,
    Inventory,
    Membership,
    Mode,
    Offer,
    Owner,
    PodGrant,
    PodRequest,
    Rejection,
    ResourceRequest,
    Selector,
    share,
    whole,
)
from hami_framework.placement.engine import Engine

pytestmark = pytest.mark.deep

pytestmark = pytest.mark.timeout(1500)

DEEP = os.environ.get("HAMI_TEST_DEEP") == "1"
OPERATIONS = {"total": 0}
EXAMPLES, STEPS = (300, 50) if DEEP else (12, 30)
SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=not DEEP,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)

# -- five cost shapes, small enough that everything can be enumerated -----------------------------------------------

SOFT = DeviceClass(model="soft", vendor="a", capacity=Capacity(memory_bytes=10, shares=3), modes=(Mode(name="whole"), Mode(name="share")))
LARGE = DeviceClass(model="large", vendor="a", capacity=Capacity(memory_bytes=16, shares=3), modes=(Mode(name="whole"), Mode(name="share")))
TEMPLATE = DeviceClass(
    model="template",
    vendor="b",
    capacity=Capacity(memory_bytes=16, shares=9, counters=(Counter(name="cpu", amount=4),)),
    modes=(Mode(name="whole"), Mode(name="cut", max_instances=3)),
    group_rule=GroupRule(same=("ring",)),
)
PLACED = DeviceClass(model="placed", vendor="c", capacity=Capacity(memory_bytes=8, shares=9, line=8), modes=(Mode(name="whole"), Mode(name="cut")))
QUOTA = DeviceClass(model="quota", vendor="d", capacity=Capacity(memory_bytes=12, shares=9), modes=(Mode(name="whole"), Mode(name="cut", max_profiles=2)))
MASK = DeviceClass(
    model="mask",
    vendor="e",
    capacity=Capacity(memory_bytes=12, shares=9, units=8),
    modes=(Mode(name="whole"), Mode(name="cut", coexists=("loose",)), Mode(name="loose")),
    group_rule=GroupRule(whole=("pair",)),
)
CLASSES = (SOFT, LARGE, TEMPLATE, PLACED, QUOTA, MASK)


def partition(device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
    capacity = device_class.capacity
    if request.whole:
        return (whole(capacity.memory_bytes),)
    memory, cores = request.memory_bytes or 1, request.core_percent or 0
    if device_class.vendor == "a":
        return (share(memory, cores),) if request.core_percent != 100 else (whole(capacity.memory_bytes),)
    if device_class is TEMPLATE:
        return (Offer(mode="cut", profile=f"t{memory}", cost=Cost(memory_bytes=memory, counters=(Counter(name="cpu", amount=1 + memory // 8),))),)
    if device_class is PLACED:
        size = 4 if memory > 4 else 2 if memory > 1 else 1
        narrow = Offer(mode="cut", profile=f"{size}g", cost=Cost(interval=Interval(size=size, starts=tuple(range(0, 8, size)))))
        wide = Offer(mode="cut", profile="5g", cost=Cost(interval=Interval(size=5, starts=(3, 0))))
        return (narrow, wide) if memory == 4 else (narrow,)
    if device_class is QUOTA:
        return (Offer(mode="cut", profile=f"q{memory % 4}", cost=Cost(memory_bytes=memory, core_percent=cores)),)
    if cores == 50:
        return (Offer(mode="loose", cost=Cost(memory_bytes=memory)),)
    return (Offer(mode="cut", cost=Cost(memory_bytes=memory, units=1 + memory % 5)),)


@st.composite
def inventories(draw: st.DrawFn, node: str) -> Inventory:
    classes = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3))
    devices = tuple(
        Device(
            id=f"{node}-{i}",
            name=f"{node}-{i}",
            index=i,
            device_class=device_class,
            health=Health(state=draw(st.sampled_from(("healthy", "healthy", "healthy", "unhealthy")))),
            groups=(Membership(kind="ring", name=str(i // 2)), Membership(kind="pair", name=str(i // 2))),
        )
        for i, device_class in enumerate(classes)
    )
    return Inventory(node=node, devices=devices)


REQUESTS = st.builds(
    ResourceRequest,
    resource=st.just("x/count"),
    request=st.builds(
        DeviceRequest,
        count=st.sampled_from((1, 1, 1, 2)),
        memory_bytes=st.sampled_from((None, 1, 1, 2, 2, 3, 4, 5, 6, 8)),  # no more than the smallest device has: "too large" is a rule of its own
        core_percent=st.sampled_from((None, None, 20, 50, 100)),
    ),
    selector=st.builds(
        Selector, vendors=st.sampled_from(((), (), (), (), ("a",), ("b",), ("c",), ("d",), ("e",), ("a", "c"))), nouse_ids=st.sampled_from(((), (), ("n0-0",)))
    ),
)
CONTAINERS = st.lists(st.tuples(st.sampled_from(("app", "app", "init", "sidecar")), st.lists(REQUESTS, min_size=1, max_size=1)), min_size=1, max_size=3)


def make_pod(uid: str, containers: list[tuple[str, list[ResourceRequest]]], policy: str | None = None, priority: int = 0) -> PodRequest:
    ordered = sorted(containers, key=lambda item: item[0] == "app")
    made = tuple(ContainerRequest(name=f"c{i}", kind=kind, requests=tuple(requests)) for i, (kind, requests) in enumerate(ordered))  # type: ignore[arg-type]
    return PodRequest(uid=uid, namespace="ns", name=uid, containers=made, device_policy=policy, priority=priority)


# -- the reference: enumerate everything, check the rules as they are written ----------------------------------------


def device_ok(device: Device, holders: dict[str, list[list[DeviceGrant]]]) -> bool:
    """Whether these owners (uid → per phase, the grants on this device) may hold the device at the same time."""
    used = {uid: phases for uid, phases in holders.items() if any(phases)}
    capacity, device_class = device.device_class.capacity, device.device_class
    if any(device_class.mode(grant.offer.mode) is None for phases in used.values() for phase in phases for grant in phase):
        return False  # the device has become another
    everything = [(uid, grant) for uid, phases in used.items() for phase in phases for grant in phase]
    if any(not exists_on(device_class, grant) for _, grant in everything):
        return False

    def peak(amount: Callable[[DeviceGrant], int]) -> int:
        return sum(max((sum(amount(grant) for grant in phase) for phase in phases), default=0) for phases in used.values())

    if peak(lambda grant: grant.offer.cost.memory_bytes) > capacity.memory_bytes or peak(lambda grant: grant.offer.cost.core_percent) > capacity.core_percent:
        return False
    if peak(lambda grant: grant.offer.cost.shares) > capacity.shares:
        return False
    for counter in capacity.counters:

        def counted(grant: DeviceGrant, name: str = counter.name) -> int:
            return sum(own.amount for own in grant.offer.cost.counters if own.name == name)

        if peak(counted) > counter.amount:
            return False
    for mode in device_class.modes:

        def instance(grant: DeviceGrant, name: str = mode.name) -> int:
            return int(grant.offer.mode == name)

        if mode.max_instances is not None and peak(instance) > mode.max_instances:
            return False
        profiles = {grant.offer.profile for _, grant in everything if grant.offer.mode == mode.name and grant.offer.profile is not None}
        if mode.max_profiles is not None and len(profiles) > mode.max_profiles:
            return False
    return all(pair_ok(device_class, first, second, used) for first, second in itertools.combinations(everything, 2))


def exists_on(device_class: DeviceClass, grant: DeviceGrant) -> bool:
    """Whether the device has the cells, the units and the counters at all (a grant may be older than the device's class)."""
    capacity, cost = device_class.capacity, grant.offer.cost
    end = grant.start + cost.interval.size if cost.interval and grant.start is not None else 0
    counters = {counter.name for counter in capacity.counters}
    return end <= capacity.line and int(grant.units or "0x0", 16) < 1 << capacity.units and counters >= {own.name for own in cost.counters if own.amount}


def pair_ok(device_class: DeviceClass, first: tuple[str, DeviceGrant], second: tuple[str, DeviceGrant], used: dict[str, list[list[DeviceGrant]]]) -> bool:
    (one, a), (two, b) = first, second
    at_once = one != two or any(any(a is x for x in phase) and any(b is x for x in phase) for phase in used[one])
    if a is b or not at_once:
        return True
    modes = {mode.name: mode for mode in device_class.modes}
    friends = a.offer.mode == b.offer.mode or a.offer.mode in modes[b.offer.mode].coexists or b.offer.mode in modes[a.offer.mode].coexists
    cells = [
        set(range(grant.start, grant.start + grant.offer.cost.interval.size)) if grant.offer.cost.interval and grant.start is not None else set()
        for grant in (a, b)
    ]
    units = [int(grant.units or "0x0", 16) for grant in (a, b)]
    return friends and not a.offer.exclusive and not b.offer.exclusive and not cells[0] & cells[1] and not units[0] & units[1]


def by_phase(grant: PodGrant, device_id: str) -> list[list[DeviceGrant]]:
    return [[device for container in phase for device in container.devices if device.device_id == device_id] for phase in grant.phases]


def sets_allowed(devices: tuple[Device, ...], chosen: tuple[Device, ...], request: DeviceRequest) -> bool:
    if len({device.vendor for device in chosen}) != 1:
        return False
    for group_rule in {device.device_class.group_rule for device in chosen}:
        for kind in group_rule.same:
            largest = max(sum(other.group(kind) == device.group(kind) for other in devices) for device in devices)
            if largest >= len(chosen) and len({device.group(kind) for device in chosen}) > 1:
                return False
        for kind in group_rule.whole if request.whole else ():
            names = {device.group(kind) for device in chosen}
            if any(device.group(kind) in names and device not in chosen for device in devices):
                return False
    return True


def reference_fits(inventory: Inventory, pod: PodRequest, others: list[PodGrant]) -> bool:
    """Whether any assignment at all satisfies the rules on this node."""
    needs = [(container, request) for container in pod.containers for request in container.requests]
    open_devices = [device for device in inventory.devices if device.health.ok and device_ok(device, {g.owner.uid: by_phase(g, device.id) for g in others})]
    given: dict[str, list[DeviceGrant]] = {container.name: [] for container in pod.containers}

    def fine() -> bool:
        mine = PodGrant(
            owner=Owner(kind="pod", uid=pod.uid),
            node=inventory.node,
            containers=tuple(ContainerGrant(container=c.name, kind=c.kind, devices=tuple(given[c.name])) for c in pod.containers),
        )
        return all(device_ok(device, {g.owner.uid: by_phase(g, device.id) for g in (*others, mine)}) for device in open_devices)

    def place(index: int) -> bool:
        if index == len(needs):
            return True
        container, wanted = needs[index]
        meant = [d for d in open_devices if (not wanted.selector.vendors or d.vendor in wanted.selector.vendors) and d.id not in wanted.selector.nouse_ids]
        for chosen in itertools.combinations(meant, wanted.request.count):
            if not sets_allowed(inventory.devices, chosen, wanted.request):
                continue
            for pieces in itertools.product(*(list(ways(device, wanted, others, given)) for device in chosen)):
                given[container.name].extend(pieces)
                if fine() and place(index + 1):
                    return True
                del given[container.name][-len(pieces) :]
        return False

    return place(0)


def ways(device: Device, wanted: ResourceRequest, others: list[PodGrant], given: dict[str, list[DeviceGrant]]) -> Iterator[DeviceGrant]:
    """Every way of serving one device of a request: every offer, every start; for units every subset of that size that is not taken by others."""
    taken = 0
    for grant in others:
        for container in grant.containers:
            for held in container.devices:
                taken |= int(held.units or "0x0", 16) if held.device_id == device.id else 0
    for offer in partition(device.device_class, wanted.request):
        assert isinstance(offer, Offer)
        starts = offer.cost.interval.starts if offer.cost.interval else (None,)
        masks: list[str | None] = [None]
        if offer.cost.units:
            free = [bit for bit in range(device.device_class.capacity.units) if not taken >> bit & 1]
            masks = [hex(sum(1 << bit for bit in bits)) for bits in itertools.combinations(free, offer.cost.units)]
        for start, units in itertools.product(starts, masks):
            yield DeviceGrant(device_id=device.id, device_name=device.id, vendor=device.vendor, resource="x/count", offer=offer, start=start, units=units)


# -- the machine -----------------------------------------------------------------------------------------------------


class Cluster(RuleBasedStateMachine):
    """Filters, binds, deletions, failures and restarts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(partition)
        self.inventories: dict[str, Inventory] = {}
        self.pods: dict[str, PodRequest] = {}
        self.number = 0

    def grants_on(self, node: str, without: str = "") -> list[PodGrant]:
        return [grant for grant in self.engine.grants() if grant.node == node and grant.owner.uid != without]

    @initialize(first=inventories("n0"), second=inventories("n1"))
    def nodes_come(self, first: Inventory, second: Inventory) -> None:
        for inventory in (first, second):
            self.inventories[inventory.node] = inventory
            self.engine.set_inventory(inventory)

    @precondition(lambda self: self.number % 8 == 7 or not self.inventories)
    @rule(node=st.sampled_from(("n0", "n1", "n2")), data=st.data())
    def inventory_changes(self, node: str, data: st.DataObject) -> None:
        self.number += 1
        self.inventories[node] = data.draw(inventories(node))
        self.engine.set_inventory(self.inventories[node])

    @precondition(lambda self: self.inventories)
    @rule(batch=st.lists(CONTAINERS, min_size=1, max_size=4), policy=st.sampled_from((None, "spread")))
    def several_pods_come_and_are_bound(self, batch: list[list[tuple[str, list[ResourceRequest]]]], policy: str | None) -> None:
        """A burst: all are filtered before the first is bound."""
        pods = []
        for containers in batch:
            self.number += 1
            pods.append(make_pod(f"p{self.number}", containers, policy, priority=self.number % 3))
            self.judge(pods[-1], False)
        for pod in pods:
            entry = self.engine.entry(pod.uid)
            if entry is not None:
                assert self.engine.reserve(pod, entry.grant.node) == entry.grant
                self.engine.commit(pod.uid)

    @precondition(lambda self: self.inventories)
    @rule(containers=CONTAINERS, policy=st.sampled_from((None, None, "spread", "mutex", "numa")), prioritize=st.booleans())
    def pod_comes(self, containers: list[tuple[str, list[ResourceRequest]]], policy: str | None, prioritize: bool) -> None:
        self.number += 1
        self.judge(make_pod(f"p{self.number}", containers, policy, priority=self.number % 3), prioritize)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def pod_is_filtered_again(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        self.judge(self.pods[uid], True)

    def judge(self, pod: PodRequest, prioritize: bool) -> None:
        entry = self.engine.entry(pod.uid)
        verdict = self.engine.filter(pod, None)
        self.pods[pod.uid] = pod
        note(f"{pod} -> {verdict.feasible}")
        for node, inventory in self.inventories.items():
            others = self.grants_on(node, without=pod.uid)
            if pod.device_policy != "mutex":
                assert (node in verdict.feasible) is reference_fits(inventory, pod, others), f"{node}: {inventory} {others}"
            if node in verdict.refused:
                assert verdict.rejections[node][0].reason is verdict.code(node)
                assert node in verdict.by_reason()[verdict.code(node)]
        if verdict.best is not None and (entry is None or entry.state == "tentative"):
            assert self.engine.entry(pod.uid).grant.node == verdict.best  # type: ignore[union-attr]
        if prioritize and verdict.feasible:
            scores = self.engine.prioritize(pod.uid, verdict.feasible)
            assert sorted(scores.values())[-1] == 10 or entry is not None
            assert sum(score == 10 for score in scores.values()) <= 1
            assert set(scores) == set(verdict.feasible)

    @precondition(lambda self: self.pods and self.inventories)
    @rule(data=st.data(), outcome=st.sampled_from(("commit", "rollback", "wait")))
    def pod_is_bound(self, data: st.DataObject, outcome: str) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        pod = self.pods[uid]
        verdict = self.engine.filter(pod, None)
        node = data.draw(st.sampled_from(sorted(self.inventories)))
        firm = (entry := self.engine.entry(uid)) is not None and entry.state == "committed"
        answer = self.engine.reserve(pod, node)
        if not firm:
            assert isinstance(answer, PodGrant) == (node in verdict.feasible)
        if isinstance(answer, PodGrant) and outcome != "wait":
            getattr(self.engine, outcome)(uid)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def pod_goes(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        del self.pods[uid]
        self.engine.forget(uid)
        assert self.engine.entry(uid) is None

    @precondition(lambda self: len(self.pods) > 3)
    @rule(keep=st.integers(1, 5))
    def many_pods_go(self, keep: int) -> None:
        for uid in [uid for position, uid in enumerate(sorted(self.pods)) if position % keep == 0]:
            del self.pods[uid]
            self.engine.forget(uid)

    @precondition(lambda self: self.inventories)
    @rule(containers=CONTAINERS, data=st.data())
    def allocate_then_release_is_identity(self, containers: list[tuple[str, list[ResourceRequest]]], data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.inventories)))
        before = snapshot(self.engine, self.inventories)
        self.engine.reserve(make_pod("passing", containers), node)
        self.engine.rollback("passing")
        assert snapshot(self.engine, self.inventories) == before

    @precondition(lambda self: len(self.inventories) > 1 and self.number % 8 == 3)
    @rule(data=st.data())
    def node_goes(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.inventories)))
        del self.inventories[node]
        self.engine.remove_node(node)
        assert self.engine.usage(node) == {}

    @precondition(lambda self: self.inventories)
    @rule(containers=CONTAINERS)
    def preemption_makes_room(self, containers: list[tuple[str, list[ResourceRequest]]]) -> None:
        pod = make_pod("urgent", containers, priority=2)
        for node, victims in self.engine.preempt(pod, {node: [] for node in self.inventories}).items():
            left = [grant for grant in self.grants_on(node) if grant.owner.uid not in victims]
            assert all(self.pods[victim].priority < 2 for victim in victims)
            assert reference_fits(self.inventories[node], pod, left)

    @rule()
    def extender_restarts(self) -> None:
        fresh = Engine(partition)
        for inventory in self.inventories.values():
            fresh.set_inventory(inventory)
        for grant in self.engine.grants():
            fresh.observe(grant)
        assert snapshot(fresh, self.inventories) == snapshot(self.engine, self.inventories)

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        OPERATIONS["total"] += 1
        reported = {(item.node, item.device_id) for item in self.engine.over_commitments()}
        for node, inventory in self.inventories.items():
            grants = self.grants_on(node)
            for device in inventory.devices:
                if (node, device.id) not in reported:
                    assert device_ok(device, {grant.owner.uid: by_phase(grant, device.id) for grant in grants})


def snapshot(engine: Engine, nodes: dict[str, Inventory]) -> dict[str, object]:
    return {node: engine.usage(node) for node in nodes}


def test_random_operations() -> None:
    OPERATIONS["total"] = 0
    run_state_machine_as_test(Cluster, settings=SETTINGS)
    print(f"{OPERATIONS['total']} random operations")
    assert OPERATIONS["total"] >= (10_000 if DEEP else 200)


@given(st.lists(CONTAINERS, min_size=3, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=200 if DEEP else 20, deadline=None, derandomize=not DEEP)
def test_the_order_of_observed_grants_does_not_matter(pods: list[list[tuple[str, list[ResourceRequest]]]], shuffler: random.Random) -> None:
    inventory = Inventory(node="n", devices=tuple(Device(id=f"d{i}", device_class=device_class) for i, device_class in enumerate(CLASSES)))
    first = Engine(partition)
    first.set_inventory(inventory)
    for number, containers in enumerate(pods):
        first.reserve(make_pod(f"p{number}", containers), "n")
    grants = list(first.grants())
    shuffler.shuffle(grants)
    second = Engine(partition)
    for grant in grants:
        second.observe(grant)
    second.set_inventory(inventory)
    assert second.usage("n") == first.usage("n")
