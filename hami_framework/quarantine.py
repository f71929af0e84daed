# SPDX-License-Identifier: Apache-2.0
"""Runs somebody else's function on a budget, inside this process, and keeps away from it for a while when it misbehaves.

Python cannot stop a thread, so a call that overruns is abandoned and its caller gets an error in time; nobody asks again
before the abandoned call has ended and the pause is over. (On a node, where plugins touch native libraries, the budget is
held by killing a process instead: `worker/`.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from hami_framework.errors import PluginError

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class _Call(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.done = threading.Event()
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # a plugin's SystemExit must not look like an answer
            self.error = error
        finally:
            self.done.set()


class Guarded:
    """The gate before one hook of one vendor."""

    def __init__(self, vendor: str, hook: str, budget_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._vendor = vendor
        self._hook = hook
        self._budget = budget_seconds
        self._clock = clock
        self._until = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._runaway: _Call[object] | None = None
        self.reason = ""
        """Why the vendor is kept away from; empty when it is not."""

    def run(self, function: Callable[[], T]) -> T:
        """The function's result. Raises `PluginError` when it fails, overruns its budget, or is still in quarantine."""
        if self._runaway is not None and self._runaway.done.is_set():
            self._runaway = None
        if self._runaway is not None or self._clock() < self._until:
            raise PluginError(self._vendor, self._hook, f"in quarantine: {self.reason}")
        call = _Call(function)
        threading.Thread(target=call.run, name=f"{self._vendor}-{self._hook}", daemon=True).start()
        if not call.done.wait(self._budget):
            self._runaway = call  # type: ignore[assignment]  # only its `done` is looked at
            raise self._misbehaved(f"overran its budget of {self._budget * 1000:.0f} ms")
        if call.error is not None:
            raise self._misbehaved(f"{type(call.error).__name__}: {call.error}") from call.error
        self._pause = FIRST_PAUSE_SECONDS
        self.reason = ""
        return call.result  # type: ignore[return-value]  # set whenever there is no error

    def _misbehaved(self, problem: str) -> PluginError:
        self.reason = problem
        self._until = self._clock() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        return PluginError(self._vendor, self._hook, problem)
