# SPDX-License-Identifier: Apache-2.0
"""The books against a model of them: whatever is asked in whatever order, the answers and the figures are the model's."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from core_rig import LIMIT, OK, OVER_LIMIT, Container, device, library

MANAGED = 3 * LIMIT


class Hold(ctypes.Structure):
    device: int
    bytes: int
    flags: int
    _fields_ = (("device", ctypes.c_int), ("bytes", ctypes.c_uint64), ("flags", ctypes.c_uint32))


class View(ctypes.Structure):
    total: int
    used: int
    free: int
    limited: bool
    _fields_ = (("total", ctypes.c_uint64), ("used", ctypes.c_uint64), ("free", ctypes.c_uint64), ("limited", ctypes.c_bool))


class Core:
    """The core in this very process, in a container of its own."""

    def __init__(self, path: Path, container: Container) -> None:
        self.container = container
        self.library = ctypes.CDLL(str(path))
        u64, hold = ctypes.c_uint64, ctypes.POINTER(Hold)
        self.library.hami_reserve.argtypes = self.library.hami_reserve_virtual.argtypes = (ctypes.c_int, u64, hold)
        self.library.hami_reserve_rest.argtypes = (ctypes.c_int, u64, u64, hold)
        self.library.hami_settle.argtypes = (hold, u64)
        self.library.hami_give_back.argtypes = (hold,)
        self.library.hami_give_back.restype = None
        self.library.hami_memory_view.restype = View


@pytest.fixture(scope="module")
def core(built: Path) -> Iterator[Core]:
    before = os.environ.get("HAMI_DEVELOPMENT_POLICY")
    with tempfile.TemporaryDirectory() as folder:
        devices = (device(virtual_bytes=MANAGED), device("GPU-b", memory_bytes=2 * LIMIT))
        with Container(Path(folder) / "container", Path("/nonexistent"), *devices) as container:
            os.environ["HAMI_DEVELOPMENT_POLICY"] = str(container.folder)
            try:
                one = Core(library(built), container)
                assert one.library.hami_policy_usable() & 1
                yield one
            finally:
                if before is None:
                    del os.environ["HAMI_DEVELOPMENT_POLICY"]
                else:
                    os.environ["HAMI_DEVELOPMENT_POLICY"] = before


SIZES = st.one_of(st.integers(0, 3 * LIMIT), st.sampled_from([0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 2**63, 2**64 - LIMIT, 2**64 - 1]), st.integers(0, 2**64 - 1))
DEVICES = st.sampled_from([0, 1])
SETTINGS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


def machine(core: Core) -> type[RuleBasedStateMachine]:
    """The state machine over this core."""
    call = core.library

    class Books(RuleBasedStateMachine):
        held = Bundle("held")

        def __init__(self) -> None:
            super().__init__()
            self.used = [0, 0]
            self.managed = 0
            self.holds: list[Hold] = []

        def limit(self, number: int, managed: bool) -> int:
            return MANAGED if managed else (LIMIT, 2 * LIMIT)[number]

        def on(self, number: int, managed: bool) -> int:
            return self.managed if managed else self.used[number]

        def add(self, number: int, managed: bool, amount: int) -> None:
            if managed:
                self.managed += amount
            else:
                self.used[number] += amount

        def taken(self, verdict: int, hold: Hold, number: int, managed: bool, least: int, most: int) -> tuple[Hold, int, bool]:
            room = max(0, self.limit(number, managed) - self.on(number, managed))
            amount = min(room, most)
            assert verdict == (OK if amount >= least else OVER_LIMIT)
            assert hold.bytes == (amount if verdict == OK else 0)
            self.add(number, managed, hold.bytes)
            self.holds.append(hold)
            return hold, number, managed

        @rule(target=held, number=DEVICES, size=SIZES)
        def reserve(self, number: int, size: int) -> tuple[Hold, int, bool]:
            hold = Hold()
            return self.taken(call.hami_reserve(number, size, hold), hold, number, False, size, size)

        @rule(target=held, size=SIZES)
        def reserve_managed(self, size: int) -> tuple[Hold, int, bool]:
            hold = Hold()
            return self.taken(call.hami_reserve_virtual(0, size, hold), hold, 0, True, size, size)

        @rule(target=held, number=DEVICES, least=SIZES, more=SIZES)
        def rest(self, number: int, least: int, more: int) -> tuple[Hold, int, bool]:
            hold = Hold()
            most = min(2**64 - 1, least + more)
            return self.taken(call.hami_reserve_rest(number, least, most, hold), hold, number, False, least, most)

        @rule(one=held, actual=SIZES)
        def settle(self, one: tuple[Hold, int, bool], actual: int) -> None:
            hold, number, managed = one
            before = hold.bytes
            verdict = call.hami_settle(hold, actual)
            if hold.device < 0:
                assert (verdict, hold.bytes) == (OK, 0)  # an empty hold
                return
            fits = actual <= before or actual - before <= max(0, self.limit(number, managed) - self.on(number, managed))
            assert verdict == (OK if fits else OVER_LIMIT)
            assert hold.bytes == (actual if fits else before)
            self.add(number, managed, hold.bytes - before)

        @rule(one=consumes(held))
        def give_back(self, one: tuple[Hold, int, bool]) -> None:
            hold, number, managed = one
            self.add(number, managed, -hold.bytes)
            for _ in range(2):  # an empty hold is harmless
                call.hami_give_back(hold)
                assert hold.bytes == 0

        @invariant()
        def the_figures_agree(self) -> None:
            state = core.container.state()
            assert [state.devices[0].used_bytes, state.devices[1].used_bytes, state.devices[0].virtual_used_bytes] == [*self.used, self.managed]
            for number in (0, 1):
                view = call.hami_memory_view(number)
                limit = self.limit(number, False)
                assert (view.total, view.used, view.free, view.limited) == (limit, self.used[number], max(0, limit - self.used[number]), True)
                assert state.devices[number].high_water_bytes <= limit
            core.container.assert_books()

        def teardown(self) -> None:
            for hold in self.holds:
                call.hami_give_back(hold)
            core.container.assert_books()
            assert core.container.used() == 0

    return Books


@pytest.mark.deep
def test_the_books_are_the_model(core: Core) -> None:
    run_state_machine_as_test(machine(core), settings=settings(max_examples=40, stateful_step_count=25, **SETTINGS))  # type: ignore[arg-type]


@pytest.mark.deep
@settings(max_examples=300, **SETTINGS)  # type: ignore[arg-type]
@given(limit=st.integers(0, 2**64 - 2), first=st.integers(0, 2**64 - 1), second=st.integers(0, 2**64 - 1))
def test_any_limit_and_any_two_sizes(core: Core, limit: int, first: int, second: int) -> None:
    """Full-width arithmetic: nothing wraps, whatever the three numbers are."""
    generation = core.container.control.generation + 1
    core.container.change(generation, device(memory_bytes=limit, capacity_bytes=None, virtual_bytes=MANAGED), core.container.devices[1])
    one, two = Hold(), Hold()
    try:
        assert core.library.hami_reserve(0, first, one) == (OK if first <= limit else OVER_LIMIT)
        held = one.bytes
        assert core.library.hami_reserve(0, second, two) == (OK if held + second <= limit else OVER_LIMIT)
        assert core.container.used() == held + two.bytes
    finally:
        core.library.hami_give_back(one)
        core.library.hami_give_back(two)
        core.container.change(generation + 1, *core.container.devices)
        assert core.container.used() == 0
