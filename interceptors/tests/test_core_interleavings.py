# SPDX-License-Identifier: Apache-2.0
"""All interleavings of claim, reserve, crash, recount and reclaim in a model of the core, and the model itself put to the test."""

from __future__ import annotations

import pytest

from interleave import Wrong, explore, start


@pytest.mark.parametrize(
    ("limit", "wants", "slots", "deaths"),
    [
        pytest.param(2, (2, 2), 2, 2, id="two want all of it, both may die"),
        pytest.param(3, (2, 2), 2, 2, id="one and a half"),
        pytest.param(4, (2, 2), 2, 1, id="both fit"),
        pytest.param(2, (2, 1), 1, 2, id="one slot for two"),
    ],
)
def test_two_processes(limit: int, wants: tuple[int, ...], slots: int, deaths: int) -> None:
    states, ends = explore(start(limit, wants, slots), deaths)
    assert states > 300
    assert ends > 0


@pytest.mark.parametrize(("limit", "wants", "slots", "deaths"), [(1, (1, 1, 1), 1, 1), (2, (2, 2, 1), 2, 0)], ids=["one slot", "nobody dies"])
def test_three_processes_in_short(limit: int, wants: tuple[int, ...], slots: int, deaths: int) -> None:
    states, _ = explore(start(limit, wants, slots), deaths)
    assert states > 1_000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("limit", "wants", "slots", "deaths"), [(2, (2, 1, 1), 2, 1), (3, (2, 2, 1), 2, 1), (2, (2, 2, 2), 2, 2)])
def test_three_processes(limit: int, wants: tuple[int, ...], slots: int, deaths: int) -> None:
    states, _ = explore(start(limit, wants, slots), deaths)
    assert states > 50_000


@pytest.mark.parametrize("mistake", ["no recount", "no number"])
def test_the_model_notices_a_missing_precaution(mistake: str) -> None:
    """Without the recount the books go wrong; without the slot's number a living process is robbed."""
    with pytest.raises(Wrong):
        explore(start(2, (2, 2, 1), 2, frozenset({mistake})), 1)
