# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with an API server, on demand: slow answers, refusals, and answers lost after the write was done."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from hami_framework.sandbox.status import ApiRefusal


@dataclass
class Fault:
    """Applies to the next `times` requests whose `"METHOD /path"` matches; None: to all, until cleared."""

    pattern: re.Pattern[str]
    times: int | None = 1
    delay_s: float = 0.0
    refuse: ApiRefusal | None = None
    """Answer this instead of doing anything."""
    lose: ApiRefusal | None = None
    """Do the work, then answer this: the outcome is unknown to the client."""


@dataclass
class Faults:
    """The faults in force. Nothing is wrong by default."""

    active: list[Fault] = field(default_factory=list)

    def delay(self, pattern: str, seconds: float, times: int | None = 1) -> None:
        """Answer late."""
        self.active.append(Fault(re.compile(pattern), times, delay_s=seconds))

    def refuse(self, pattern: str, code: int, message: str = "injected refusal", times: int | None = 1) -> None:
        """Answer an error before anything is done."""
        self.active.append(Fault(re.compile(pattern), times, refuse=ApiRefusal(code, message)))

    def lose_answer(self, pattern: str, code: int = 500, message: str = "injected: the answer was lost after the write", times: int | None = 1) -> None:
        """Do the work and answer an error all the same."""
        self.active.append(Fault(re.compile(pattern), times, lose=ApiRefusal(code, message)))

    def clear(self) -> None:
        self.active.clear()

    async def before(self, request: str) -> ApiRefusal | None:
        """Called ahead of each request; waits, raises, or hands back what to answer once the work is done."""
        fault = self._take(request)
        if fault is None:
            return None
        await asyncio.sleep(fault.delay_s)
        if fault.refuse:
            raise fault.refuse
        return fault.lose

    def _take(self, request: str) -> Fault | None:
        fault = next((fault for fault in self.active if fault.pattern.search(request)), None)
        if fault is not None and fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                self.active.remove(fault)
        return fault
