# SPDX-License-Identifier: Apache-2.0
"""Every hook of NVML does what it is there for, and without it the same test would fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import Container, Seen, fake_nvml, record
from nvml_rows import LISTS, MEMORY, NO_PERMISSION

from hami_interceptor import coverage, spec

ROWS = {row.symbol: row for row in spec.load("nvml").rows if row.hooked}
DENIED = [symbol for symbol in coverage.manifest("nvml") if ROWS[symbol].kind == "denied"]
SHOWN = {**LISTS, **MEMORY}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Seen:
    folder = tmp_path_factory.mktemp("rows")
    preload, generated, real_enough = interceptor("cuda", "nvml", variant="testing"), fake_driver("nvml"), fake_nvml(folder / "nvml")
    by_generated = Container(folder / "generated", preload, [generated], (record(0),))
    by_vendor = Container(folder / "vendor", preload, [real_enough], (record(0),))
    return {
        **by_generated.drive("nvml lists", generated),
        **by_generated.drive("nvml denied", generated, *DENIED),
        **by_vendor.drive("nvml memory", real_enough),
    }


def test_every_hooked_symbol_is_driven() -> None:
    assert sorted([*SHOWN, *DENIED]) == sorted(ROWS)


@pytest.mark.parametrize("symbol", SHOWN)
def test_a_question_is_answered_for_the_container(seen: Seen, symbol: str) -> None:
    assert seen[symbol]["with"] == SHOWN[symbol].expected
    assert seen[symbol]["without"] != SHOWN[symbol].expected
    assert not isinstance(seen[symbol]["without"], str), "the driver by itself must do it too"


@pytest.mark.parametrize("symbol", DENIED)
def test_what_changes_the_device_for_others_is_refused_and_never_asked_of_the_driver(seen: Seen, symbol: str) -> None:
    assert seen[symbol] == {"with": [NO_PERMISSION, 0], "without": [0, 1]}
