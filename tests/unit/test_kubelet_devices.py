# SPDX-License-Identifier: Apache-2.0
"""kubelet's device manager, without gRPC: the order of its checks, what it reuses, and that no id is ever held twice."""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami_framework.sandbox.kubelet.checkpoint import Checkpoint, DeviceRecord
from hami_framework.sandbox.kubelet.devices import AdmissionError, DeviceManager, PluginDevice, ReusePool

pytestmark = pytest.mark.deep

SLOT = "example.com/slot"
EXAMPLES = 2_000 if os.environ.get("HAMI_TEST_DEEP") else 100


def manager(*ids: str, unhealthy: tuple[str, ...] = ()) -> DeviceManager:
    made = DeviceManager(random=Random(0))
    made.update(SLOT, [PluginDevice(id=name, healthy=name not in unhealthy) for name in ids])
    return made


def give(state: DeviceManager, uid: str, container: str, count: int, reusable: frozenset[str] = frozenset()) -> tuple[str, ...]:
    plan = state.plan(uid, container, SLOT, count, reusable)
    assert plan is not None
    ids = state.choose(plan)
    state.record(uid, container, SLOT, ids, b"")
    return ids


def test_capacity_counts_all_devices_and_allocatable_the_healthy_ones() -> None:
    state = manager("a", "b", "c", unhealthy=("c",))
    assert state.capacity() == {SLOT: (3, 2)}
    state.mark_unhealthy(SLOT)
    assert state.capacity() == {SLOT: (3, 0)}


def test_a_message_is_the_complete_list() -> None:
    state = manager("a", "b")
    state.update(SLOT, [PluginDevice(id="b", healthy=True)])
    assert state.capacity() == {SLOT: (1, 1)}


@pytest.mark.parametrize(
    ("prepare", "count", "words"),
    [
        (lambda state: state.forget(SLOT), 1, "cannot allocate unregistered device"),
        (lambda state: state.mark_unhealthy(SLOT), 1, "no healthy devices present"),
        (lambda state: state.update(SLOT, [PluginDevice(id="z", healthy=True)]), 1, "previously allocated devices are no longer healthy"),
        (lambda state: None, 2, "changed request for resource"),
    ],
    ids=["unregistered", "none-healthy", "own-device-unhealthy", "other-count"],
)
def test_a_recorded_container_is_checked_before_it_is_let_through(prepare: object, count: int, words: str) -> None:
    state = manager("a", "b", "c")
    give(state, "pod", "main", 1)
    assert callable(prepare)
    prepare(state)
    with pytest.raises(AdmissionError, match=words):
        state.plan("pod", "main", SLOT, count, ())


def test_a_container_that_ran_when_kubelet_started_is_let_through_while_sources_are_not_ready() -> None:
    state = manager("a")
    give(state, "pod", "main", 1)
    state.mark_unhealthy(SLOT)
    state.sources_ready = False
    state.running = frozenset({("pod", "main")})
    assert state.plan("pod", "main", SLOT, 1, ()) is None
    with pytest.raises(AdmissionError, match="no healthy devices"):
        state.plan("pod", "finished-init", SLOT, 1, ())


def test_restore_keeps_records_and_has_no_device_until_the_plugin_is_back() -> None:
    record = DeviceRecord(pod_uid="pod", container="main", resource=SLOT, devices={-1: ("a",)}, response=b"x")
    state = DeviceManager(random=Random(0))
    state.restore(Checkpoint(records=(record,), registered={SLOT: ("a", "b")}))
    assert state.capacity() == {SLOT: (0, 0)}
    assert (state.ids("pod", "main", SLOT), state.allocated) == (frozenset({"a"}), {SLOT: {"a"}})


def test_ids_are_freed_when_collected_and_not_while_kubelet_starts() -> None:
    state = manager("a")
    give(state, "pod", "main", 1)
    state.sources_ready = False
    state.collect(())
    assert state.allocated == {SLOT: {"a"}}
    state.sources_ready = True
    state.collect(())
    assert state.allocated == {}


def test_a_failed_allocate_leaves_nothing_marked() -> None:
    state = manager("a")
    plan = state.plan("pod", "main", SLOT, 1, ())
    assert plan is not None
    state.choose(plan)
    state.rebuild_allocated()
    assert give(state, "other", "main", 1) == ("a",)


def test_reuse_first_then_preference_then_anything() -> None:
    state = manager(*"abcdef")
    pool = ReusePool()
    first = give(state, "pod", "init", 1)
    pool.give(state.container_records("pod", "init"))
    plan = state.plan("pod", "main", SLOT, 3, pool.of(SLOT))
    assert plan is not None
    assert (plan.reused, plan.ask_preferred, set(plan.available)) == (first, True, set("abcdef") - set(first))
    wish = sorted(plan.available)[-1]
    ids = state.choose(plan, [wish, *first, "unknown"])
    assert ids[:2] == (*first, wish)
    assert len(set(ids)) == 3


def test_reuse_alone_asks_nobody() -> None:
    state = manager("a", "b")
    give(state, "pod", "init", 2)
    plan = state.plan("pod", "side", SLOT, 1, frozenset("ab"))
    assert plan is not None
    assert not plan.ask_preferred


def test_a_sidecar_keeps_what_it_took_over() -> None:
    state = manager("a", "b")
    pool = ReusePool()
    give(state, "pod", "init", 1)
    pool.give(state.container_records("pod", "init"))
    taken = give(state, "pod", "side", 1, pool.of(SLOT))
    pool.take(state.container_records("pod", "side"))
    assert pool.of(SLOT) == frozenset()
    assert set(taken).isdisjoint(give(state, "pod", "app", 1, pool.of(SLOT)))


def test_a_device_on_two_numa_nodes_is_recorded_under_both() -> None:
    state = DeviceManager(random=Random(0))
    state.update(SLOT, [PluginDevice(id="a", healthy=True, numa=(0, 1))])
    give(state, "pod", "main", 1)
    [record] = state.container_records("pod", "main")
    assert record.devices == {0: ("a",), 1: ("a",)}
    assert record.ids == frozenset({"a"})


steps = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.integers(1, 3)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("fail"), st.integers(0, 9)),
        st.tuples(st.just("heal"), st.integers(0, 9)),
    ),
    max_size=40,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps, st.integers(0, 2**32))
def test_no_id_is_ever_held_by_two_active_pods(script: list[tuple[str, int]], seed: int) -> None:
    names = [f"s{number}" for number in range(10)]
    healthy = dict.fromkeys(names, True)
    state = DeviceManager(random=Random(seed))
    active: list[str] = []
    for number, (verb, amount) in enumerate(script):
        state.update(SLOT, [PluginDevice(id=name, healthy=ok) for name, ok in healthy.items()])
        if verb == "end" and active:
            del active[amount % len(active)]
        elif verb in ("fail", "heal"):
            healthy[names[amount]] = verb == "heal"
        elif verb == "admit":
            state.collect(active)
            try:
                ids = give(state, f"pod{number}", "main", amount)
            except AdmissionError:
                continue
            active.append(f"pod{number}")
            assert len(set(ids)) == amount
            assert all(healthy[name] for name in ids)
        held = [name for uid in active for name in state.ids(uid, "main", SLOT)]
        assert len(held) == len(set(held))
        assert set(held) <= state.allocated.get(SLOT, set())
