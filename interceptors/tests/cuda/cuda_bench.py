# SPDX-License-Identifier: Apache-2.0
"""Calls of the CUDA driver by name, with one symbol that may go around the hooks, and what our library has charged since.

A test of a hook proves nothing if it would pass without that hook. So each row of the table (cuda_rows.py) is driven twice: with
all hooks, and with its own one bypassed, where the call goes to the driver's code by its address in the file.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset

MIB = 1 << 20
u64, size_t, void, integer = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int


class DlInfo(ctypes.Structure):
    _fields_ = (("file", ctypes.c_char_p), ("base", void), ("symbol", ctypes.c_char_p), ("address", void))


class Refused(Exception):
    """The driver, or a hook, answered a code that is not 0."""

    def __init__(self, symbol: str, code: int) -> None:
        super().__init__(f"{symbol}: {code}")
        self.code = code


def owner(address: int) -> str:
    """The file name of the shared object that has this address in it."""
    said = DlInfo()
    ctypes.CDLL(None).dladdr(void(address), ctypes.byref(said))
    return os.path.basename((said.file or b"?").decode())


class Bench:
    """The driver in this process, and this process's slot in the container's state file."""

    def __init__(self, library: str, offsets: Mapping[str, int], state: Path, bypassed: str = "") -> None:
        anchor = "cuDriverGetVersion" if library.startswith("libcuda") else "nvmlInit_v2"  # not hooked: the address is the driver's own
        self.driver = ctypes.CDLL(library)
        self.bypassed = bypassed
        self._offsets, self._state = offsets, state
        said = DlInfo()
        ctypes.CDLL(None).dladdr(ctypes.cast(getattr(self.driver, anchor), void), ctypes.byref(said))
        self._base = int(said.base or 0)

    # -- calls ---------------------------------------------------------------------------------------------------

    def code(self, symbol: str, *arguments: Any) -> int:
        """What it answers."""
        if symbol == self.bypassed:
            return self.raw(symbol, *arguments)
        return int(getattr(self.driver, symbol)(*arguments))

    def raw(self, symbol: str, *arguments: Any) -> int:
        """What the driver itself answers: no hook is asked."""
        return int(ctypes.CFUNCTYPE(integer)(self._base + self._offsets[symbol])(*arguments))

    def __call__(self, symbol: str, *arguments: Any) -> None:
        code = self.code(symbol, *arguments)
        if code != 0:
            raise Refused(symbol, code)

    def make(self, symbol: str, *arguments: Any, kind: type = u64, start: int = 0) -> int:
        """Calls a function whose first argument is what it makes."""
        out = kind(start)
        self(symbol, ctypes.byref(out), *arguments)
        return int(out.value or 0)

    def begin(self, device: int = 0) -> None:
        """The device's primary context, current in this thread."""
        self("cuInit", 0)
        self("cuCtxSetCurrent", void(self.make("cuDevicePrimaryCtxRetain", device)))

    @contextmanager
    def failing(self, **codes: int) -> Iterator[None]:
        """While it lasts, the driver answers these codes."""
        os.environ["HAMI_FAKE_FAULTS"] = " ".join(f"{symbol}={code}" for symbol, code in codes.items())
        yield
        os.environ["HAMI_FAKE_FAULTS"] = ""

    # -- what is charged -----------------------------------------------------------------------------------------

    def slot(self) -> layout.Slot | None:
        """This process's slot, if it has one already."""
        slots = (layout.Slot * 1024).from_buffer_copy(self._state.read_bytes(), offset(layout.StateFile, "slots"))
        return next((slot for slot in slots if slot.pid == os.getpid() and slot.state & 0xFFFFFFFF == layout.SlotState.LIVE), None)

    def held(self, device: int = 0) -> int:
        """MiB charged to this process."""
        slot = self.slot()
        return 0 if slot is None else int(slot.devices[device].held_bytes) // MIB

    def bytes_held(self, device: int = 0) -> int:
        slot = self.slot()
        return 0 if slot is None else int(slot.devices[device].held_bytes)

    @contextmanager
    def charged(self, device: int = 0) -> Iterator[list[int]]:
        """Appends, at its end, how many MiB more are charged than at its beginning."""
        before, change = self.held(device), list[int]()
        yield change
        change.append(self.held(device) - before)
