# SPDX-License-Identifier: Apache-2.0
"""Quantities rewritten as the API server rewrites them: `4000` comes back as `4k`, `3072Mi` as `3Gi`, `0.5` as `500m`.

Source: `CanonicalizeBytes` in k8s.io/apimachinery, `pkg/api/resource/quantity.go`.
"""

from __future__ import annotations

import re
from fractions import Fraction

from hami_framework.codec import quantity

_EXPONENT = re.compile(r"[eE][+-]?\d+$")
_DECIMAL_SUFFIXES = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E"}
_BINARY_SUFFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def canonical(raw: quantity.RawQuantity) -> str:
    """The same amount in the server's spelling. Raises `ValueError` when it is not a quantity."""
    parsed = quantity.parse(raw)
    value = parsed.value
    if value == 0:
        return "0"
    if parsed.binary and abs(value) >= 1024 and value.denominator == 1:
        return _binary(value.numerator)
    power = _decimal_power(value)
    mantissa = value / Fraction(1000) ** power
    if _EXPONENT.search(str(raw).strip()):
        return f"{mantissa}e{3 * power}" if power else f"{mantissa}"
    return f"{mantissa}{_DECIMAL_SUFFIXES[power]}"


def _binary(value: int) -> str:
    power = 0
    while power < len(_BINARY_SUFFIXES) - 1 and value % 1024 == 0:
        value, power = value // 1024, power + 1
    return f"{value}{_BINARY_SUFFIXES[power]}"


def _decimal_power(value: Fraction) -> int:
    """The largest power of 1000 that leaves a whole number."""
    return next((power for power in range(6, -4, -1) if (value / Fraction(1000) ** power).denominator == 1), -3)


def amount(raw: quantity.RawQuantity) -> Fraction:
    """What a quantity is worth, exactly. Raises `ValueError`."""
    return quantity.parse(raw).value
