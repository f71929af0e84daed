# SPDX-License-Identifier: Apache-2.0
"""A driver's events on the stub's clock, for the core's samples."""

from __future__ import annotations

import ctypes

import compute_rig as rig

EVENT = ctypes.c_void_p


class FakeEvents:
    """A driver's events on the stub's clock: an event is done when its stream has come so far, and the process's turn has come.

    The device runs one kernel after the other; `beside` lets the kernels of different streams run beside each other.
    """

    def __init__(self, core: rig.Core, *, beside: bool = False) -> None:
        self.core, self.made, self.destroyed, self.broken, self.beside = core, 0, 0, False, beside
        self.recorded: dict[int, int] = {}
        self.tails: dict[int, int] = {}
        self.device_free = self.neighbour_until = self.busy = 0
        maker = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(ctypes.c_void_p))(self._create)
        recorder = ctypes.CFUNCTYPE(ctypes.c_bool, EVENT, EVENT)(self._record)
        done = ctypes.CFUNCTYPE(ctypes.c_bool, EVENT)(lambda event: self.recorded[event] <= core.read("now"))
        elapsed = ctypes.CFUNCTYPE(ctypes.c_bool, EVENT, EVENT, ctypes.POINTER(ctypes.c_uint64))(self._elapsed)
        destroy = ctypes.CFUNCTYPE(None, EVENT)(self._destroy)
        self._kept = (maker, recorder, done, elapsed, destroy)
        self.calls = (ctypes.c_void_p * 5)(*(ctypes.cast(each, ctypes.c_void_p).value for each in self._kept))

    def _create(self, out: ctypes._Pointer[ctypes.c_void_p]) -> bool:
        if self.broken:
            return False
        self.made += 1
        out[0] = self.made
        return True

    def _record(self, event: int, stream: int | None) -> bool:
        self.recorded[event] = max(self.tails.get(stream or 0, 0), self.neighbour_until, self.core.read("now"))
        return not self.broken

    def _elapsed(self, start: int, end: int, out: ctypes._Pointer[ctypes.c_uint64]) -> bool:
        if self.recorded[end] < self.recorded[start]:
            return False
        out[0] = self.recorded[end] - self.recorded[start]
        return True

    def _destroy(self, event: int) -> None:
        self.destroyed += 1

    def launch(self, function: int, took: int, *, context: int = 1, stream: int = 0, gap: int = 10_000, late: int = 0) -> rig.Launch:
        """The caller needs `gap` until the launch is handed over, and is held up for another `late` before it comes back."""
        made = rig.Launch()
        assert self.core.call("hami_launch_begin", 0, function, 1, True, made) == rig.OK
        timed = made.sample and self.core.call("hami_sample_before", self.calls, made, stream, context)
        self.core.stub.stub_advance(gap)
        start = max(self.tails.get(stream, 0), 0 if self.beside else self.device_free, self.neighbour_until, self.core.read("now"))
        self.tails[stream] = start + took
        self.busy += max(0, start + took - max(start, self.device_free))
        self.device_free = max(self.device_free, start + took)
        self.core.stub.stub_advance(late)
        if timed:
            self.core.call("hami_sample_after", self.calls, made, stream, True)
        return made

    def synchronize(self) -> None:
        """The program waits until all that it has launched is done."""
        self.core.stub.stub_advance(max(0, self.device_free - self.core.read("now")))
