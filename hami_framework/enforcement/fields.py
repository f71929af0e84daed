# SPDX-License-Identifier: Apache-2.0
"""Where a field of the generated structures lies."""

from __future__ import annotations

import ctypes


def offset(structure: type[ctypes.LittleEndianStructure], field: str) -> int:
    """Bytes before the field."""
    return int(getattr(structure, field).offset)


def size(structure: type[ctypes.LittleEndianStructure], field: str) -> int:
    """Bytes of the field."""
    return int(getattr(structure, field).size)
