# SPDX-License-Identifier: Apache-2.0
"""What the engine promises to the extender: tentative entries, binding, refusals, policies, preemption, over-commitment."""

from __future__ import annotations

import pytest

from hami_framework.errors import ConfigError
from hami_framework.model import (
    GIB,
    Capacity,
    ContainerRequest,
    Device,
    DeviceClass,
    DeviceRequest,
    Health,
    Inventory,
    Isolation,
    Mode,
    Offer,
    PodGrant,
    PodRequest,
    Reason,
    Rejection,
    ResourceRequest,
    Selector,
    share,
    whole,
)
from hami_framework.model.request import ContainerKind
from hami_framework.placement.engine import Engine
from hami_framework.placement.load import Overcommit
from hami_framework.placement.policies import Policy, link_score, numa_score

GPU = DeviceClass(model="GPU-80", vendor="one", types=("big",), capacity=Capacity(memory_bytes=80 * GIB, shares=10))
NPU = DeviceClass(model="NPU-64", vendor="two", capacity=Capacity(memory_bytes=64 * GIB, shares=10))


def partition(device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
    if request.whole:
        return (whole(device_class.capacity.memory_bytes),)
    if device_class is NPU and request.count > 1:
        return (Rejection(reason=Reason.SHARE_COUNT_FORBIDDEN, wanted=request.count, hint="ask for one device, or for whole ones"),)
    memory = request.memory_bytes if request.memory_bytes is not None else device_class.capacity.memory_bytes
    return (share(memory, request.core_percent),)


def inventory(node: str, count: int = 2, device_class: DeviceClass = GPU, **changes: object) -> Inventory:
    devices = tuple(Device(id=f"{node}-{i}", name=f"{node}-{i}", index=i, device_class=device_class, **changes) for i in range(count))  # type: ignore[arg-type]
    return Inventory(node=node, devices=devices)


def engine_with(*inventories: Inventory, **options: object) -> Engine:
    engine = Engine(partition, **options)  # type: ignore[arg-type]
    for each in inventories:
        engine.set_inventory(each)
    return engine


def container(
    name: str, gib: int | None, *, kind: ContainerKind = "app", count: int = 1, cores: int | None = None, **selector: tuple[str, ...]
) -> ContainerRequest:
    request = DeviceRequest(count=count, memory_bytes=None if gib is None else gib * GIB, core_percent=cores)
    return ContainerRequest(name=name, kind=kind, requests=(ResourceRequest(resource="x/count", request=request, selector=Selector(**selector)),))


def pod(uid: str, *containers: ContainerRequest, gib: int | None = 10, count: int = 1, cores: int | None = None, **options: object) -> PodRequest:
    made = containers or (container("main", gib, count=count, cores=cores),)
    return PodRequest(uid=uid, namespace="default", name=uid, containers=made, **options)  # type: ignore[arg-type]


def devices_of(grant: object) -> list[str]:
    assert isinstance(grant, PodGrant)
    return [device.device_id for each in grant.containers for device in each.devices]


class TestTentativeEntries:
    def test_a_filtered_pod_counts_against_others_but_not_against_itself(self) -> None:
        engine = engine_with(inventory("a", 1))
        first, second = pod("1", gib=60), pod("2", gib=60)
        assert engine.filter(first, None).best == "a"
        assert engine.filter(second, None).feasible == []
        assert engine.filter(first, None).best == "a"

    def test_one_entry_only_on_the_first_ranked_node(self) -> None:
        engine = engine_with(inventory("a"), inventory("b"))
        assert engine.filter(pod("1"), None).feasible == ["a", "b"]
        assert [grant.node for grant in engine.grants()] == ["a"]

    def test_it_moves_when_another_node_is_ranked_first(self) -> None:
        engine = engine_with(inventory("a"), inventory("b"))
        engine.filter(pod("1"), None)
        assert engine.prioritize("1", ["b"]) == {"b": 10}
        assert [grant.node for grant in engine.grants()] == ["b"]

    def test_it_expires(self) -> None:
        engine = engine_with(inventory("a"), tentative_seconds=30.0)
        engine.filter(pod("1"), None, now=100.0)
        assert engine.expire(129.0) == []
        assert engine.expire(131.0) == ["1"]
        assert list(engine.grants()) == []

    def test_binding_elsewhere_drops_it(self) -> None:
        engine = engine_with(inventory("a"), inventory("b"))
        engine.filter(pod("1"), None)
        engine.reserve(pod("1"), "b")
        assert [grant.node for grant in engine.grants()] == ["b"]

    @pytest.mark.parametrize("undo", ["rollback", "forget"])
    def test_rollback_and_deletion_release_a_reservation(self, undo: str) -> None:
        engine = engine_with(inventory("a"))
        engine.reserve(pod("1"), "a")
        getattr(engine, undo)("1")
        assert list(engine.grants()) == []

    def test_rollback_leaves_a_committed_grant(self) -> None:
        engine = engine_with(inventory("a"))
        engine.reserve(pod("1"), "a")
        engine.commit("1")
        engine.rollback("1")
        assert len(list(engine.grants())) == 1

    def test_expiry_leaves_reservations(self) -> None:
        engine = engine_with(inventory("a"))
        engine.filter(pod("1"), None, now=0.0)
        engine.reserve(pod("1"), "a")
        assert engine.expire(1e9) == []

    def test_a_burst_of_500_pods_loses_no_race(self) -> None:
        """All are filtered before the first is bound, as kube-scheduler's asynchronous binding allows."""
        engine = engine_with(*(inventory(f"n{i:03d}", 8) for i in range(25)))
        chosen = {}
        for number in range(500):
            request = pod(f"p{number}", gib=30)
            verdict = engine.filter(request, None)
            scores = engine.prioritize(request.uid, verdict.feasible)
            if scores:
                chosen[number] = max(scores, key=lambda node: scores[node])
        # 25 nodes of 8 devices with room for two shares each hold 400; the other 100 know it at filter time.
        assert len(chosen) == 400
        lost = [number for number, node in chosen.items() if not isinstance(engine.reserve(pod(f"p{number}", gib=30), node), PodGrant)]
        assert lost == []


class TestPrioritize:
    def test_one_node_alone_is_at_the_top_and_ties_go_to_the_lowest_name(self) -> None:
        engine = engine_with(*(inventory(name) for name in ("c", "b", "a")))
        verdict = engine.filter(pod("1"), ["c", "a", "b"])
        assert engine.prioritize("1", verdict.feasible) == {"a": 10, "b": 0, "c": 0}

    def test_a_pod_never_filtered_has_no_preference(self) -> None:
        assert engine_with(inventory("a")).prioritize("unknown", ["a", "b"]) == {"a": 0, "b": 0}

    def test_a_turned_list_gets_the_same_answers_turned(self) -> None:
        names = [f"n{number}" for number in range(6)]
        engine = engine_with(*(inventory(name, 1, NPU if name == "n2" else GPU) for name in names[:5]))
        straight = engine.filter(pod("1", gib=70), names).feasible
        turned = names[4:] + names[:4]
        verdict = engine.filter(pod("2", gib=70), turned)
        assert straight == ["n0", "n1", "n3", "n4"]
        assert verdict.feasible == ["n4", "n1", "n3"]
        assert verdict.by_reason() == {Reason.MEMORY: ["n0", "n2"], Reason.NO_INVENTORY: ["n5"]}
        assert engine.scores("2", ["n4", "n1", "n3"]) == [0, 10, 0]

    def test_unknown_nodes_are_scored_zero(self) -> None:
        engine = engine_with(inventory("a"))
        engine.filter(pod("1"), None)
        assert engine.prioritize("1", ["x", "a"]) == {"x": 0, "a": 10}


class TestRefusals:
    @pytest.mark.parametrize(
        ("request_", "reason", "wanted"),
        [
            pytest.param(pod("1", gib=81), Reason.MEMORY_TOO_LARGE, 81 * GIB, id="memory-over-the-largest-device"),
            pytest.param(pod("1", count=3), Reason.COUNT_TOO_LARGE, 3, id="count-over-what-any-node-has"),
            pytest.param(pod("1", node_policy="best"), Reason.POLICY_UNKNOWN, "best", id="unknown-node-policy"),
            pytest.param(pod("1", device_policy="best"), Reason.POLICY_UNKNOWN, "best", id="unknown-device-policy"),
            pytest.param(pod("1", container("c", 4, count=2, vendors=("two",))), Reason.SHARE_COUNT_FORBIDDEN, 2, id="vendor-forbids-count"),
        ],
    )
    def test_a_wrong_pod_is_refused_on_every_node(self, request_: PodRequest, reason: Reason, wanted: object) -> None:
        engine = engine_with(inventory("a"), inventory("b", device_class=NPU))
        verdict = engine.filter(request_, ["a", "b", "unheard-of"])
        assert verdict.feasible == []
        assert {verdict.code(node) for node in verdict.refused} == {reason}
        for node in ("a", "b", "unheard-of"):
            assert (verdict.rejections[node][0].reason, verdict.rejections[node][0].wanted) == (reason, wanted)
            assert reason.bad_input

    @pytest.mark.parametrize(
        ("request_", "reason"),
        [
            pytest.param(pod("1", container("c", 4, vendors=("three",))), Reason.VENDOR_MISSING, id="vendor"),
            pytest.param(pod("1", container("c", 4, use_types=("other",))), Reason.TYPE, id="type"),
            pytest.param(pod("1", container("c", 4, nouse_types=("BIG",))), Reason.TYPE, id="unwanted-type"),
            pytest.param(pod("1", container("c", 4, use_ids=("none",))), Reason.ID, id="id"),
            pytest.param(pod("1", container("c", 4, count=2, nouse_ids=("A-0",))), Reason.TOO_FEW_DEVICES, id="too-few-left-by-ids"),
            pytest.param(pod("1", gib=4, isolation=Isolation(memory="hard")), Reason.ISOLATION, id="isolation"),
            pytest.param(pod("1", gib=41), Reason.MEMORY, id="memory"),
            pytest.param(pod("1", gib=4, cores=60), Reason.CORES, id="cores"),
            pytest.param(pod("1", gib=None), Reason.EXCLUSIVE, id="whole-device-taken"),
        ],
    )
    def test_a_node_is_refused_with_its_reason(self, request_: PodRequest, reason: Reason) -> None:
        engine = engine_with(inventory("a"))
        for number in range(2):
            engine.reserve(pod(f"old{number}", gib=40, cores=50, device_policy="spread"), "a")
        verdict = engine.filter(request_, None)
        assert verdict.feasible == []
        assert verdict.code("a") is reason
        assert verdict.rejections["a"][0].reason is reason

    def test_the_nearest_miss_comes_first_with_exact_figures(self) -> None:
        engine = engine_with(inventory("a"))
        for number, gib in enumerate((70, 50)):
            engine.reserve(pod(f"old{number}", gib=gib), "a")
        first = engine.filter(pod("1", gib=40), None).rejections["a"][0]
        assert (first.device, first.dimension, first.wanted, first.free) == ("a-1", "memory_bytes", 40 * GIB, 30 * GIB)
        assert (first.container, first.resource) == ("main", "x/count")

    def test_a_node_without_inventory(self) -> None:
        engine = engine_with(inventory("a"), inventory("empty", 0))
        verdict = engine.filter(pod("1"), ["a", "unheard-of", "empty"])
        assert verdict.feasible == ["a"]
        assert [verdict.code(node) for node in verdict.refused] == [Reason.NO_INVENTORY] * 2

    def test_all_refused_nodes_by_reason(self) -> None:
        engine = engine_with(inventory("a"), inventory("b", device_class=NPU), inventory("c"))
        engine.reserve(pod("old", count=2, gib=60), "c")
        verdict = engine.filter(pod("1", container("c", 70, vendors=("one",))), ["c", "b", "x", "a"])
        assert verdict.feasible == ["a"]
        assert verdict.by_reason() == {Reason.MEMORY: ["c"], Reason.VENDOR_MISSING: ["b"], Reason.NO_INVENTORY: ["x"]}

    def test_a_vendors_own_words_are_passed_through(self) -> None:
        engine = engine_with(inventory("b", device_class=NPU), inventory("c", 4, device_class=GPU))
        verdict = engine.filter(pod("1", gib=4, count=2), None)
        assert verdict.feasible == ["c"]
        assert verdict.code("b") is Reason.SHARE_COUNT_FORBIDDEN
        assert verdict.rejections["b"][0].hint == "ask for one device, or for whole ones"

    def test_a_sick_device_says_why(self) -> None:
        engine = engine_with(inventory("a", 1, health=Health(state="unhealthy", reason="fell off the bus")))
        verdict = engine.filter(pod("1"), None)
        assert verdict.code("a") is Reason.HEALTH
        assert verdict.rejections["a"][0].free == "fell off the bus"

    def test_only_a_refused_node_has_reasons(self) -> None:
        verdict = engine_with(inventory("a")).filter(pod("1"), None)
        assert verdict.rejections == {}
        with pytest.raises(KeyError):
            verdict.rejections["a"]


class TestPhases:
    def test_an_init_container_and_the_app_share_one_promise(self) -> None:
        engine = engine_with(inventory("a", 1))
        engine.reserve(pod("1", container("i", 60, kind="init"), container("m", 50)), "a")
        assert engine.usage("a")["a-0"].memory_bytes == 60 * GIB

    def test_a_sidecar_runs_beside_what_comes_after_it(self) -> None:
        engine = engine_with(inventory("a", 1))
        engine.reserve(pod("1", container("s", 20, kind="sidecar"), container("i", 50, kind="init"), container("m", 40)), "a")
        assert engine.usage("a")["a-0"].memory_bytes == 70 * GIB

    def test_an_init_container_takes_a_whole_device_before_the_app_shares_it(self) -> None:
        engine = engine_with(inventory("a", 1))
        grant = engine.reserve(pod("1", container("i", None, kind="init"), container("m", 10)), "a")
        assert devices_of(grant) == ["a-0", "a-0"]
        assert engine.filter(pod("2", gib=1), None).code("a") is Reason.EXCLUSIVE

    def test_two_vendors_in_one_pod(self) -> None:
        mixed = Inventory(node="m", devices=(*inventory("g", 1).devices, *inventory("n", 1, NPU).devices))
        engine = engine_with(mixed, inventory("g-only"))
        both = pod("1", container("a", 10, vendors=("one",)), container("b", 10, vendors=("two",)))
        assert engine.filter(both, None).feasible == ["m"]
        assert devices_of(engine.reserve(both, "m")) == ["g-0", "n-0"]


class TestPolicies:
    @pytest.mark.parametrize(("policy", "node", "device"), [("binpack", "a", "a-0"), ("spread", "b", "b-0")])
    def test_nodes_and_devices(self, policy: str, node: str, device: str) -> None:
        engine = engine_with(inventory("a"), inventory("b"), node_policy=policy, device_policy=policy)
        engine.reserve(pod("old"), "a")
        verdict = engine.filter(pod("1"), None)
        assert verdict.best == node
        assert devices_of(engine.reserve(pod("1"), node)) == [device]

    def test_the_pods_own_choice_wins(self) -> None:
        engine = engine_with(inventory("a"))
        engine.reserve(pod("old"), "a")
        assert devices_of(engine.reserve(pod("1", device_policy="spread"), "a")) == ["a-1"]

    def test_mutex_takes_idle_devices_only(self) -> None:
        engine = engine_with(inventory("a"))
        engine.reserve(pod("old"), "a")
        assert devices_of(engine.reserve(pod("1", device_policy="mutex"), "a")) == ["a-1"]
        assert engine.filter(pod("2", device_policy="mutex"), None).code("a") is Reason.EXCLUSIVE

    def test_numa_keeps_a_set_on_one_node(self) -> None:
        devices = tuple(Device(id=f"d{i}", device_class=GPU, numa_node=i % 2) for i in range(4))
        engine = engine_with(Inventory(node="a", devices=devices))
        assert devices_of(engine.reserve(pod("1", count=2, device_policy="numa-bind"), "a")) == ["d0", "d2"]

    def test_a_package_can_add_one(self) -> None:
        last = Policy(name="last-device", device=lambda view: view.device.index)
        engine = engine_with(inventory("a", 4), policies=[last])
        assert devices_of(engine.reserve(pod("1", device_policy="last-device"), "a")) == ["a-3"]

    def test_a_taken_name_and_an_unknown_default_are_errors(self) -> None:
        with pytest.raises(ConfigError, match="binpack"):
            Engine(partition, policies=[Policy(name="binpack")])
        with pytest.raises(ConfigError, match="fastest"):
            Engine(partition, node_policy="fastest")

    def test_set_scores_of_nothing_known(self) -> None:
        devices = inventory("a", 2).devices
        assert (link_score(devices), numa_score(devices)) == (0.0, -2.0)


class TestOvercommit:
    def test_factors_per_node(self) -> None:
        engine = engine_with(inventory("a", 1), inventory("b", 1), overcommit=lambda node: Overcommit(memory_percent=150 if node == "b" else 100))
        for number in range(2):
            engine.reserve(pod(f"a{number}", gib=40), "a")
            engine.reserve(pod(f"b{number}", gib=40), "b")
        assert engine.filter(pod("1", gib=40), None).feasible == ["b"]
        assert engine.over_commitments() == ()

    def test_a_device_that_shrinks_is_reported_and_closed(self) -> None:
        engine = engine_with(inventory("a", 1))
        engine.reserve(pod("1", gib=60), "a")
        small = DeviceClass(model="GPU-80", vendor="one", capacity=Capacity(memory_bytes=50 * GIB))
        engine.set_inventory(inventory("a", 1, small))
        (report,) = engine.over_commitments()
        assert (report.device_id, report.dimension, report.promised, report.capacity, report.owners) == ("a-0", "memory_bytes", 60 * GIB, 50 * GIB, ("1",))
        assert engine.filter(pod("2", gib=1), None).feasible == []
        engine.forget("1")
        assert engine.over_commitments() == ()
        assert engine.filter(pod("2", gib=1), None).feasible == ["a"]

    def test_a_device_that_vanishes_is_reported_and_remembered(self) -> None:
        engine = engine_with(inventory("a", 2))
        engine.reserve(pod("1"), "a")
        engine.set_inventory(inventory("a", 0))
        assert [report.dimension for report in engine.over_commitments()] == ["device"]
        engine.set_inventory(inventory("a", 2))
        assert engine.over_commitments() == ()
        assert engine.usage("a")["a-0"].owners == ("1",)

    def test_a_device_that_fails_keeps_its_promises_and_takes_no_more(self) -> None:
        engine = engine_with(inventory("a", 1))
        engine.reserve(pod("1"), "a")
        engine.set_inventory(inventory("a", 1, health=Health(state="unhealthy", reason="ecc")))
        assert [(report.dimension, report.reason) for report in engine.over_commitments()] == [("health", "ecc")]
        assert engine.filter(pod("2"), None).code("a") is Reason.HEALTH

    def test_a_tentative_entry_on_a_device_that_failed_is_chosen_anew(self) -> None:
        engine = engine_with(inventory("a", 2))
        engine.filter(pod("1"), None)
        devices = inventory("a", 2).devices
        sick = Device(id="a-0", name="a-0", device_class=GPU, health=Health(state="unhealthy"))
        engine.set_inventory(Inventory(node="a", devices=(sick, devices[1])))
        assert devices_of(engine.reserve(pod("1"), "a")) == ["a-1"]


class TestPreemption:
    def engine(self) -> Engine:
        engine = engine_with(inventory("a", 2), inventory("b", 1))
        for uid, gib, priority, node in (("low", 50, 1, "a"), ("mid", 60, 5, "a"), ("high", 70, 9, "b")):
            grant = engine.reserve(pod(uid, gib=gib), node)
            assert isinstance(grant, PodGrant)
            engine.observe(grant, priority)
        return engine

    def test_the_least_important_pod_that_makes_room(self) -> None:
        assert self.engine().preempt(pod("new", gib=60, priority=7), {"a": [], "b": []}) == {"a": ["low"]}

    def test_given_victims_are_kept_and_enough(self) -> None:
        assert self.engine().preempt(pod("new", gib=60, priority=7), {"a": ["mid"]}) == {"a": ["mid"]}

    def test_nobody_is_evicted_where_it_fits(self) -> None:
        assert self.engine().preempt(pod("new", gib=30, priority=7), {"a": []}) == {"a": []}

    def test_equals_are_spared(self) -> None:
        assert self.engine().preempt(pod("new", gib=60, priority=1), {"a": [], "b": []}) == {}


TWO_MODES = DeviceClass(model="M", vendor="m", capacity=Capacity(memory_bytes=80 * GIB), modes=(Mode(name="share"), Mode(name="other")))


def mode_by_memory(device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
    return (share(GIB, mode="other" if request.memory_bytes == 2 * GIB else "share"),)


def test_modes_do_not_coexist_until_the_last_release() -> None:
    engine = Engine(mode_by_memory)
    engine.set_inventory(inventory("a", 1, TWO_MODES))
    engine.reserve(pod("1", gib=1), "a")
    assert engine.filter(pod("2", gib=2), None).code("a") is Reason.MODE_TAKEN
    engine.forget("1")
    assert engine.filter(pod("2", gib=2), None).feasible == ["a"]


def test_the_exact_search_passes_over_a_device_in_another_mode() -> None:
    engine = Engine(mode_by_memory)
    engine.set_inventory(inventory("a", 2, TWO_MODES))
    [taken] = devices_of(engine.reserve(pod("1", gib=1), "a"))  # binpack would take it again: it is the fuller one
    [chosen] = devices_of(engine.reserve(pod("2", gib=2), "a"))
    assert chosen != taken


@pytest.mark.parametrize(("count", "fits"), [pytest.param(1, [], id="one-device"), pytest.param(2, ["a"], id="two-devices")])
def test_containers_of_one_pod_do_not_mix_modes_on_a_device(count: int, fits: list[str]) -> None:
    engine = Engine(mode_by_memory)
    engine.set_inventory(inventory("a", count, TWO_MODES))
    assert engine.filter(pod("1", container("c", 1), container("d", 2)), None).feasible == fits


class TestWhatADeviceAnswersTo:
    def engine(self) -> Engine:
        engine = Engine(partition)
        known = Device(
            id="GPU-1", name="one-gpu-1", pci_address="0000:3B:00.0", identities=(("serial", "HCU-77"), ("minor", "3"), ("phy-id", "5")), device_class=GPU
        )
        engine.set_inventory(Inventory(node="a", devices=(Device(id="GPU-0", name="one-gpu-0", device_class=GPU), known)))
        return engine

    @pytest.mark.parametrize("wanted", ["gpu-1", " GPU-1 ", "One-GPU-1", "0000:3b:00.0", "hcu-77"])
    def test_any_of_its_names_in_any_case(self, wanted: str) -> None:
        engine = self.engine()
        assert devices_of(engine.reserve(pod("1", container("c", 4, use_ids=("none", wanted))), "a")) == ["GPU-1"]
        assert devices_of(engine.reserve(pod("2", container("c", 4, nouse_ids=(wanted,))), "a")) == ["GPU-0"]

    @pytest.mark.parametrize("number", ["3", "5"])
    def test_bare_numbers_name_nothing(self, number: str) -> None:
        assert self.engine().filter(pod("1", container("c", 4, use_ids=(number,))), None).code("a") is Reason.ID

    def test_a_name_moves_with_its_device(self) -> None:
        engine = self.engine()
        wanted = pod("1", container("c", 4, use_ids=("HCU-77",)))
        engine.set_inventory(inventory("a"))
        assert engine.filter(wanted, None).code("a") is Reason.ID
        engine.set_inventory(Inventory(node="b", devices=(Device(id="x", name="x", identities=(("serial", "hcu-77"),), device_class=GPU),)))
        assert engine.filter(wanted, None).feasible == ["b"]


def test_a_pod_that_needs_nothing_may_go_anywhere_and_holds_nothing() -> None:
    engine = engine_with(inventory("a"))
    empty = PodRequest(uid="1", namespace="d", name="p", containers=(ContainerRequest(name="c"),))
    assert engine.filter(empty, ["a", "unheard-of"]).feasible == ["a", "unheard-of"]
    assert list(engine.grants()) == []


def test_a_bound_pod_cannot_be_reserved_elsewhere() -> None:
    engine = engine_with(inventory("a"), inventory("b"))
    grant = engine.reserve(pod("1"), "a")
    engine.commit("1")
    assert engine.reserve(pod("1"), "a") == grant
    answer = engine.reserve(pod("1"), "b")
    assert isinstance(answer, tuple)
    assert answer[0].reason is Reason.REQUEST_CONFLICT
