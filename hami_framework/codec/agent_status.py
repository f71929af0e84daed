# SPDX-License-Identifier: Apache-2.0
"""What an agent says of itself in the `status` of its node's inventory. For people and `kubectl wait`; no program of ours decides by it.

It is the agent's last word, not a sign of life: an agent that was killed leaves `running` behind. That it lives is told by its Lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from hami_framework.codec import grants, inventories
from hami_framework.model import Value, decode, encode

READY = "Ready"
"""Type of the one condition, as `kubectl wait --for=condition=Ready nodeinventory/NODE` names it."""
Cdi = Literal["unknown", "applied", "broken"]
"""Whether containers get what CDI files say: not seen yet, seen inside one, or seen to fail."""


class Condition(Value, frozen=True, kw_only=True):
    """`metav1.Condition`, less what we do not use."""

    type: str
    status: Literal["True", "False"]
    reason: str
    """One word in CamelCase."""
    message: str
    last_transition_time: str
    """RFC 3339, when `status` last changed."""


class AgentFacts(Value, frozen=True, kw_only=True):
    """Who speaks."""

    version: str
    """Of the package `hami-framework`."""
    state: Literal["running", "stopping"]
    started: str
    """RFC 3339, when this process began."""
    formats: dict[str, str]
    """What it reads and writes, by name: `grant` (an older major version is read too, see `docs/grant-format.md`), `inventory`, `state`."""


class AgentStatus(Value, frozen=True, kw_only=True):
    """`status` of a NodeInventory."""

    agent: AgentFacts
    cdi: Cdi
    conditions: tuple[Condition, ...]


FORMATS = {"grant": grants.VERSION, "inventory": inventories.VERSION}


def ready(reason: str, message: str, *, holds: bool, before: Mapping[str, Any], now: str) -> Condition:
    """The condition, with the time of the last change kept from the status `before` (the stored one, or nothing)."""
    status: Literal["True", "False"] = "True" if holds else "False"
    old = next((one for one in before.get("conditions") or () if isinstance(one, Mapping) and one.get("type") == READY), {})
    since = str(old.get("lastTransitionTime") or now) if old.get("status") == status else now
    return Condition(type=READY, status=status, reason=reason, message=message, last_transition_time=since)


def to_status(status: AgentStatus) -> dict[str, Any]:
    """As it stands under `status`, in plain JSON values: equal to the stored one when that says the same."""
    return decode(encode(status), dict[str, Any])
