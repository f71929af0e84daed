# SPDX-License-Identifier: Apache-2.0
"""Watches over `runtime`: a node whose kubelet or container runtime cannot carry our edits gives nothing away, and says why.

Looked at: the node's versions once; the complaints of containers that do not start; and inside one started container of each
quarter of a minute, which needs the host's PID namespace: without it nothing is found and nothing is claimed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from hami_framework.deviceplugin import runtime
from hami_framework.deviceplugin.grants import PodBook
from hami_framework.deviceplugin.identity import container_statuses
from hami_framework.deviceplugin.ports import Cluster, Json
from hami_framework.deviceplugin.state import Key, Record, StateFile
from hami_framework.errors import HamiError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
CALM_SECONDS = 15.0
"""After a container was found to be as it should: a look inside reads the cgroup of every process."""
ENOUGH = 3
"""So many preparations of one container, each followed by the same complaint. kubelet may skip one (after its restart), and its status lags."""


class Arrivals:
    """`fault` is empty, or the one clear message; `proven`: a container was seen to have what it was prepared. `on_change` is called when either changes."""

    def __init__(self, node: str, mount: str, *, state: StateFile, pods: PodBook, cluster: Cluster, on_change: Callable[[], None]) -> None:
        self.fault = ""
        self.proven = False
        self._node = node
        self._mount = mount
        self._state = state
        self._pods = pods
        self._cluster = cluster
        self._on_change = on_change
        self._seen = self._since = time.time()
        """Containers prepared since then were not looked into; and when to look next."""
        self._missing: set[Key] = set()
        self._refused: dict[Key, set[float]] = {}

    async def run(self) -> None:
        """For ever."""
        await self._judge_versions()
        while True:
            if not self.fault:
                await self._listen()
                await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _judge_versions(self) -> None:
        try:
            node = await self._cluster.node(self._node)
        except HamiError as error:
            log.info("the versions of node %s are not known: %s", self._node, error)
            return
        if found := runtime.too_old(node or {}):
            self._say(found)

    async def _listen(self) -> None:
        """What the runtime says about containers that we prepared and it does not create."""
        ours = [(record, runtime.complaint(self._status(record))) for record in self._state.records.values() if record.phase == "ready"]
        self._refused = {record.key: self._refused.get(record.key, set()) | {record.at} for record, words in ours if words}
        for record, words in ours:
            if words and (runtime.OFF in words or len(self._refused[record.key]) >= ENOUGH):
                await self._refuse(record, f"refuses containers with CDI names ({words})")
                return

    async def _look(self) -> None:
        """One container that was prepared since the last look that found one sound."""
        if time.time() < self._since:
            return
        record = next((one for one in self._state.records.values() if one.phase == "ready" and one.at >= self._seen and self._runs(one)), None)
        if record is None:
            return
        began = time.time()
        found = await asyncio.to_thread(runtime.arrived, record.owner.uid, self._mount)
        if found:
            self._seen, self._since = began, began + CALM_SECONDS
            self._missing.clear()
            if not self.proven:
                self.proven = True
                self._on_change()
        elif found is False and record.key in self._missing:  # twice in a row: it was not only just starting, or ending
            await self._refuse(record, "ignores CDI: the container runs without the devices and limits it was granted")
        elif found is False and self._runs(record):
            self._missing.add(record.key)

    def _runs(self, record: Record) -> bool:
        return "running" in (self._status(record).get("state") or {})

    def _status(self, record: Record) -> Json:
        pod = self._pods.get(record.owner.uid)
        return {} if pod is None else container_statuses(pod).get(record.container, {})

    async def _refuse(self, record: Record, what: str) -> None:
        who = f"container {record.container!r} of pod {record.owner.namespace}/{record.owner.name}"
        self._say(f"the container runtime {what}; seen with {who}. {runtime.REMEDY}")
        pod = self._pods.get(record.owner.uid)
        if pod is not None:
            await self._cluster.warn(pod, "CdiNotApplied", f"the container runtime of node {self._node} {what}. {runtime.REMEDY}")

    def _say(self, fault: str) -> None:
        self.fault = fault
        log.error("no device of node %s is given away: %s", self._node, fault)
        self._on_change()
