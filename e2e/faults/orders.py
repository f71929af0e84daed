# SPDX-License-Identifier: Apache-2.0
"""Which faults are in force: pure bookkeeping, read by the proxy for each request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["slow", "answer", "swallow", "cut", "twice", "blackhole", "expire"]


@dataclass
class Fault:
    """Applies to the next `times` requests whose `METHOD /path?query` matches; None: to all, until cleared.

    `slow`: forward after `seconds`. `answer`: a status of our own, the API server is not asked. `swallow`: the API server
    carries the request out, and the client gets a reset instead of the answer. `cut`: the answer ends in the middle.
    `twice`: the request reaches the API server two times. `blackhole`: the request is taken and nothing ever comes.
    `expire`: a watch that opens and at once gets the ERROR event for 410 Gone.
    """

    pattern: re.Pattern[str]
    kind: Kind
    times: int | None = 1
    seconds: float = 0.0
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    hits: int = 0


@dataclass
class Orders:
    """Faults in the order in which they were given; the first that matches a request applies."""

    active: list[Fault] = field(default_factory=list)
    past: list[Fault] = field(default_factory=list)

    def add(self, pattern: str, kind: Kind, *, times: int | None = 1, seconds: float = 0.0, status: int = 500, **headers: str) -> Fault:
        """`headers`: of an `answer`; `_` stands for `-`."""
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        fault = Fault(re.compile(pattern), kind, times, seconds, status, named)
        self.active.append(fault)
        return fault

    def clear(self) -> None:
        self.past += self.active
        self.active = []

    def take(self, request: str) -> Fault | None:
        """The fault for this request, which counts as used."""
        fault = next((fault for fault in self.active if fault.pattern.search(request)), None)
        if fault is None:
            return None
        fault.hits += 1
        if fault.times is not None and fault.hits >= fault.times:
            self.active.remove(fault)
            self.past.append(fault)
        return fault
