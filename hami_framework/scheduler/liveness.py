# SPDX-License-Identifier: Apache-2.0
"""Which nodes' agents are alive, by their signs of life: one Lease per node, renewed by its agent.

A node whose agent said that it stops, or whose sign has not changed for as long as the sign itself says it is good for, takes nothing
new (`node-silent`). Time is counted on our own clock from the moment we saw the sign change, so it does not matter how other clocks go.
Nobody is called silent on a stale picture: before that, the picture is made fresh, and whenever the API server cannot be heard every
node gets its full time again. A node without a sign (an agent of an older release) is judged by its inventory alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import KubeError
from hami_framework.kube.reflector import Metadata, Reflector

LABEL = "hami.io/sign-of-life"
PREFIX = "node-"
"""The Lease of node `n` is named `node-n`."""
NAMESPACE = "hami-system"
LEASE_SECONDS = 30.0
"""For how long a sign is good when it does not say: three times what an agent lets pass between two."""
LOOK_SECONDS = 1.0
GOODBYE_SECONDS = 30.0
"""For how long a goodbye counts: three times kubelet's status period (`nodeStatusUpdateFrequency`, 10 s), after which the node itself says
that it has no devices. If it has some all the same, an agent is there that gives no signs: one of an older release, after a rollback."""
FRESH_SECONDS = 10.0
"""How long making the picture fresh may take before we take it that the API server cannot be heard."""

_log = logging.getLogger(__name__)


class _LeaseSpec(msgspec.Struct, rename="camel", gc=False):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    renew_time: str | None = None


class _LeaseMeta(msgspec.Struct, gc=False):
    name: str


class LeaseView(msgspec.Struct, gc=False):
    """What matters of a Lease (coordination.k8s.io/v1)."""

    metadata: _LeaseMeta
    spec: _LeaseSpec = msgspec.field(default_factory=_LeaseSpec)


@dataclass
class _Sign:
    holder: str
    good_for: float
    renewed: str
    seen_at: float


class Signs:
    """What was seen of each node, and what follows. Pure; all times are seconds of one monotonic clock."""

    def __init__(self, now: float) -> None:
        self._signs: dict[str, _Sign] = {}
        self._heard_since = now
        """Nobody's time began to run before this: we could not have heard them."""

    def saw(self, node: str, spec: _LeaseSpec, now: float) -> bool:
        """The node's Lease is there or has changed. True when that may change who is silent."""
        former = self._signs.get(node)
        holder, renewed = spec.holder_identity or "", spec.renew_time or ""
        good_for = float(spec.lease_duration_seconds or LEASE_SECONDS)
        if former is None:
            self._signs[node] = _Sign(holder, good_for, renewed, now)
            return not holder
        same = former.holder == holder
        if not same or former.renewed != renewed:
            former.seen_at = now
        former.holder, former.good_for, former.renewed = holder, good_for, renewed
        return not same

    def gone(self, node: str) -> None:
        """The Lease was deleted: nothing is known of the node's agent any more."""
        self._signs.pop(node, None)

    def deaf(self, now: float) -> None:
        """The API server could not be heard until now: everybody's time begins anew."""
        self._heard_since = now

    def stopped(self, now: float) -> set[str]:
        """Nodes whose agents said a short while ago that they stop."""
        return {node for node, sign in self._signs.items() if not sign.holder and now - sign.seen_at <= GOODBYE_SECONDS}

    def late(self, now: float) -> set[str]:
        """Nodes whose last sign is older than it is good for."""
        since = self._heard_since
        return {node for node, sign in self._signs.items() if sign.holder and now - (sign.seen_at if sign.seen_at > since else since) > sign.good_for}

    def known(self, node: str) -> bool:
        """Whether the node's agent gives signs at all."""
        return node in self._signs and bool(self._signs[node].holder)


class Liveness:
    """Follows the signs and tells `on_change` who is silent, each time that changes."""

    def __init__(
        self,
        client: KubeClient,
        on_change: Callable[[frozenset[str]], None],
        *,
        namespace: str = NAMESPACE,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
        **reflector_options: Any,
    ) -> None:
        self.signs = Signs(clock())
        self.silent: frozenset[str] = frozenset()
        self._on_change, self._clock, self._look_seconds = on_change, clock, look_seconds
        self._failures = 0
        self.reflector: Reflector[LeaseView] = Reflector(
            client,
            path("leases", group="coordination.k8s.io", namespace=namespace),
            on_upsert=self._upsert,
            on_delete=self._delete,
            decode=msgspec.json.Decoder(LeaseView).decode,
            label_selector=f"{LABEL}=true",
            **reflector_options,
        )

    def word(self, node: str) -> str:
        """`alive`, `silent`, or `unknown` (the agent gives no signs: one of an older release)."""
        return "silent" if node in self.silent else "alive" if self.signs.known(node) else "unknown"

    async def run(self) -> None:
        """For ever. Errors of the API server's make nobody silent."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reflector.run(), name="reflector signs of life")
            while True:
                await asyncio.sleep(self._look_seconds)
                await self.look()

    async def look(self) -> None:
        """Find out who is silent now."""
        failures, self._failures = self._failures, self.reflector.stats.failures
        if failures != self._failures or not self.reflector.synced.is_set():
            self.signs.deaf(self._clock())
        if self.signs.late(self._clock()) - self.silent and not await self._fresh():
            self.signs.deaf(self._clock())
        self._tell(frozenset(self.signs.stopped(self._clock()) | self.signs.late(self._clock())))

    def _upsert(self, lease: LeaseView) -> None:
        if not lease.metadata.name.startswith(PREFIX):
            return
        node = lease.metadata.name.removeprefix(PREFIX)
        if self.signs.saw(node, lease.spec, self._clock()) or node in self.silent:
            # One node more or less; who is late without being known for it waits for the next look.
            others = self.silent - {node}
            self._tell(others if lease.spec.holder_identity else others | {node})

    def _delete(self, metadata: Metadata) -> None:
        node = metadata.name.removeprefix(PREFIX)
        self.signs.gone(node)
        self._tell(self.silent - {node})

    async def _fresh(self) -> bool:
        """Whether the picture now holds all that was written before: the watch may have died without a word."""
        try:
            async with asyncio.timeout(FRESH_SECONDS):
                await self.reflector.refresh()
        except (KubeError, TimeoutError) as error:
            _log.warning("signs of life cannot be read now (%s); no node is called silent meanwhile", error if isinstance(error, KubeError) else "no answer")
            return False
        return True

    def _tell(self, silent: frozenset[str]) -> None:
        if silent == self.silent:
            return
        came, left = silent - self.silent, self.silent - silent
        self.silent = silent
        for nodes, words in ((came, "silent: no new pods there"), (left, "heard of again")):
            if nodes:
                _log.info("%s%s: %s", ", ".join(sorted(nodes)[:5]), f" and {len(nodes) - 5} more" if len(nodes) > 5 else "", words)
        self._on_change(silent)
