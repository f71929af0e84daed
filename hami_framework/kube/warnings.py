# SPDX-License-Identifier: Apache-2.0
"""What the API server says beside its answer: `Warning` headers, meant for the person at the keyboard (admission uses them)."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WARNING = re.compile(r'299 \S+ "(?P<text>(?:[^"\\]|\\.)*)"')


def texts(headers: Iterable[str]) -> list[str]:
    """The texts of `Warning` headers with code 299, the only one that the API server sends (RFC 7234, section 5.5)."""
    return [re.sub(r"\\(.)", r"\1", found["text"]) for header in headers for found in _WARNING.finditer(header)]
