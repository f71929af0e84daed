# SPDX-License-Identifier: Apache-2.0
"""Keeps the `status` of the node's inventory: written once at the start, on change, and when the agent stops; never by the clock.

It is for people. Where it cannot be written (a definition or a role of an older release) that is said once, and nothing else suffers.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from msgspec import structs

from hami_framework.codec.agent_status import FORMATS, AgentFacts, AgentStatus, Cdi, Condition, ready, to_status
from hami_framework.deviceplugin import state
from hami_framework.deviceplugin.ports import Json
from hami_framework.errors import HamiError
from hami_framework.model import Value

log = logging.getLogger(__name__)

GOODBYE_SECONDS = 1.5
"""How long the last word may hold up our end; the sign of life is ended meanwhile."""


class Statuses(Protocol):
    """Where it is written. Raises HamiError."""

    async def write_inventory_status(self, node: str, status: Json) -> None: ...


class Seen(Value, frozen=True, kw_only=True):
    """What the agent knows of itself."""

    registered: bool
    """kubelet has taken a resource of ours."""
    fault: str = ""
    """Why nothing of the node is given away."""
    cdi: Cdi = "unknown"
    quarantined: Sequence[str] = ()
    """Names of vendors."""


class OwnStatus:
    """`write` after each look at the stored object, `stop` at the end."""

    def __init__(self, node: str, statuses: Statuses, seen: Callable[[], Seen]) -> None:
        self._node, self._statuses, self._seen = node, statuses, seen
        self._facts = AgentFacts(version=own_version(), state="running", started=_now(), formats={**FORMATS, "state": state.FORMAT.partition("/")[2]})
        self._known: dict[str, Any] | None = None
        self._complained = ""
        self._stopping = False

    async def write(self, found: Json | None) -> None:
        """Write it if the stored object (None: it was made just now) says something else. Never raises HamiError."""
        stored = (found or {}).get("status")
        self._known = stored if isinstance(stored, dict) else {}
        wanted = self._wanted()
        if wanted == self._known:
            return
        try:
            await self._statuses.write_inventory_status(self._node, wanted)
        except HamiError as error:
            if str(error) != self._complained:
                self._complained = str(error)
                log.warning("the status of inventory %s is not kept: %s", self._node, error)
        else:
            self._known, self._complained = wanted, ""

    async def stop(self) -> None:
        """The last word. Never raises, and takes `GOODBYE_SECONDS` at most; nothing is said where nothing was said before."""
        self._stopping = True
        if not self._known:
            return
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._statuses.write_inventory_status(self._node, self._wanted())
        except (HamiError, TimeoutError) as error:
            log.warning("the status of inventory %s does not say that the agent stops: %s", self._node, error if str(error) else "no answer")

    def _wanted(self) -> dict[str, Any]:
        seen = self._seen()
        facts = structs.replace(self._facts, state="stopping" if self._stopping else "running")
        return to_status(AgentStatus(agent=facts, cdi=seen.cdi, conditions=(_condition(seen, self._stopping, self._known or {}),)))


def _condition(seen: Seen, stopping: bool, before: Json) -> Condition:
    """The worst of what is wrong, or Ready."""
    quarantined = f"; in quarantine: {', '.join(sorted(seen.quarantined))}" if seen.quarantined else ""
    if stopping:
        holds, reason, message = False, "Stopping", "the agent was told to stop: no new pod is placed here"
    elif seen.fault:
        holds, reason, message = False, "CdiNotApplied", seen.fault
    elif not seen.registered:
        holds, reason, message = False, "NotRegistered", "kubelet has not taken any of our resources yet"
    else:
        holds, reason, message = True, "Registered", f"kubelet offers this node's devices{quarantined}"
    return ready(reason, message, holds=holds, before=before, now=_now())


def own_version() -> str:
    """Of the installed package, as `importlib.metadata` would say: that costs the agent 1.5 MB, the name of the folder beside the packages nothing."""
    for directory in sys.path:
        for found in Path(directory).glob("hami_framework-*.dist-info"):
            return found.name.removeprefix("hami_framework-").removesuffix(".dist-info")
    return "unknown (not installed as a package)"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
