# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities: what each spelling amounts to, and which spellings are refused (`docs/resources.md`)."""

from __future__ import annotations

import pytest

from hami_framework.codec import quantity
from hami_framework.model import GIB, MIB

MEMORY = [
    pytest.param("3000", MIB, 3000 * MIB, id="a plain number counts units"),
    pytest.param(3000, MIB, 3000 * MIB, id="numbers in JSON are as good as text"),
    pytest.param("4k", MIB, 4000 * MIB, id="k is a thousand units, as the API server rewrites 4000"),
    pytest.param("0.5k", MIB, 500 * MIB, id="a decimal fraction that comes out whole"),
    pytest.param("4e3", MIB, 4000 * MIB, id="exponent"),
    pytest.param("1M", MIB, 1_000_000 * MIB, id="M is a million units"),
    pytest.param("1000m", MIB, MIB, id="a thousand thousandths"),
    pytest.param("3Gi", MIB, 3 * GIB, id="Gi means bytes"),
    pytest.param("1.5Gi", MIB, 1536 * MIB, id="a fraction of a Gi"),
    pytest.param("1025Ki", MIB, 2 * MIB, id="bytes are rounded up to the unit"),
    pytest.param("1Ti", MIB, 1024 * GIB, id="Ti"),
    pytest.param("20", 256 * MIB, 5120 * MIB, id="units of 256 MiB"),
    pytest.param("3Gi", 256 * MIB, 3 * GIB, id="bytes that are whole units of 256 MiB"),
    pytest.param("300Mi", 256 * MIB, 512 * MIB, id="bytes rounded up to 256 MiB"),
    pytest.param(" 8Gi ", MIB, 8 * GIB, id="blanks around it"),
]


@pytest.mark.parametrize(("raw", "unit_bytes", "expected"), MEMORY)
def test_memory(raw: quantity.RawQuantity, unit_bytes: int, expected: int) -> None:
    assert quantity.memory_bytes(raw, unit_bytes) == expected


REFUSED_MEMORY = [
    pytest.param("500m", "not a whole number", id="half a unit"),
    pytest.param("0.5", "not a whole number", id="half a unit, as a decimal"),
    pytest.param("-1", "negative", id="less than nothing"),
    pytest.param("-1Gi", "negative", id="negative bytes"),
    pytest.param("0", "no memory at all", id="nothing"),
    pytest.param("0Gi", "no memory at all", id="nothing, in Gi"),
    pytest.param("1.5Ki", "whole number of KiB", id="finer than the API server keeps apart from plain numbers"),
    pytest.param("3GiB", "not a quantity", id="a suffix that Kubernetes does not have"),
    pytest.param("3 Gi", "not a quantity", id="blank inside"),
    pytest.param("3g", "not a quantity", id="lower-case g"),
    pytest.param("lots", "not a quantity", id="words"),
    pytest.param("", "not a quantity", id="empty"),
    pytest.param(True, "not a quantity", id="a boolean"),
    pytest.param(None, "not a quantity", id="null"),
    pytest.param("9E", "more than Kubernetes can hold", id="units that overflow once they are bytes"),
    pytest.param("16Ei", "more than Kubernetes can hold", id="overflow"),
]


@pytest.mark.parametrize(("raw", "words"), REFUSED_MEMORY)
def test_memory_refused(raw: quantity.RawQuantity, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        quantity.memory_bytes(raw, MIB)


@pytest.mark.parametrize(("raw", "expected"), [("1", 1), (100, 100), ("0.1k", 100), ("30", 30)])
def test_percent(raw: quantity.RawQuantity, expected: int) -> None:
    assert quantity.percent(raw) == expected


@pytest.mark.parametrize("raw", ["0", "101", "1k", "-5", "33.3", "30%", "500m"])
def test_percent_refused(raw: str) -> None:
    with pytest.raises(ValueError, match=r"percentage from 1 to 100|negative|whole number|not a quantity"):
        quantity.percent(raw)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("4000", "4k", True), (2, "2", True), ("1024Mi", "1Gi", True), ("4096", "4Ki", False), ("1", "2", False)],
)
def test_equal(one: quantity.RawQuantity, other: quantity.RawQuantity, same: bool) -> None:
    assert quantity.equal(one, other) is same
