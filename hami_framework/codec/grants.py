# SPDX-License-Identifier: Apache-2.0
"""A grant as it travels: one versioned JSON annotation on the pod, `docs/grant-format.md`.

A newer minor version only adds fields, which an older reader ignores. A newer major version is refused. The previous
major version stays readable: its reader is one entry in `_UPGRADES`, which rewrites that form into the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hami_framework.errors import FormatError
from hami_framework.model import PodGrant, encode, from_builtins, to_builtins

GRANT_ANNOTATION = "hami.io/grant"

VERSION = "1.0"
"""Major and minor version of the annotation's schema; independent of the version of this package."""

_MAJOR = int(VERSION.partition(".")[0])
_UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Major version N-1 → how its form becomes that of N. Empty while there is only one major version."""


def encode_grant(grant: PodGrant) -> str:
    """The annotation's text: deterministic, so that equal grants are equal texts."""
    fields = to_builtins(grant)
    assert isinstance(fields, dict)
    return encode({"version": VERSION, **fields}).decode()


def decode_grant(text: str) -> PodGrant:
    """Read the annotation; raises `FormatError` that says what is wrong and what can be read."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise FormatError(f"annotation {GRANT_ANNOTATION} cannot be read: {error}") from error
    major = _major(fields.pop("version", None))
    if major != _MAJOR:
        fields = _UPGRADES[major](fields)
    try:
        return from_builtins(fields, PodGrant)
    except msgspec.ValidationError as error:
        raise FormatError(f"annotation {GRANT_ANNOTATION} is not a grant of version {major}: {error}") from error


def _major(version: object) -> int:
    major, dot, minor = version.partition(".") if isinstance(version, str) else ("", "", "")
    if not (dot and major.isdecimal() and minor.isdecimal()):
        raise FormatError(f"annotation {GRANT_ANNOTATION} has no version this program understands: {version!r} (it writes {VERSION})")
    readable = sorted({_MAJOR, *_UPGRADES})
    if int(major) not in readable:
        known = ", ".join(f"{known}.x" for known in readable)
        raise FormatError(
            f"annotation {GRANT_ANNOTATION} has version {version}, but this program reads {known} only: "
            "upgrade whoever reads it before whoever writes it; nothing was changed"
        )
    return int(major)
