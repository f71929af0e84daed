# SPDX-License-Identifier: Apache-2.0
"""What kubelet tells the API server: pod status, node status, and the sender that never lets an outage stop a pod."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hami_framework.errors import HamiError
from hami_framework.sandbox.kubelet.api import NodeApi
from hami_framework.sandbox.kubelet.devices import DeviceManager
from hami_framework.sandbox.kubelet.environment import kinds
from hami_framework.sandbox.runtime.container import Container, Runtime, timestamp

log = logging.getLogger(__name__)

Waiting = tuple[str, str]
"""(reason, message) of a container that does not run yet."""

RETRY_S = 0.5
KUBELET_VERSION = "v1.36.3-hami-sandbox"


async def persist(attempt: Callable[[], Awaitable[None]], what: str) -> None:
    """Repeat `attempt` until the API server has taken it."""
    while True:
        try:
            return await attempt()
        except HamiError as error:
            log.warning("%s: again in %g s: %s", what, RETRY_S, error)
            await asyncio.sleep(RETRY_S)


@dataclass
class StatusSender:
    """Sends the latest status of one pod, and events, until they have arrived. Older states that were not sent are skipped."""

    api: NodeApi
    pod: Mapping[str, Any]
    _latest: dict[str, Any] | None = None
    _sent: dict[str, Any] | None = None
    _events: list[tuple[str, str, str]] = field(default_factory=list)
    _told: set[tuple[str, str]] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, status: dict[str, Any]) -> None:
        if status != self._latest:
            self._latest = status
            self._stir()

    def event(self, kind: str, reason: str, message: str) -> None:
        """Once for each reason and message."""
        if (reason, message) not in self._told:
            self._told.add((reason, message))
            self._events.append((kind, reason, message))
            self._stir()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await persist(self._send, f"status of pod {self.pod['metadata']['name']}")
            if not self._wake.is_set():
                self._idle.set()

    async def drained(self) -> None:
        """Wait until everything has been sent."""
        if self._latest is not None or self._told:
            await self._idle.wait()

    async def _send(self) -> None:
        if self._latest is not None and self._latest != self._sent:
            status = self._latest
            await self.api.pod_status(self.pod, status)
            self._sent = status
        while self._events:
            await self.api.event(self.pod, *self._events[0])
            del self._events[0]

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()


def rejected_status(reason: str, message: str) -> dict[str, Any]:
    """The status of a pod that kubelet did not admit. It is final."""
    return {"phase": "Failed", "reason": reason, "message": f"Pod was rejected: {message}", "startTime": _now()}


def pod_status(
    pod: Mapping[str, Any], phase: str, runtime: Runtime, waiting: Mapping[str, Waiting], started: str, devices: DeviceManager | None = None
) -> dict[str, Any]:
    """The status from what the runtime knows; `devices` adds the health of each allocated device."""
    uid = pod["metadata"]["uid"]
    init: list[dict[str, Any]] = []
    apps: list[dict[str, Any]] = []
    for container, kind in kinds(pod):
        entry = _container_status(container, runtime.find(uid, container["name"]), waiting.get(container["name"]))
        if devices is not None:
            entry["allocatedResourcesStatus"] = _device_health(devices, uid, container["name"])
        (apps if kind == "app" else init).append(entry)
    initialized = all(entry["ready"] for entry in init)
    ready = bool(apps) and all(entry["ready"] for entry in apps)
    conditions = {"PodScheduled": True, "Initialized": initialized, "ContainersReady": ready, "Ready": ready}
    return {
        "phase": phase,
        "reason": None,
        "message": None,
        "startTime": started,
        "hostIP": "127.0.0.1",
        "conditions": [{"type": type_, "status": str(value)} for type_, value in conditions.items()],
        "initContainerStatuses": init,
        "containerStatuses": apps,
    }


def node_status(resources: Mapping[str, tuple[int, int]], base: Mapping[str, str], dropped: set[str]) -> dict[str, Any]:
    """Capacity counts all devices, allocatable the healthy ones; a merge patch with null removes what is gone."""
    gone = dict.fromkeys(dropped)
    return {
        "capacity": {**base, **gone, **{name: str(total) for name, (total, _) in resources.items()}},
        "allocatable": {**base, **gone, **{name: str(healthy) for name, (_, healthy) in resources.items()}},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the kubelet double is ready", "lastHeartbeatTime": _now()}],
        "nodeInfo": {"kubeletVersion": KUBELET_VERSION, "operatingSystem": "linux"},
    }


def _container_status(container: Mapping[str, Any], run: Container | None, waiting: Waiting | None) -> dict[str, Any]:
    entry = {"name": container["name"], "image": container.get("image", ""), "imageID": "", "restartCount": run.attempt if run else 0}
    ended = run is not None and run.exit_code is not None
    entry["ready"] = run is not None and (run.exit_code is None or (run.config.kind == "init" and run.exit_code == 0))
    entry["started"] = run is not None and not ended
    if run is not None:
        entry["containerID"] = run.id
    if waiting is not None:
        entry["state"] = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
        entry["ready"] = entry["started"] = False
        if run is not None and ended:
            entry["lastState"] = {"terminated": _terminated(run)}
    elif run is None:
        entry["state"] = {"waiting": {"reason": "PodInitializing"}}
    elif ended:
        entry["state"] = {"terminated": _terminated(run)}
    else:
        entry["state"] = {"running": {"startedAt": timestamp(run.started_at)}}
    return entry


def _terminated(run: Container) -> dict[str, Any]:
    return {
        "exitCode": run.exit_code,
        "reason": "Completed" if run.exit_code == 0 else "Error",
        "startedAt": timestamp(run.started_at),
        "finishedAt": timestamp(run.finished_at or run.started_at),
        "containerID": run.id,
    }


def _device_health(devices: DeviceManager, uid: str, container: str) -> list[dict[str, Any]]:
    def health(resource: str, device: str) -> dict[str, str]:
        return {"resourceID": device, "health": "Healthy" if device in devices.healthy.get(resource, ()) else "Unhealthy"}

    records = devices.container_records(uid, container)
    return [{"name": record.resource, "resources": [health(record.resource, device) for device in sorted(record.ids)]} for record in records]


def _now() -> str:
    return timestamp(datetime.now(UTC))
