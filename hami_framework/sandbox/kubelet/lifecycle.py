# SPDX-License-Identifier: Apache-2.0
"""One task per admitted pod: kubelet's pod worker.

`sync` brings the pod's containers one step further, as kubelet's SyncPod does: init containers one after another,
sidecars before what follows them, then the apps; what cannot be started is tried again after a back-off. Between syncs
the worker sleeps until a container ends, the back-off is over or the pod is to go. The status is sent off before each
step, so that a PreStartContainer may wait for the end of an earlier container to become visible. A deletion waits for the
sync in progress: kubelet does not cut off a PreStartContainer either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from hami_framework.sandbox.kubelet.admission import DeviceAdmission
from hami_framework.sandbox.kubelet.api import NodeApi
from hami_framework.sandbox.kubelet.devices import AdmissionError
from hami_framework.sandbox.kubelet.environment import RUN_SECONDS, container_config, kinds
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.kubelet.status import StatusSender, Waiting, persist, pod_status
from hami_framework.sandbox.runtime.container import Container, ContainerError, Kind, Runtime, timestamp

STOPPED = 143
"""Exit status of a process that ends on SIGTERM."""
CRASH_BACKOFF_S = (10.0, 300.0)
"""(s) kubelet's wait before it starts a program again that ended: the first one doubles with each restart up to the second."""


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What every pod worker of a node shares."""

    api: NodeApi
    runtime: Runtime
    admission: DeviceAdmission
    options: KubeletOptions
    random: Random
    on_start: Callable[[Container], None]


class PodWorker:
    """Runs one pod. `terminated` is True once no container of it will run again: its devices may then be freed."""

    def __init__(self, pod: Mapping[str, Any], kit: Kit) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.terminated = False
        self.sender = StatusSender(kit.api, pod)
        self.waiting: dict[str, Waiting] = {}
        self._kit = kit
        self._going = bool(pod["metadata"].get("deletionTimestamp"))
        self._again_s: float | None = None
        """How long until a program that ended is due to be started again."""
        self._stirred = asyncio.Event()
        self._started: str = (pod.get("status") or {}).get("startTime") or timestamp(datetime.now(UTC))

    def update(self, pod: Mapping[str, Any]) -> None:
        """A newer version of the object; with a deletion time it begins to end."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self.end()

    def refresh(self) -> None:
        """The health of a device changed: say so in the status, where that is reported."""
        if self._kit.options.allocated_resources_status and not self.terminated:
            self._report()

    def end(self) -> None:
        """The pod is to go: it was deleted, or its object is gone."""
        self._going = True
        self._stirred.set()

    async def run(self) -> None:
        """Until the pod is over; when it was deleted, its object is gone too."""
        sending = asyncio.create_task(self.sender.run())
        try:
            failures = 0
            while not self._going and not self.terminated:
                self._report()
                began = asyncio.get_running_loop().time()
                failed = await self._sync()
                self._report()
                failures = failures + 1 if failed else 0
                if not self.terminated:
                    await self._pause(failures, asyncio.get_running_loop().time() - began)
            if self.terminated:
                await self._until_deleted()
            await self._stop()
        finally:
            sending.cancel()

    async def reject(self, status: dict[str, Any]) -> None:
        """The pod was not admitted: say so, then wait to be deleted. What ran of it under an earlier kubelet is ended, as kubelet's clean-up does."""
        self.terminated = True
        for run in self._runs():
            self._kit.runtime.exit(self.uid, run.config.container, STOPPED)
        sending = asyncio.create_task(self.sender.run())
        try:
            self.sender.put(status)
            self.sender.event("Warning", status["reason"], status["message"])
            await self._until_deleted()
            await self._stop()
        finally:
            sending.cancel()

    async def _sync(self) -> bool:
        """One step; True when a container could not be started."""
        failed = False
        self._again_s = None
        for container, kind in kinds(self.pod):
            run = self._kit.runtime.find(self.uid, container["name"])
            if run is not None and run.exit_code is None:
                if kind == "init":
                    return False
                continue
            if run is not None and not self._runs_again(run, kind):
                if kind == "init" and run.exit_code != 0:
                    return await self._over()
                continue
            if run is not None and self._crashes(run):
                if kind != "app":
                    return False
                continue
            if self._going:
                return False
            started = await self._start(container, kind)
            if kind != "app" and (not started or kind == "init"):
                return not started
            if kind == "sidecar":
                self._report()
            failed = failed or not started
        if not (failed or self._waits) and all(self._ended(container["name"]) for container in self.pod["spec"]["containers"]):
            return await self._over()
        return failed

    async def _start(self, container: Mapping[str, Any], kind: Kind) -> bool:
        name = container["name"]
        try:
            responses = await self._kit.admission.prepare(self.pod, container)
            slots = {device for record in self._kit.admission.manager.container_records(self.uid, name) for device in record.ids}
            config = container_config(self.pod, container, kind, responses, slots, self._kit.options.init_seconds)
            run = await self._kit.runtime.start(config)
        except AdmissionError as error:
            return self._failed(name, "CreateContainerConfigError", str(error))
        except ContainerError as error:
            return self._failed(name, error.reason, str(error))
        self.waiting.pop(name, None)
        self._kit.on_start(run)
        return True

    def _failed(self, container: str, reason: str, message: str) -> bool:
        self.waiting[container] = (reason, message)
        self.sender.event("Warning", "Failed", f"Error: {message}")
        return False

    @property
    def _waits(self) -> bool:
        return self._again_s is not None

    def _crashes(self, run: Container) -> bool:
        """Whether a program that ended must wait before it is started again; the wait is remembered and reported."""
        if run.process is None or run.attempt == 0 or run.finished_at is None:
            return False
        first, longest = CRASH_BACKOFF_S
        wait = self._kit.options.scaled(min(first * 2 ** (run.attempt - 1), longest))
        left = wait - (datetime.now(UTC) - run.finished_at).total_seconds()
        if left <= 0:
            return False
        self._again_s = left if self._again_s is None else min(left, self._again_s)
        name = run.config.container
        self.waiting[name] = ("CrashLoopBackOff", f"back-off {wait:g}s restarting failed container={name} pod={self.pod['metadata']['name']}")
        return True

    def _runs_again(self, run: Container, kind: Kind) -> bool:
        """The restart policy's word on a container that has ended."""
        if kind == "sidecar":
            return True
        if kind == "init":
            return run.exit_code != 0 and self._policy != "Never"
        if run.exit_code == 0 and RUN_SECONDS in (self.pod["metadata"].get("annotations") or {}):
            return False
        return self._policy == "Always" or (self._policy == "OnFailure" and run.exit_code != 0)

    @property
    def _policy(self) -> str:
        return str(self.pod["spec"].get("restartPolicy") or "Always")

    def _ended(self, container: str) -> bool:
        run = self._kit.runtime.find(self.uid, container)
        return run is not None and run.exit_code is not None

    async def _over(self) -> bool:
        """No app container will run again: sidecars are stopped and the pod has its final phase."""
        for container, kind in kinds(self.pod):
            if kind == "sidecar":
                await self._kit.runtime.stop(self.uid, container["name"], 0, self._grace_s)
        self.terminated = True
        return False

    async def _pause(self, failures: int, took: float) -> None:
        """Sleep until something happens to the pod; a back-off limits it while a container cannot be started."""
        waits = [asyncio.create_task(self._stirred.wait())]
        waits += [asyncio.create_task(run.ended.wait()) for run in self._runs() if run.exit_code is None]
        try:
            await asyncio.wait(waits, timeout=self._next(failures, took), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    def _next(self, failures: int, took: float) -> float | None:
        """When to look again, if nothing happens before."""
        waits = [wait for wait in (self._backoff(failures, took), self._again_s) if wait is not None]
        return min(waits, default=None)

    def _backoff(self, failures: int, took: float) -> float | None:
        """About 0.2 s, then 12 to 14 s; a PreStart that ran into its deadline is tried again at once (measured)."""
        options = self._kit.options
        if failures == 0:
            return None
        if failures == 1 or took >= options.prestart_deadline_s:
            return options.scaled(options.first_retry_s)
        return options.scaled(self._kit.random.uniform(*options.next_retry_s))

    def _runs(self) -> list[Container]:
        found = (self._kit.runtime.find(self.uid, container["name"]) for container, _ in kinds(self.pod))
        return [run for run in found if run is not None]

    async def _until_deleted(self) -> None:
        while not self._going:
            await self._stirred.wait()

    async def _stop(self) -> None:
        """The end of a graceful deletion: containers first, then the last status, then the object."""
        if not self.terminated:
            await asyncio.sleep(self._kit.options.stop_seconds)
            await asyncio.gather(*(self._kit.runtime.stop(self.uid, run.config.container, STOPPED, self._grace_s) for run in self._runs()))
            self.terminated = True
            self._report()
        await self.sender.drained()
        await persist(lambda: self._kit.api.delete_pod(self.pod), f"removal of pod {self.pod['metadata']['name']}")
        self._kit.runtime.remove_pod(self.uid)

    @property
    def _grace_s(self) -> float:
        """How long a program may take to end after SIGTERM."""
        asked = self.pod["metadata"].get("deletionGracePeriodSeconds")
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked)

    def _report(self) -> None:
        devices = self._kit.admission.manager if self._kit.options.allocated_resources_status else None
        self.sender.put(pod_status(self.pod, self._phase(), self._kit.runtime, self.waiting, self._started, devices))

    def _phase(self) -> str:
        apps = [self._kit.runtime.find(self.uid, container["name"]) for container in self.pod["spec"]["containers"]]
        runs = [run for run in apps if run is not None]
        if self.terminated:
            return "Succeeded" if len(runs) == len(apps) and all(run.exit_code == 0 for run in runs) else "Failed"
        return "Running" if runs else "Pending"
