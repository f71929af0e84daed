# SPDX-License-Identifier: Apache-2.0
"""Promises about sharing a device's time, for any tenants; and about the correction, for any measurements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from hami_framework.enforcement.layout import MILLI_PERCENT
from hami_framework.enforcement.sharing import FLOOR_MILLI, Correction, Tenant, corrected, effective_shares


@st.composite
def fitting_tenants(draw: st.DrawFn) -> tuple[Tenant, ...]:
    """Tenants who were not promised more than there is."""
    left, tenants = MILLI_PERCENT, []
    for _ in range(draw(st.integers(1, 8))):
        guaranteed = draw(st.integers(1, max(1, left)))
        if guaranteed > left:
            break
        left -= guaranteed
        tenants.append(
            Tenant(
                guaranteed=guaranteed,
                mode=draw(st.sampled_from(["fixed", "work-conserving"])),
                weight=draw(st.integers(1, 100)),
                priority=draw(st.integers(0, 2)),
                active=draw(st.booleans()),
            )
        )
    return tuple(tenants)


@given(fitting_tenants())
def test_no_more_is_dealt_out_than_there_is(tenants: tuple[Tenant, ...]) -> None:
    assert sum(effective_shares(tenants)) <= MILLI_PERCENT


@given(fitting_tenants())
def test_who_is_active_has_what_was_promised_and_nobody_is_starved(tenants: tuple[Tenant, ...]) -> None:
    for tenant, share in zip(tenants, effective_shares(tenants), strict=True):
        assert share >= (tenant.guaranteed if tenant.active else min(tenant.guaranteed, FLOOR_MILLI))
        assert 1 <= share <= MILLI_PERCENT


@given(fitting_tenants())
def test_a_fixed_share_is_fixed(tenants: tuple[Tenant, ...]) -> None:
    for tenant, share in zip(tenants, effective_shares(tenants), strict=True):
        if tenant.mode == "fixed":
            assert share == tenant.guaranteed


@given(fitting_tenants())
def test_nothing_stays_idle_while_somebody_would_take_it(tenants: tuple[Tenant, ...]) -> None:
    shares = effective_shares(tenants)
    takers = [share for tenant, share in zip(tenants, shares, strict=True) if tenant.active and tenant.mode == "work-conserving"]
    if takers and max(takers) < MILLI_PERCENT:
        assert sum(shares) > MILLI_PERCENT - 1_000, "all but what the rounding leaves"


@given(fitting_tenants(), st.integers(0, 7))
def test_a_tenant_that_wakes_takes_only_what_was_lent(tenants: tuple[Tenant, ...], place: int) -> None:
    awake = tuple(structs.replace(tenant, active=True) if number == place else tenant for number, tenant in enumerate(tenants))
    for tenant, share in zip(tenants, effective_shares(awake), strict=True):
        if tenant.active:
            assert share >= tenant.guaranteed


def conserving(guaranteed: int, **other: int | bool) -> Tenant:
    return Tenant(guaranteed=guaranteed * 1000, mode="work-conserving", weight=guaranteed, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tenants", "percents"),
    [
        pytest.param([conserving(30), conserving(70)], [30, 70], id="both busy"),
        pytest.param([conserving(30), conserving(70, active=False)], [99, 1], id="one idle"),
        pytest.param([conserving(20), conserving(20), conserving(20, active=False)], [49.5, 49.5, 1], id="the idle share by weight"),
        pytest.param([conserving(20, priority=1), conserving(20)], [20, 80], id="the higher priority first"),
        pytest.param([Tenant(guaranteed=30_000), conserving(30)], [30, 70], id="a fixed one neither lends nor borrows"),
        pytest.param([conserving(60), conserving(60)], [60, 60], id="more promised than there is"),
        pytest.param([conserving(50, active=False)], [1], id="nobody wants it"),
    ],
)
def test_who_gets_what(tenants: list[Tenant], percents: list[float]) -> None:
    assert [share / 1000 for share in effective_shares(tenants)] == percents


measures = st.none() | st.floats(0, 100)


@given(st.lists(st.tuples(measures, measures), max_size=200))
def test_the_gain_stays_within_its_bounds(looks: list[tuple[float | None, float | None]]) -> None:
    state = Correction()
    for measured, charged in looks:
        state = corrected(state, measured, charged)
        assert 0.5 <= state.gain <= 2


@pytest.mark.parametrize(("measured", "charged"), [(None, 30.0), (0.0, 30.0), (30.0, None), (30.0, 0.0)])
def test_nothing_is_learnt_from_nothing(measured: float | None, charged: float | None) -> None:
    state = Correction(integral=0.2, gain=1.3)
    assert corrected(state, measured, charged) == state


@pytest.mark.parametrize("truth", [0.6, 0.8, 1.0, 1.25, 1.9])
def test_a_wrong_cost_is_put_right_in_a_few_minutes(truth: float) -> None:
    """The library charges `gain` for what truly costs `truth`: in the end both agree."""
    state = Correction()
    for _ in range(300):
        state = corrected(state, round(50 * truth), 50 * state.gain)
    assert state.gain == pytest.approx(truth, rel=0.03)
