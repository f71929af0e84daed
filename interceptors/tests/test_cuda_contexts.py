# SPDX-License-Identifier: Apache-2.0
"""What contexts cost, what goes with them, and the driver's own errors where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import CONTEXT, FAKE_INCLUDES, LIMIT, MIB, Container, record


@pytest.fixture
def make(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Callable[..., Container]:
    preload = interceptor("cuda", "nvml", variant="testing")
    libraries = [fake_driver("cuda", FAKE_INCLUDES)]
    return lambda *records, **more: Container(tmp_path / "container", preload, libraries, records or (record(0), record(1)), **more)


def test_the_primary_context_is_charged_once_and_takes_its_memory_with_it(make: Callable[..., Container]) -> None:
    container = make()
    said = container.run("lifetimes")
    assert said["once"] == [LIMIT - CONTEXT, LIMIT]
    assert said["filled"] == said["still"] == [LIMIT - CONTEXT - 128 * MIB, LIMIT], "one retain is left"
    assert said["fresh"] == said["reset"] == said["once"]
    assert container.high_water() <= LIMIT


def test_a_thread_without_a_context_gets_the_drivers_own_errors(make: Callable[..., Container]) -> None:
    """core#187, PR core#172: a failing cuCtxGetDevice crashed."""
    codes = make().run("without_context")["codes"]
    assert {name: code for name, code in codes.items() if name.endswith("cuInit")} == dict.fromkeys((n for n in codes if n.endswith("cuInit")), 3)
    assert {name: code for name, code in codes.items() if name.endswith("context")} == dict.fromkeys((n for n in codes if n.endswith("context")), 201)


def test_a_context_on_the_second_device_is_charged_there(make: Callable[..., Container]) -> None:
    """core#169: only the first device's context was counted."""
    container = make(record(0), record(1, memory_bytes=2 * LIMIT))
    assert container.run("view", 1)["info"] == [2 * LIMIT - CONTEXT, 2 * LIMIT]
    assert container.state().devices[0].used_bytes == 0


def test_a_context_that_does_not_fit_is_refused_before_it_is_made(make: Callable[..., Container]) -> None:
    container = make(record(0, memory_bytes=CONTEXT - MIB), devices=1)
    assert container.run("view")["refused"] == 2
    assert container.high_water() == 0


def test_a_context_of_unknown_cost_is_measured_or_bounded_and_the_limit_holds(make: Callable[..., Container]) -> None:
    container = make(record(0, context_bytes=None), devices=1)
    container.run("exhaust", "cuMemAlloc_v2", 32 * MIB)
    assert container.high_water() <= LIMIT
    assert container.state().devices[0].context_bytes >= CONTEXT
