# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities, read exactly and turned into the amounts that the model counts in.

Rules (tables in `docs/resources.md`):

- a number without a suffix, or with a decimal one (`k`, `M`, `e3`), counts the *resource's own unit*. The API server
  rewrites `4000` to `4k`, so both have to be the same amount;
- a binary suffix (`Ki` … `Ei`) on a memory resource means *bytes*, rounded up to the resource's unit;
- a fraction of a unit (`500m`, `0.5`) is refused, and so is a negative amount: nothing is guessed.

Grammar and suffixes: k8s.io/apimachinery, `pkg/api/resource/quantity.go`.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from hami_framework.model import KIB, Value, round_up

RawQuantity = str | int | float
"""A quantity as it stands in JSON; the API server writes strings, people's files hold numbers too."""

LARGEST = 2**63 - 1
"""Kubernetes holds extended resources in a signed 64-bit integer."""

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 10**3), "": Fraction(1)} | {
    suffix: Fraction(10 ** (3 * power)) for power, suffix in enumerate("kMGTPE", start=1)
}
_QUANTITY = re.compile(r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,2}))?")


class Quantity(Value, frozen=True, kw_only=True):
    """A quantity's exact value, and whether it was written with a binary suffix (then it counts bytes)."""

    numerator: int
    denominator: int = 1
    binary: bool = False

    @property
    def value(self) -> Fraction:
        return Fraction(self.numerator, self.denominator)


def parse(raw: RawQuantity) -> Quantity:
    """Read a quantity; raises `ValueError` with words for a person when it is not one."""
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise ValueError(f"{raw!r} is not a quantity")
    return _parsed(raw if isinstance(raw, str) else str(raw))


@functools.lru_cache(maxsize=4096)
def _parsed(raw: str) -> Quantity:
    """Exact arithmetic takes some 20 µs, and pods ask for a few amounts again and again."""
    found = _QUANTITY.fullmatch(raw.strip())
    if found is None:
        raise ValueError(f"{raw!r} is not a quantity")
    suffix = found["suffix"] or ""
    scale = Fraction(_BINARY[suffix]) if suffix in _BINARY else _DECIMAL[suffix]
    if found["exponent"]:
        scale = Fraction(10) ** int(found["exponent"])
    value = Fraction(found["number"]) * scale
    if abs(value) > LARGEST:
        raise ValueError(f"{raw!r} is more than Kubernetes can hold")
    return Quantity(numerator=value.numerator, denominator=value.denominator, binary=suffix in _BINARY)


def whole(raw: RawQuantity) -> int:
    """A whole, non-negative number, whatever it counts; raises `ValueError`."""
    value = parse(raw).value
    if value < 0:
        raise ValueError(f"{raw!r} is negative")
    if value.denominator != 1:
        raise ValueError(f"{raw!r} is not a whole number")
    return value.numerator


def percent(raw: RawQuantity) -> int:
    """A whole percentage from 1 to 100; raises `ValueError`."""
    value = whole(raw)
    if not 1 <= value <= 100:
        raise ValueError(f"{raw!r} is not a percentage from 1 to 100")
    return value


def memory_bytes(raw: RawQuantity, unit_bytes: int) -> int:
    """An amount of memory in bytes, always a whole number of units of `unit_bytes`; raises `ValueError`.

    A binary quantity must be whole KiB: the API server rewrites anything finer (`1.5Ki`) to a plain number of bytes,
    which could then no longer be told from a number of units.
    """
    quantity = parse(raw)
    if not quantity.binary:
        amount = whole(raw) * unit_bytes
    elif quantity.value < 0:
        raise ValueError(f"{raw!r} is negative")
    elif quantity.value % KIB:
        raise ValueError(f"{raw!r} is not a whole number of KiB")
    else:
        amount = round_up(quantity.value.numerator, unit_bytes)
    if amount == 0:
        raise ValueError(f"{raw!r} is no memory at all")
    if amount > LARGEST:
        raise ValueError(f"{raw!r} is more than Kubernetes can hold")
    return amount


def equal(one: RawQuantity, other: RawQuantity) -> bool:
    """True when both spell the same amount (`4000` and `4k`; `4096` and `4Ki` do not: units against bytes)."""
    first, second = parse(one), parse(other)
    return first.value == second.value and first.binary == second.binary
