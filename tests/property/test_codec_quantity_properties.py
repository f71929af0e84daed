# SPDX-License-Identifier: Apache-2.0
"""Quantities under random numbers: rounding never gives less, more is never less, and the API server changes nothing."""

from __future__ import annotations

import os
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hami_framework.codec import quantity
from hami_framework.model import KIB, MIB

pytestmark = pytest.mark.deep

EXAMPLES = settings(max_examples=20_000 if os.environ.get("HAMI_TEST_DEEP") else 300, derandomize=not os.environ.get("HAMI_TEST_DEEP"), deadline=None)

UNITS = st.sampled_from([MIB, 256 * MIB, 512 * MIB, 1024 * MIB])
BINARY = st.builds("{}{}".format, st.integers(1, 2**20), st.sampled_from(["Ki", "Mi", "Gi"]))
DECIMAL = st.builds("{}{}".format, st.integers(1, 10**5), st.sampled_from(["", "k", "e1", "e3"]))
FRACTIONAL = st.builds("{}.{}{}".format, st.integers(0, 5000), st.integers(0, 999), st.sampled_from(["", "k", "M", "Ki", "Mi", "Gi"]))

_BINARY_SUFFIXES = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
_DECIMAL_SUFFIXES = {-3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}


def rewritten(raw: str) -> str:
    """What the API server stores for `raw`: the canonical form of k8s.io/apimachinery `Quantity.CanonicalizeBytes`."""
    parsed = quantity.parse(raw)
    value = parsed.value
    if parsed.binary and abs(value) >= KIB:
        amount, power = -(-value.numerator // value.denominator), 0
        while amount % KIB == 0 and power < len(_BINARY_SUFFIXES) - 1:
            amount, power = amount // KIB, power + 1
        return f"{amount}{_BINARY_SUFFIXES[power]}"
    exponent = max((power for power in _DECIMAL_SUFFIXES if (value / Fraction(10) ** power).denominator == 1), default=-3)
    amount = -(-(value / Fraction(10) ** exponent).numerator // (value / Fraction(10) ** exponent).denominator)
    suffix = f"e{exponent}" if "e" in raw and exponent else _DECIMAL_SUFFIXES[exponent]
    return f"{amount}{suffix}"


def test_the_oracle_rewrites_as_the_api_server_does() -> None:
    assert [rewritten(raw) for raw in ("4000", "3072Mi", "0.5Gi", "500", "1500m", "1e3", "1025Ki")] == ["4k", "3Gi", "512Mi", "500", "1500m", "1e3", "1025Ki"]


@EXAMPLES
@given(raw=BINARY, unit_bytes=UNITS)
def test_bytes_are_rounded_up_by_less_than_a_unit(raw: str, unit_bytes: int) -> None:
    amount = quantity.memory_bytes(raw, unit_bytes)
    assert amount % unit_bytes == 0
    assert 0 <= amount - quantity.parse(raw).value < unit_bytes


@EXAMPLES
@given(one=st.one_of(BINARY, DECIMAL), other=st.one_of(BINARY, DECIMAL), unit_bytes=UNITS)
def test_more_is_never_less(one: str, other: str, unit_bytes: int) -> None:
    def exact(raw: str) -> Fraction:
        parsed = quantity.parse(raw)
        return parsed.value if parsed.binary else parsed.value * unit_bytes

    assume(exact(one) <= exact(other))
    assert quantity.memory_bytes(one, unit_bytes) <= quantity.memory_bytes(other, unit_bytes)


@EXAMPLES
@given(raw=st.one_of(BINARY, DECIMAL, FRACTIONAL), unit_bytes=UNITS)
def test_the_api_servers_rewriting_changes_no_amount(raw: str, unit_bytes: int) -> None:
    try:
        before = quantity.memory_bytes(raw, unit_bytes)
    except ValueError:
        return
    assert quantity.memory_bytes(rewritten(raw), unit_bytes) == before
    assert quantity.equal(raw, rewritten(raw))


@EXAMPLES
@given(raw=st.text(max_size=12))
def test_any_text_is_read_or_refused(raw: str) -> None:
    try:
        amount = quantity.memory_bytes(raw, MIB)
    except ValueError:
        return
    assert amount > 0
