# SPDX-License-Identifier: Apache-2.0
"""The oracle: what a fake machine's devices really gave away, and to whom.

All fake libraries of one machine share a card (`fakes/hami_card.h`), a file beside the machine file. What it says is what the
silicon would know; a limit holds when no container's `high_water` was ever above it.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import msgspec

from hami_framework.errors import ConfigError
from hami_framework.testing.fakes import build_card_reader

_FIRST_GUESS = 1 << 16


class CardContainer(msgspec.Struct, frozen=True, kw_only=True):
    """What one container (the value of `HAMI_GRANT`; "-" for none) had of one device."""

    used: int
    """Bytes of physical memory that its living processes hold."""
    high_water: int
    """The most bytes that it ever held at once."""
    busy_ns: int
    """Device time of all its kernels, those still to run included, times the share of the device that each took."""


class CardProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One living process on one device."""

    pid: int
    host_pid: int
    container: str
    used: int
    utilization: int
    kinds: dict[str, int]
    """Bytes by what they were taken for: linear, pool, handle, array, managed, context, graph, other."""


class CardDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device, in the order of the machine file."""

    capacity: int
    """0 until somebody asked for memory."""
    used: int
    high_water: int
    refused: int
    """How many admissions the device itself refused."""
    busy_ns: int
    """Time in which at least one kernel ran, or is scheduled to."""
    kernels: int
    utilization: int
    containers: dict[str, CardContainer]
    processes: tuple[CardProcess, ...]


class CardReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a card says at one moment."""

    swept: int
    """How many dead processes' memory was taken back."""
    devices: tuple[CardDevice, ...]


class Card:
    """The card of the machine whose file is at `machine_file`. There is none until a fake library was first used."""

    def __init__(self, machine_file: str | os.PathLike[str], cache_directory: Path | None = None) -> None:
        self.path = Path(f"{os.fspath(machine_file)}.card")
        self._cache_directory = cache_directory

    def report(self) -> CardReport:
        """What it says now. Raises `ConfigError` while there is no card."""
        library = _reader(build_card_reader(self._cache_directory))
        size = _FIRST_GUESS
        while True:
            buffer = ctypes.create_string_buffer(size)
            needed = library.card_report(os.fsencode(self.path), buffer, size)
            if needed < 0:
                raise ConfigError(f"there is no card at {self.path}: it appears when a process first uses a fake library with this machine file")
            if needed < size:
                return msgspec.json.decode(buffer.value, type=CardReport)
            size = needed + _FIRST_GUESS

    @property
    def devices(self) -> tuple[CardDevice, ...]:
        return self.report().devices


@cache
def _reader(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.card_report.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    library.card_report.restype = ctypes.c_long
    return library
