# SPDX-License-Identifier: Apache-2.0
"""What agent and worker say to each other: length-prefixed JSON frames over a unix stream socket.

A frame is four bytes of big-endian length and one message. The worker opens with a `Hello`; then the agent asks, one call
at a time, and the worker answers each. What a hook is given and must answer is typed here once, for both ends.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hami_framework.model import ContainerEdits, Device, Enforcement, Grant, Health, Host, Usage, Value, VendorInfo

LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 16 * 1024 * 1024


class Hello(Value, frozen=True, kw_only=True):
    """The worker's first word: who it speaks for, or why it cannot."""

    info: VendorInfo | None = None
    hooks: tuple[str, ...] = ()
    problem: str = ""


class Call(Value, frozen=True, kw_only=True):
    """The agent's question."""

    number: int
    hook: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)


class Answer(Value, frozen=True, kw_only=True):
    """The worker's answer to the call of the same number: a result, or a problem in words."""

    number: int
    result: Any = None
    problem: str = ""


ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "hami_discover": {"host": Host},
    "hami_health": {"host": Host, "devices": tuple[Device, ...]},
    "hami_allocate": {"grant": Grant, "devices": tuple[Device, ...]},
    "hami_enforce": {"grant": Grant, "devices": tuple[Device, ...]},
    "hami_release": {"grant": Grant, "devices": tuple[Device, ...]},
    "hami_usage": {"host": Host, "devices": tuple[Device, ...]},
}

RESULTS: Mapping[str, Any] = {
    "hami_discover": tuple[Device, ...] | None,
    "hami_health": dict[str, Health] | None,
    "hami_allocate": ContainerEdits | None,
    "hami_enforce": Enforcement | None,
    "hami_release": None,
    "hami_usage": tuple[Usage, ...] | None,
}

BUDGET_SECONDS: Mapping[str, float] = {
    "hami_discover": 10.0,
    "hami_health": 1.0,
    "hami_allocate": 20.0,
    "hami_enforce": 20.0,
    "hami_release": 20.0,
    "hami_usage": 1.0,
}
"""How long a hook may take before its worker is killed; stated in `hookspecs.py` and tested against it."""


def frame(message: Value) -> bytes:
    """One message as it goes over the socket."""
    body = msgspec.json.encode(message)
    return LENGTH.pack(len(body)) + body


def plain(value: object) -> Any:
    """A hook's answer as plain data; iterables become lists. Raises TypeError for what has no plain form."""
    if value is not None and not isinstance(value, Value | Mapping | Sequence | str | bytes):
        value = list(value)  # type: ignore[call-overload]  # generators are welcome; anything else raises TypeError
    return msgspec.to_builtins(value, str_keys=True)
