# SPDX-License-Identifier: Apache-2.0
"""The root of every value: frozen, keyword-only, camelCase on the wire.

Values are what the parts of the system hand to each other. They do no I/O, know no vendor and no
Kubernetes object, and travel as JSON (annotations, inventories, worker messages) through one codec.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of all frozen values. Unknown fields are ignored when decoding: an older reader survives a newer writer."""


V = TypeVar("V")

_encoder = msgspec.json.Encoder(order="deterministic")


def encode(value: object) -> bytes:
    """Encode a value (or a collection of them) as deterministic JSON."""
    return _encoder.encode(value)


def decode(data: bytes | str, type_: type[V]) -> V:
    """Decode JSON into `type_`; raises `msgspec.ValidationError` naming the field, or `DecodeError` on broken JSON."""
    return msgspec.json.decode(data, type=type_)


def to_builtins(value: object) -> object:
    """Plain dicts and lists of a value, for embedding in a larger JSON document."""
    return msgspec.to_builtins(value, str_keys=True)


def from_builtins(data: object, type_: type[V]) -> V:
    """The inverse of `to_builtins`; raises `msgspec.ValidationError` naming the field."""
    return msgspec.convert(data, type=type_)
