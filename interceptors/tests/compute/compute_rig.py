# SPDX-License-Identifier: Apache-2.0
"""The core's books, linear memory and compute over `stub_core.c`, as a library that Python calls: built once per variant."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

INTERCEPTORS = Path(__file__).resolve().parents[2]
CORE = INTERCEPTORS / "core"
STUB = Path(__file__).parent / "stub_core.c"
UNITS = ("books.c", "linear.c", "compute.c", "cost.c", "sample.c", "process.c", "clock.c", "report.c")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-fPIC", "-fvisibility=hidden", "-pthread", "-DHAMI_TESTING")

NO_DEVICE = -1
OK, OVER_LIMIT, REFUSED = 0, 1, 2
MILLI_PERCENT = 100_000
GAIN_ONE = 65_536
POINTER, CHUNK = 0, 7


class Hold(ctypes.Structure):
    _fields_ = (("device", ctypes.c_int), ("bytes", ctypes.c_uint64), ("flags", ctypes.c_uint32))


class Entry(ctypes.Structure):
    _fields_ = (("key", ctypes.c_uint64), ("hold", Hold), ("tag", ctypes.c_uint64), ("references", ctypes.c_uint32))


class Linear(ctypes.Structure):
    _fields_ = (("granule", ctypes.c_uint64), ("small_below", ctypes.c_uint64), ("chunk", ctypes.c_uint64))


class Launch(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_int),
        ("key", ctypes.c_uint64),
        ("charged_ns", ctypes.c_uint64),
        ("sample", ctypes.c_bool),
        ("pair", ctypes.c_uint32),
    )


Match = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Entry), ctypes.c_void_p)
U64, INT, BOOL = ctypes.c_uint64, ctypes.c_int, ctypes.c_bool
_HOLD, _ENTRY, _LINEAR, _LAUNCH = (ctypes.POINTER(each) for each in (Hold, Entry, Linear, Launch))
_CALLS: dict[str, tuple[Any, ...]] = {
    "hami_book_keep": (INT, INT, U64, _HOLD, U64, U64),
    "hami_book_take": (BOOL, INT, U64, _ENTRY),
    "hami_book_return": (None, INT, _ENTRY),
    "hami_book_find": (BOOL, INT, U64, _ENTRY),
    "hami_book_refer": (ctypes.c_int64, INT, U64, ctypes.c_int32, _ENTRY),
    "hami_book_sweep": (ctypes.c_size_t, INT, Match, ctypes.c_void_p),
    "hami_linear_reserve": (INT, _LINEAR, INT, U64, _HOLD),
    "hami_linear_keep": (INT, _LINEAR, U64, U64, _HOLD),
    "hami_linear_take": (BOOL, _LINEAR, U64, _ENTRY),
    "hami_linear_freed": (None, _LINEAR, _ENTRY),
    "hami_linear_return": (None, _LINEAR, _ENTRY),
    "hami_linear_sweep": (ctypes.c_size_t, _LINEAR, Match, ctypes.c_void_p),
    "hami_reserve": (INT, INT, U64, _HOLD),
    "hami_give_back": (None, _HOLD),
    "hami_launch_begin": (INT, INT, U64, U64, BOOL, _LAUNCH),
    "hami_launch_failed": (None, _LAUNCH),
    "hami_launch_observed": (None, INT, U64, U64, U64),
    "hami_compute_limited": (BOOL,),
    "hami_sample_before": (BOOL, ctypes.c_void_p, _LAUNCH, ctypes.c_void_p, U64),
    "hami_sample_after": (None, ctypes.c_void_p, _LAUNCH, ctypes.c_void_p, BOOL),
    "hami_sample_forget": (None, U64),
}


def sources() -> list[str]:
    """All that a program of these tests is made of, but for its own `main`."""
    return [*(str(CORE / unit) for unit in UNITS), str(STUB)]


def compiled(output: Path, *arguments: str) -> Path:
    """gcc with the house's flags; its complaints are the test's."""
    done = subprocess.run(["gcc", *FLAGS, f"-iquote{CORE}", *arguments, "-o", str(output), "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


class Core:
    """The library; `call("hami_…")` is a typed function, `stub` has the stub's strings."""

    def __init__(self, path: Path) -> None:
        self.stub = ctypes.CDLL(str(path))
        for name in ("held", "high_water", "tat", "launches", "waited", "busy", "now", "slept", "sleeps"):
            getattr(self.stub, f"stub_{name}").restype = U64
        for name in ("fake_clock", "advance", "set_tat", "memory_limit"):
            getattr(self.stub, f"stub_{name}").argtypes = (U64,)
        self.stub.stub_control.argtypes = (ctypes.c_uint32, ctypes.c_uint32, U64)
        self._made: dict[str, Callable[..., Any]] = {}

    def call(self, name: str, *arguments: Any) -> Any:
        if name not in self._made:
            giver = getattr(self.stub, f"call_{name}")
            giver.restype = ctypes.c_void_p
            result, *parameters = _CALLS[name]
            self._made[name] = ctypes.CFUNCTYPE(result, *parameters)(giver())
        return self._made[name](*arguments)

    def begin(self, *, milli: int = 50_000, burst_us: int = 0, devices: int = 1) -> None:
        self.stub.stub_begin(devices, milli, burst_us)

    def read(self, name: str) -> int:
        return int(getattr(self.stub, f"stub_{name}")())

    @cached_property
    def functions(self) -> list[int]:
        """A supply of function addresses that no test has launched yet."""
        return list(range(1_000_000, 0, -16))
