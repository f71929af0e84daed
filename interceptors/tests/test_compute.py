# SPDX-License-Identifier: Apache-2.0
"""Leave to launch, on a clock that only moves when it is told to: shares over time, waiting, suspension, samples."""

from __future__ import annotations

import ctypes
import itertools
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import compute_rig as rig
from fake_events import FakeEvents

HERE = Path(__file__).parent
MS, SECOND = 1_000_000, 1_000_000_000
START = 1000 * SECOND
BURST = 50 * MS
HORIZON = 60 * SECOND
_functions = itertools.count(0x1000, 64)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rig.compiled(tmp_path_factory.mktemp("compute") / "libcompute.so", "-O2", "-shared", *rig.sources())


@pytest.fixture
def core(library: Path) -> rig.Core:
    made = rig.Core(library)
    made.begin()
    made.stub.stub_fake_clock(START)
    made.call("hami_sample_forget", 0)  # the pairs of the test before
    return made


def launch(core: rig.Core, function: int, *, may_wait: bool = True, work: int = 64) -> rig.Launch:
    made = rig.Launch()
    assert core.call("hami_launch_begin", 0, function, work, may_wait, made) == rig.OK
    return made


def observe(core: rig.Core, made: rig.Launch, took: int) -> None:
    core.call("hami_launch_observed", 0, made.key, made.charged_ns, took)


def known(core: rig.Core, took: int) -> int:
    """A function whose cost has been learnt, at no charge."""
    function = next(_functions)
    for _ in range(20):
        made = launch(core, function, may_wait=False)
        observe(core, made, took)
    core.stub.stub_set_tat(0)
    return function


def run_for(core: rig.Core, duration: int, costs: Iterator[tuple[int, int]]) -> int:
    """Launches without end until `duration` has passed; answers the device time that was admitted."""
    end, admitted = core.read("now") + duration, 0
    while core.read("now") < end:
        function, took = next(costs)
        made = launch(core, function)
        if made.sample:
            observe(core, made, took)
        admitted += took
    return admitted


def constant() -> Iterator[tuple[int, int]]:
    return itertools.repeat((next(_functions), 5 * MS))


def mixed() -> Iterator[tuple[int, int]]:
    kinds = [(next(_functions), took) for took in (MS // 2, MS, 3 * MS, 10 * MS, 40 * MS)]
    choose = random.Random(4)
    return (choose.choice(kinds) for _ in itertools.count())


def wavering() -> Iterator[tuple[int, int]]:
    function, choose = next(_functions), random.Random(5)
    return ((function, choose.randint(4 * MS, 6 * MS)) for _ in itertools.count())


@pytest.mark.parametrize("percent", [10, 30, 50, 70, 90])
@pytest.mark.parametrize("costs", [constant, mixed])
def test_the_share_holds_to_half_a_percent(core: rig.Core, percent: int, costs: Callable[[], Iterator[tuple[int, int]]]) -> None:
    core.begin(milli=percent * 1000)
    duration = 60 * SECOND
    kinds = costs()
    run_for(core, 2 * SECOND, kinds)
    begin = core.read("now")
    admitted = run_for(core, duration, kinds)
    assert admitted / (core.read("now") - begin) == pytest.approx(percent / 100, rel=0.005)


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_function_whose_cost_wavers_by_a_fifth_is_held_as_well_as_its_samples_can_tell(core: rig.Core, percent: int) -> None:
    core.begin(milli=percent * 1000)
    kinds = wavering()
    run_for(core, 2 * SECOND, kinds)
    begin = core.read("now")
    admitted = run_for(core, 60 * SECOND, kinds)
    assert admitted / (core.read("now") - begin) == pytest.approx(percent / 100, rel=0.02)


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_bursts_get_their_share_and_one_burst_more_after_each_rest(core: rig.Core, percent: int) -> None:
    core.begin(milli=percent * 1000)
    kinds = itertools.repeat((known(core, MS), MS))
    cycles, busy, rest, admitted = 30, 400 * MS, 200 * MS, 0
    for _ in range(cycles):
        admitted += run_for(core, busy, kinds)
        core.stub.stub_advance(rest)
    expected = cycles * (busy + BURST) * percent / 100
    assert expected <= admitted <= expected + cycles * 2 * MS
    assert admitted / (cycles * (busy + rest)) <= percent / 100 * (1 + BURST / busy)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    milli=st.integers(1, rig.MILLI_PERCENT - 1),
    costs=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, SECOND), min_size=1, max_size=8),
    now=st.integers(0, 2**62),
    tat=st.integers(0, 2**64 - 1),
    gain=st.integers(0, 2**32 - 1),
)
def test_no_figure_hangs_a_program_or_wraps(core: rig.Core, milli: int, costs: list[int], now: int, tat: int, gain: int) -> None:
    core.begin(milli=milli)
    core.stub.stub_fake_clock(now)
    core.stub.stub_control(0, gain, now)
    core.stub.stub_set_tat(tat)
    function = next(_functions)
    for took in costs:
        before = core.read("now")
        made = launch(core, function)
        observe(core, made, took)
        assert core.read("now") - before <= HORIZON + SECOND
        assert core.read("tat") <= max(core.read("now") + HORIZON, tat)
    assert core.read("tat") <= core.read("now") + HORIZON + SECOND


def test_a_scribbled_word_is_begun_anew(core: rig.Core) -> None:
    function = known(core, MS)
    core.stub.stub_set_tat(2**64 - 1)
    launch(core, function)
    assert core.read("now") == START
    assert core.read("tat") == START + BURST + 2 * MS


def test_who_may_not_wait_is_charged_and_goes(core: rig.Core) -> None:
    function = known(core, 30 * MS)
    for _ in range(10):
        launch(core, function, may_wait=False)
    assert core.read("now") == START
    assert core.read("tat") == pytest.approx(START + 600 * MS, rel=1e-9)
    launch(core, function)
    assert core.read("now") == pytest.approx(START + 550 * MS, rel=1e-9)
    assert core.read("waited") == core.read("slept")


def test_a_failed_launch_is_given_back(core: rig.Core) -> None:
    function = known(core, 30 * MS)
    launch(core, function)
    before = core.read("tat")
    made = launch(core, function, may_wait=False)
    core.call("hami_launch_failed", made)
    assert core.read("tat") == before


def test_an_observation_corrects_both_ways_and_never_below_one_burst(core: rig.Core) -> None:
    function = known(core, 10 * MS)
    made = launch(core, function)
    tat = core.read("tat")
    observe(core, made, 15 * MS)
    assert core.read("tat") == tat + 10 * MS
    observe(core, made, 5 * MS)
    assert core.read("tat") == tat
    for _ in range(20):
        observe(core, made, 0)
    assert core.read("tat") == START - BURST


def test_launches_that_ran_ahead_of_the_first_observation_are_charged_by_it(core: rig.Core) -> None:
    """A program that queues a thousand long kernels before the first has ended owes all of them."""
    core.begin(burst_us=10_000_000)
    function = next(_functions)
    made = [launch(core, function) for _ in range(100)]
    sampled = [place for place, each in enumerate(made) if each.sample]
    assert sampled == [*range(8), 64]
    for place in sampled:
        observe(core, made[place], 100 * MS)
    assert core.read("tat") == pytest.approx(START + 100 * 200 * MS, abs=MS)


def test_a_function_whose_first_launches_could_not_be_timed_is_tried_again(core: rig.Core) -> None:
    core.begin(burst_us=10_000_000)
    function = next(_functions)
    sampled = [place for place in range(1000) if launch(core, function).sample]
    assert sampled == [*range(8), 64, 128, 256, 512]


def test_what_is_captured_is_not_timed(core: rig.Core) -> None:
    """An event would become a node of the program's graph, and asking for one would end the capture."""
    events, function = FakeEvents(core), next(_functions)
    events.launch(function, MS)
    core.stub.stub_advance(SECOND)
    assert not any(launch(core, function, may_wait=False).sample for _ in range(300))
    assert launch(core, function).sample


@pytest.mark.parametrize(
    ("milli", "effective", "gain", "age", "expected"),
    [
        pytest.param(50_000, 0, 0, 0, 2.0, id="policy"),
        pytest.param(50_000, 25_000, 0, 0, 4.0, id="effective"),
        pytest.param(50_000, 25_000, 2 * rig.GAIN_ONE, 11 * SECOND, 2.0, id="silent-agent"),
        pytest.param(50_000, 0, rig.GAIN_ONE // 2, 9 * SECOND, 1.0, id="gain-half"),
        pytest.param(50_000, 0, 100 * rig.GAIN_ONE, 0, 4.0, id="gain-is-held-within-two"),
        pytest.param(50_000, 0, 1, 0, 1.0, id="gain-is-held-within-a-half"),
        pytest.param(50_000, 100_000, 0, 0, 0.0, id="lent-all-of-it"),
        pytest.param(1, 0, 0, 0, 6000.0, id="smallest-share-meets-the-horizon"),
    ],
)
def test_a_launch_is_charged_by_the_share_in_effect(core: rig.Core, milli: int, effective: int, gain: int, age: int, expected: float) -> None:
    function = known(core, 10 * MS)
    core.stub.stub_policy_milli(milli)
    core.stub.stub_control(effective, gain, START - age)
    core.stub.stub_set_tat(0)
    launch(core, function)
    charged = core.read("tat") - START if core.read("tat") else 0
    assert charged == pytest.approx(10 * MS * expected, rel=0.001)


def test_a_larger_share_shortens_a_wait_that_has_begun(core: rig.Core) -> None:
    core.begin(milli=10_000)
    function = known(core, 100 * MS)
    for _ in range(4):
        launch(core, function, may_wait=False)  # four seconds owed
    changed: list[int] = []

    def raise_it() -> None:
        if not changed:
            changed.append(core.read("now"))
            core.stub.stub_policy_milli(80_000)

    called = ctypes.CFUNCTYPE(None)(raise_it)
    core.stub.stub_at_sleep(called)
    launch(core, function)
    assert changed == [START + 500 * MS]  # a slice of the wait, not all of it
    assert core.read("now") == pytest.approx(START + 500 * MS + 3450 * MS / 8, abs=5 * MS)
    before, begin = 0, core.read("now")
    core.stub.stub_at_sleep(None)
    while core.read("now") < begin + 4 * SECOND:
        launch(core, function)
        before += 100 * MS
    assert before / (core.read("now") - begin) == pytest.approx(0.8, rel=0.15)


@pytest.mark.parametrize("by", ["policy", "agent"])
def test_a_smaller_share_holds_from_the_next_launch_on(core: rig.Core, by: str) -> None:
    core.begin(milli=80_000)
    kinds = itertools.repeat((known(core, 5 * MS), 5 * MS))
    run_for(core, 2 * SECOND, kinds)
    if by == "policy":
        core.stub.stub_policy_milli(20_000)
    else:
        core.stub.stub_control(20_000, 0, core.read("now") + HORIZON)  # a heartbeat that stays fresh
    begin = core.read("now")
    assert run_for(core, SECOND, kinds) / (core.read("now") - begin) == pytest.approx(0.2, rel=0.1)
    begin = core.read("now")
    assert run_for(core, 20 * SECOND, kinds) / (core.read("now") - begin) == pytest.approx(0.2, rel=0.005)


def test_a_suspended_container_waits_until_it_is_resumed(core: rig.Core) -> None:
    function = known(core, MS)
    core.stub.stub_suspend(1)
    assert core.call("hami_compute_limited")

    def resume() -> None:
        if core.read("now") >= START + 3 * SECOND:
            core.stub.stub_suspend(0)

    called = ctypes.CFUNCTYPE(None)(resume)
    core.stub.stub_at_sleep(called)
    launch(core, function)
    assert core.read("now") == START + 3 * SECOND
    core.stub.stub_suspend(1)
    launch(core, function, may_wait=False)
    assert core.read("now") == START + 3 * SECOND


def test_advisory_counts_and_never_waits(core: rig.Core) -> None:
    function = known(core, 100 * MS)
    core.stub.stub_advisory()
    while not core.read("busy"):  # earlier corrections downwards are paid off first
        core.call("hami_launch_observed", 0, 1, 0, 1 << 40)
    busy = core.read("busy")
    for _ in range(200):
        launch(core, function)
    assert core.read("now") == START
    assert core.read("launches") >= 192
    assert core.read("busy") - busy == 200 * 100 * MS


def test_without_a_policy_or_a_record_a_launch_is_refused(core: rig.Core) -> None:
    made = rig.Launch()
    for device in (rig.NO_DEVICE, 1, 15, 16, 1 << 30):
        assert core.call("hami_launch_begin", device, 1, 1, True, made) == rig.REFUSED
        assert made.device == rig.NO_DEVICE
    core.call("hami_launch_failed", made)


def test_no_device_has_a_limit_so_the_gate_is_open(core: rig.Core) -> None:
    core.begin(milli=0)
    assert not core.call("hami_compute_limited")
    core.begin(milli=1)
    assert core.call("hami_compute_limited")


def test_about_one_launch_in_a_hundred_is_sampled_and_more_when_costs_waver(core: rig.Core) -> None:
    core.begin(milli=99_000)
    calm, wild, choose = next(_functions), next(_functions), random.Random(6)
    sampled = {calm: 0, wild: 0}
    for _ in range(6400):
        for function in (calm, wild):
            made = launch(core, function)
            if made.sample:
                sampled[function] += 1
                observe(core, made, 1000 if function == calm else choose.randint(200, 3000))
    assert 8 + 40 <= sampled[calm] <= 8 + 60
    assert 300 <= sampled[wild] <= 450


def test_two_processes_share_one_word_and_a_forked_waiter_is_woken_by_the_agent(tmp_path: Path) -> None:
    program = rig.compiled(tmp_path / "shared_word", "-O2", *rig.sources(), str(HERE / "compute" / "shared_word.c"))
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["share held", "woken by the agent", "read-only"]), done.stdout + done.stderr


def test_events_teach_what_kernels_cost(core: rig.Core) -> None:
    events, function, begin, count = FakeEvents(core), next(_functions), START, 0
    while core.read("now") < begin + 30 * SECOND:
        events.launch(function, 5 * MS)
        count += 1
    assert count * 5 * MS / (core.read("now") - begin) == pytest.approx(0.5, rel=0.02)
    assert events.made <= 64
    assert events.destroyed == 0


@pytest.mark.parametrize("took", [20_000, 50_000, 5 * MS])
def test_what_the_host_needs_to_hand_over_a_launch_is_not_the_devices_time(core: rig.Core, took: int) -> None:
    """On an idle stream the first event is over before the launch has been handed over."""
    events, function, begin, count = FakeEvents(core), next(_functions), START, 0
    while core.read("now") < begin + 3 * SECOND:
        events.launch(function, took, gap=8_000)
        events.synchronize()
        count += 1
    assert count * took / (core.read("now") - begin) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("where", ["gap", "late"])
def test_a_launch_during_which_the_thread_was_interrupted_teaches_nothing(core: rig.Core, where: str) -> None:
    events, function = FakeEvents(core), next(_functions)
    for turn in range(8):
        events.launch(function, MS // 10, **({where: 4 * MS} if turn % 3 == 2 else {}))
        events.synchronize()
        core.stub.stub_advance(MS)
    assert events.launch(function, MS // 10).charged_ns == pytest.approx(MS // 10, rel=0.01)


def test_what_other_processes_run_first_is_not_charged(core: rig.Core) -> None:
    events, function, choose, admitted = FakeEvents(core), next(_functions), random.Random(7), 0
    while core.read("now") < START + 3 * SECOND:
        events.neighbour_until = core.read("now") + choose.choice((0, 0, 30_000, MS // 7))
        events.launch(function, MS // 10)
        admitted += MS // 10
        if choose.random() < 0.3:
            events.synchronize()
    assert admitted / (core.read("now") - START) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("percent", [10, 50, 90])
@pytest.mark.parametrize("took", [[MS] * 4, [MS // 2, MS, 2 * MS, 4 * MS]], ids=["alike", "different"])
def test_several_streams_are_charged_for_their_own_kernels_only(core: rig.Core, percent: int, took: list[int]) -> None:
    """The interval of a stream's kernel holds those of the other streams that were queued before it."""
    core.begin(milli=percent * 1000)
    events, functions, begin = FakeEvents(core), [next(_functions) for _ in took], 0
    while core.read("now") < START + 12 * SECOND:
        if begin == 0 and core.read("now") >= START + 4 * SECOND:
            begin, events.busy = core.read("now"), 0
        for stream, function in enumerate(functions):
            events.launch(function, took[stream], stream=stream + 1)
        events.synchronize()
        core.stub.stub_advance(MS // 2)
    possible = min(percent / 100, sum(took) / (sum(took) + MS // 2))
    assert events.busy / (core.read("now") - begin) == pytest.approx(possible, rel=0.03)


def test_streams_that_run_beside_each_other_are_charged_for_the_time_that_the_device_was_busy(core: rig.Core) -> None:
    events, function = FakeEvents(core, beside=True), next(_functions)
    while core.read("now") < START + 8 * SECOND:
        for stream in range(4):
            events.launch(function, 2 * MS, stream=stream + 1)
        events.synchronize()
    assert 0.45 <= events.busy / (core.read("now") - START) <= 0.52


def test_a_program_that_runs_far_ahead_is_called_back(core: rig.Core) -> None:
    core.begin(milli=10_000)
    events, function = FakeEvents(core), next(_functions)
    for _ in range(50):
        events.launch(function, 100 * MS)
    core.stub.stub_advance(200 * MS)
    for _ in range(3):
        events.launch(function, 100 * MS)
    assert core.read("now") >= START + 20 * SECOND


def test_forgotten_events_are_never_touched_again(core: rig.Core) -> None:
    events, function = FakeEvents(core), next(_functions)
    for _ in range(8):
        events.launch(function, MS, context=7)
    first = events.made
    core.call("hami_sample_forget", 7)
    events.recorded.clear()  # the fake fails with a KeyError, and so the test, if one of them is asked for
    core.stub.stub_advance(SECOND)
    for _ in range(8):
        events.launch(next(_functions), MS, context=8)
    assert events.made > first
    core.call("hami_sample_forget", 0)


def test_a_driver_without_events_only_costs_accuracy(core: rig.Core) -> None:
    events = FakeEvents(core)
    events.broken = True
    for _ in range(50):
        events.launch(next(_functions), MS)
    assert core.read("tat") > START
