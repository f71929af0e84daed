# SPDX-License-Identifier: Apache-2.0
"""What holds a limit, stated for memory, compute and faults separately, and never better than it is."""

from __future__ import annotations

from typing import Literal

from hami_framework.model.base import Value
from hami_framework.model.edits import ContainerEdits

Level = Literal["hard", "soft", "advisory"]
"""`hard`: driver or hardware refuses whatever the process does; `soft`: cooperative; `advisory`: measured only."""

LEVELS: tuple[Level, ...] = ("advisory", "soft", "hard")
"""Weakest first."""


class Isolation(Value, frozen=True, kw_only=True):
    """How strongly each kind of neighbour's harm is kept out."""

    memory: Level = "advisory"
    compute: Level = "advisory"
    fault: Level = "advisory"

    def at_least(self, needed: Isolation) -> bool:
        """True when every aspect is as strong as `needed` asks or stronger."""
        rank = LEVELS.index
        return rank(self.memory) >= rank(needed.memory) and rank(self.compute) >= rank(needed.compute) and rank(self.fault) >= rank(needed.fault)


HARD = Isolation(memory="hard", compute="hard", fault="hard")
SOFT = Isolation(memory="soft", compute="soft")
ADVISORY = Isolation()


class Enforcement(Value, frozen=True, kw_only=True):
    """The answer of `hami_enforce`: how strong, held by what, and what the container needs for it."""

    isolation: Isolation = ADVISORY
    mechanism: str = "none"
    """What holds the limit, for people: "the card's sMLU", "nothing: measured only"."""
    edits: ContainerEdits = ContainerEdits()
