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


class Interceptor(Value, frozen=True, kw_only=True):
    """A library that holds the limits from inside the container's processes. A vendor declares it; the core mounts and feeds it."""

    library: str
    """The shared object on the host (absolute path)."""
    preload: Literal["file", "env"] = "file"
    """Loaded through `/etc/ld.so.preload`, which programs that cannot load it ignore, or through `LD_PRELOAD`."""
    identities: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """Device id → every (kind, value) that a driver API may call the device by, such as `("uuid", "GPU-…")`. Never an ordinal."""
    context_bytes: tuple[tuple[str, int], ...] = ()
    """Device id → what a context costs there, where the vendor knows; left out: the library measures it."""

    def identities_of(self, device_id: str) -> tuple[tuple[str, str], ...]:
        """The names of one device, empty when none was declared."""
        return next((names for device, names in self.identities if device == device_id), ())

    def context_bytes_of(self, device_id: str) -> int | None:
        """What a context costs on one device, None when it is to be measured."""
        return next((cost for device, cost in self.context_bytes if device == device_id), None)


class Enforcement(Value, frozen=True, kw_only=True):
    """The answer of `hami_enforce`: how strong, held by what, and what the container needs for it."""

    isolation: Isolation = ADVISORY
    mechanism: str = "none"
    """What holds the limit, for people: "the card's sMLU", "nothing: measured only"."""
    edits: ContainerEdits = ContainerEdits()
    interceptor: Interceptor | None = None
    """The library that does the holding, where one does: the core writes its policy and adds its mounts."""
