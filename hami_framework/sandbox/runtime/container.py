# SPDX-License-Identifier: Apache-2.0
"""Containers: what each saw (or would have seen), when it ran and how it ended. Those without a command are only remembered.

Order of environment variables, as on a node with containerd: what Allocate answered, then the pod's own `env` (kubelet
appends it, so it wins), then CDI edits (the runtime applies them last, so they win over both). Mounts and device nodes of
a CDI edit replace an earlier one at the same container path.

The sandbox has no file system of its own: host paths are recorded without looking, but those below `real_prefixes` do
exist in truth, and a missing one fails the container as runc would.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hami_framework.errors import HamiError
from hami_framework.local.process import LaunchFailed, Process
from hami_framework.sandbox.runtime.cdi import CdiCache, Spec
from hami_framework.sandbox.runtime.programs import Surroundings, launch_of
from hami_framework.sandbox.runtime.rules import SpecError

Kind = Literal["init", "sidecar", "app"]
State = Literal["running", "exited"]


class ContainerError(HamiError):
    """A container that cannot be created or started; `reason` is what kubelet shows as the waiting reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class ContainerConfig:
    """What kubelet hands to the runtime for one container."""

    pod_uid: str
    namespace: str
    pod: str
    container: str
    kind: Kind
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mapping[str, Any], ...] = ()
    """`{hostPath, containerPath, options}` each."""
    device_nodes: tuple[Mapping[str, Any], ...] = ()
    """`{path, hostPath, permissions}` each."""
    cdi_devices: tuple[str, ...] = ()
    """Fully qualified CDI names."""
    slots: tuple[str, ...] = ()
    """Device-plugin ids recorded for the container."""
    run_seconds: float | None = None
    """How long its main process runs before it ends by itself, with status 0; None: until it is stopped. Not for programs."""
    argv: tuple[str, ...] = ()
    """The program and its arguments; empty: the container is only remembered."""
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    read_only_root: bool = False


@dataclass
class Container:
    """One attempt of one container."""

    config: ContainerConfig
    """With the CDI edits applied."""
    attempt: int
    serial: int
    started_at: datetime
    exit_code: int | None = None
    finished_at: datetime | None = None
    hooks: tuple[Mapping[str, Any], ...] = ()
    gids: tuple[int, ...] = ()
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    process: Process | None = None
    log: Path | None = None

    @property
    def state(self) -> State:
        return "running" if self.exit_code is None else "exited"

    @property
    def id(self) -> str:
        return f"sandbox://{self.config.pod_uid}-{self.config.container}-{self.serial}"

    @property
    def pid(self) -> int | None:
        """Of the program that runs in it; None for one that is only remembered or has ended."""
        return self.process.pid if self.process is not None and self.exit_code is None else None

    def view(self) -> dict[str, Any]:
        """Plain data for people, tests and the command line."""
        config = self.config
        return {
            "id": self.id, "podUID": config.pod_uid, "namespace": config.namespace, "pod": config.pod, "container": config.container,
            "kind": config.kind, "state": self.state, "attempt": self.attempt, "exitCode": self.exit_code, "env": dict(config.env),
            "mounts": [dict(mount) for mount in config.mounts], "deviceNodes": [dict(node) for node in config.device_nodes],
            "hooks": [dict(hook) for hook in self.hooks], "additionalGids": list(self.gids), "slots": list(config.slots),
            "cdiDevices": list(config.cdi_devices), "startedAt": timestamp(self.started_at),
            "command": list(config.argv), "pid": self.pid, "log": str(self.log) if self.log else None,
        }  # fmt: skip


class Runtime:
    """The containers of one node. It outlives kubelet, as containerd does."""

    def __init__(self, cdi_dirs: Sequence[Path], real_prefixes: Iterable[Path] = ()) -> None:
        self.cdi = CdiCache(tuple(cdi_dirs))
        self.surroundings: Surroundings | None = None
        """Without them, commands are remembered like all else, and nothing runs."""
        self._watchers: set[asyncio.Task[None]] = set()
        self._real_prefixes = tuple(real_prefixes)
        self._containers: dict[tuple[str, str], Container] = {}
        self._serials = itertools.count(1)

    def run(self, config: ContainerConfig) -> Container:
        """Create and start a container that is only remembered. Raises ContainerError."""
        container = self._created(config)
        self._containers[config.pod_uid, config.container] = container
        if config.run_seconds is not None:
            asyncio.get_running_loop().call_later(config.run_seconds, _end, container, 0)
        return container

    async def start(self, config: ContainerConfig) -> Container:
        """Create and start a container; one with a command when its program has begun. Raises ContainerError."""
        if not config.argv or self.surroundings is None:
            return self.run(config)
        container = self._created(config)
        container.log = log = self.surroundings.log_file(config)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            container.process = process = await Process.start(launch_of(container.config, self.surroundings, container.gids), log)
        except LaunchFailed as error:
            raise ContainerError("RunContainerError", f'failed to start container "{config.container}": {error}') from error
        self._containers[config.pod_uid, config.container] = container
        watcher = asyncio.create_task(_watch(container, process), name=f"container {container.id}")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return container

    async def stop(self, uid: str, name: str, code: int, grace_s: float) -> None:
        """End a container as kubelet does: SIGTERM, and SIGKILL when the grace is over. One without a program ends at once with `code`."""
        container = self._containers.get((uid, name))
        if container is None or container.exit_code is not None:
            return
        if container.process is None:
            _end(container, code)
            return
        container.process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await container.ended.wait()
        except TimeoutError:
            container.process.kill()
            await container.ended.wait()

    async def close(self) -> None:
        """The end of the node: nothing runs any more when this returns."""
        self.clear()
        await asyncio.gather(*self._watchers)

    def _created(self, config: ContainerConfig) -> Container:
        try:
            container = self._edited(config)
        except SpecError as error:
            raise ContainerError("CreateContainerError", f'failed to generate container "{config.container}" spec: {error}') from error
        self._check_paths(container.config)
        return container

    def find(self, uid: str, name: str) -> Container | None:
        """The latest attempt of a container."""
        return self._containers.get((uid, name))

    def exit(self, uid: str, name: str, code: int) -> None:
        """The container's main process ends; a program is killed for it. Nothing happens to one that has ended already."""
        container = self._containers.get((uid, name))
        if container is not None:
            if container.process is not None:
                container.process.kill()
            _end(container, code)

    def remove_pod(self, uid: str) -> None:
        """Forget the pod's containers, ended or not."""
        for key in [key for key in self._containers if key[0] == uid]:
            self.exit(*key, code=137)
            del self._containers[key]

    def clear(self) -> None:
        """The machine goes down."""
        for uid in {uid for uid, _ in self._containers}:
            self.remove_pod(uid)

    def containers(self) -> list[Container]:
        return sorted(self._containers.values(), key=lambda container: container.serial)

    def running(self) -> frozenset[tuple[str, str]]:
        """(pod UID, container) of everything that runs."""
        return frozenset(key for key, container in self._containers.items() if container.exit_code is None)

    def _edited(self, config: ContainerConfig) -> Container:
        edits = _edits_in_order(self.cdi.resolve(config.cdi_devices))
        env, mounts, nodes = dict(config.env), {mount["containerPath"]: mount for mount in config.mounts}, {node["path"]: node for node in config.device_nodes}
        for edit in edits:
            env.update(entry.split("=", 1) for entry in edit.get("env") or ())
            for node in edit.get("deviceNodes") or ():
                nodes.pop(node["path"], None)
                nodes[node["path"]] = {"path": node["path"], "hostPath": node.get("hostPath") or node["path"], "permissions": node.get("permissions") or "rwm"}
            for mount in edit.get("mounts") or ():
                mounts.pop(mount["containerPath"], None)
                mounts[mount["containerPath"]] = {key: mount.get(key) or [] for key in ("hostPath", "containerPath", "options")}
        previous = self.find(config.pod_uid, config.container)
        return Container(
            config=replace(config, env=env, mounts=tuple(mounts.values()), device_nodes=tuple(nodes.values())),
            attempt=previous.attempt + 1 if previous else 0,
            serial=next(self._serials),
            started_at=datetime.now(UTC),
            hooks=tuple(hook for edit in edits for hook in edit.get("hooks") or ()),
            gids=tuple(dict.fromkeys(gid for edit in edits for gid in edit.get("additionalGids") or ())),
        )

    def _check_paths(self, config: ContainerConfig) -> None:
        for mount in config.mounts:
            if self._missing(mount["hostPath"]):
                raise ContainerError(
                    "RunContainerError", f'error mounting "{mount["hostPath"]}" to rootfs at "{mount["containerPath"]}": no such file or directory'
                )
        for node in config.device_nodes:
            if self._missing(node["hostPath"]):
                raise ContainerError("CreateContainerError", f'CDI device injection failed: failed to stat CDI host device "{node["hostPath"]}"')

    def _missing(self, host_path: str) -> bool:
        path = Path(host_path)
        return any(path.is_relative_to(prefix) for prefix in self._real_prefixes) and not path.exists()


async def _watch(container: Container, process: Process) -> None:
    _end(container, await process.wait())


def _end(container: Container, code: int) -> None:
    if container.exit_code is None:
        container.exit_code = code
        container.finished_at = datetime.now(UTC)
        container.ended.set()


def timestamp(moment: datetime) -> str:
    """RFC 3339 with microseconds."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _edits_in_order(devices: Iterable[tuple[Spec, str]]) -> list[Mapping[str, Any]]:
    """A spec's top-level edits come once, before those of its first device."""
    edits: list[Mapping[str, Any]] = []
    seen: set[Path] = set()
    for spec, device in devices:
        if spec.path not in seen:
            seen.add(spec.path)
            edits.append(spec.edits)
        edits.append(spec.devices[device])
    return edits
