# SPDX-License-Identifier: Apache-2.0
"""Every hook of the CUDA driver does what it is there for, and without it the same test would fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_bench import MIB
from cuda_rig import FAKE_INCLUDES, Container, Seen, record
from cuda_rows import LIMIT, ROWS, UNCHARGED

from hami_interceptor import spec

HOOKED = [row.symbol for row in spec.load("cuda").rows if row.hooked]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Seen:
    records = (record(0, memory_bytes=LIMIT * MIB, charge_imports=True, core_milli=90_000), record(1))
    driver = fake_driver("cuda", FAKE_INCLUDES)
    container = Container(tmp_path_factory.mktemp("rows") / "container", interceptor("cuda", "nvml", variant="testing"), [driver], records, devices=3)
    return container.drive("cuda", driver)


def test_every_hooked_symbol_is_driven() -> None:
    assert sorted(ROWS) == sorted(HOOKED)


@pytest.mark.parametrize("symbol", ROWS)
def test_a_hook_does_its_work(seen: Seen, symbol: str) -> None:
    assert seen[symbol]["with"] == ROWS[symbol].expected


@pytest.mark.parametrize("symbol", ROWS)
def test_without_the_hook_the_same_looks_different(seen: Seen, symbol: str) -> None:
    assert seen[symbol]["without"] != ROWS[symbol].expected
    assert not isinstance(seen[symbol]["without"], str), "the driver by itself must do it too"


def test_imports_cost_nothing_where_the_policy_does_not_charge_them(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> None:
    driver = fake_driver("cuda", FAKE_INCLUDES)
    container = Container(tmp_path / "container", interceptor("cuda", "nvml", variant="testing"), [driver], (record(0), record(1)))
    assert {symbol: said["with"] for symbol, said in container.drive("cuda imports", driver).items()} == {s: drive.expected for s, drive in UNCHARGED.items()}
