# SPDX-License-Identifier: Apache-2.0
"""A driver's events on the stub's clock, for the core's samples."""

from __future__ import annotations

import ctypes

import compute_rig as rig

EVENT = ctypes.c_void_p


class FakeEvents:
    """A driver's events on the stub's clock: an event is done when the device has come so far."""

    def __init__(self, core: rig.Core) -> None:
        self.core, self.made, self.destroyed, self.broken = core, 0, 0, False
        self.recorded: dict[int, int] = {}
        self.device_free = 0
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

    def _record(self, event: int, stream: int) -> bool:
        self.recorded[event] = max(self.device_free, self.core.read("now"))
        return not self.broken

    def _elapsed(self, start: int, end: int, out: ctypes._Pointer[ctypes.c_uint64]) -> bool:
        out[0] = self.recorded[end] - self.recorded[start]
        return True

    def _destroy(self, event: int) -> None:
        self.destroyed += 1

    def launch(self, function: int, took: int, context: int = 1) -> rig.Launch:
        made = rig.Launch()
        assert self.core.call("hami_launch_begin", 0, function, 1, True, made) == rig.OK
        timed = made.sample and self.core.call("hami_sample_before", self.calls, made, None, context)
        self.device_free = max(self.device_free, self.core.read("now")) + took
        self.core.stub.stub_advance(10_000)  # a launch takes its caller some time
        if timed:
            self.core.call("hami_sample_after", self.calls, made, None, True)
        return made
