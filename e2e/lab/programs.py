# SPDX-License-Identifier: Apache-2.0
"""The product's programs in a lab, each with the same handle whatever way it runs: kill it, start it, read its log."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from e2e.lab.cluster import Lab
from e2e.lab.machine import LabError, Machine

NAMESPACE = "hami-system"


class Program(Protocol):
    """One of the product's programs."""

    @property
    def alive(self) -> bool: ...

    def kill(self, number: int = signal.SIGKILL) -> None: ...

    def restart(self) -> None: ...

    def log(self) -> str: ...


@dataclass(frozen=True)
class Process:
    """A program that was started on one of the lab's machines; nobody starts it again but us."""

    lab: Lab
    name: str
    machine: Machine
    argv: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool] = field(default=lambda: True, repr=False)

    @property
    def log_file(self) -> Path:
        return self.lab.logs / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        return self.machine.running and self.machine.alive(self.name)

    def start(self, *, wait: bool = True) -> None:
        """Start it; with `wait` until it answers. Raises LabError with the end of its log."""
        self.machine.spawn(self.name, self.argv, env=self.environment, log=self.log_file)
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Until it answers. Raises LabError with the end of its log, at once when it has ended."""

        def settled() -> bool:
            if not self.alive:
                raise LabError(f"{self.name} ended at once:\n{tail(self.log())}")
            return self.ready()

        try:
            self.lab.wait(f"{self.name} to be ready", settled, seconds)
        except LabError as error:
            raise LabError(f"{error}\n{tail(self.log())}") from error

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it and wait for its end."""
        self.machine.kill(self.name, number)

    def restart(self) -> None:
        """SIGTERM, then start again and wait until it answers."""
        if self.alive:
            self.kill(signal.SIGTERM)
        self.start()

    def log(self) -> str:
        """All it has said, over all its lives."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


@dataclass(frozen=True)
class Workload:
    """A program in the containers of a Deployment or DaemonSet of the chart; Kubernetes starts it again."""

    lab: Lab
    kind: str
    """`daemonset` or `deployment`."""
    name: str
    container: str
    selector: str
    """Label selector of its pods."""

    def pods(self) -> list[str]:
        """Its pods that are not being deleted, by name."""
        items = self.lab.get("pods", "--namespace", NAMESPACE, "--selector", self.selector)["items"]
        return [item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]]

    @property
    def alive(self) -> bool:
        return bool(self.pids())

    def pids(self) -> list[int]:
        """Its containers' processes as the host counts them, found by their cgroups: a container's path ends in its id."""
        ids = [container_id for name in self.pods() if (container_id := self._container_id(name))]
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    groups = (folder / "cgroup").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if any(container_id in groups for container_id in ids):
                    found.append(int(folder.name))
        return sorted(found)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal every process of its containers: nothing of it is told beforehand, as when memory runs out."""
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def restart(self) -> None:
        """`kubectl rollout restart`, and wait until it is done."""
        self.lab.kubectl("rollout", "restart", f"{self.kind}/{self.name}", "--namespace", NAMESPACE)
        self.wait_ready()

    def wait_ready(self, seconds: float = 120.0) -> None:
        """Until all of its pods are. Raises LabError with the end of its log."""
        done = self.lab.kubectl(
            "rollout", "status", f"{self.kind}/{self.name}", "--namespace", NAMESPACE, f"--timeout={seconds:.0f}s", check=False, timeout=seconds + 10
        )
        if done.returncode != 0:
            events = self.lab.kubectl("get", "events", "--namespace", NAMESPACE, "--sort-by=.lastTimestamp", check=False).stdout
            raise LabError(f"{self.kind} {self.name} is not ready: {done.stderr.strip()}\n{self.last_words()}\n{tail(events, 10)}")

    def log(self) -> str:
        """What its containers on the lab's node have said since their pods were made, from the node's disk."""
        return "".join(file.read_text(errors="replace") for folder in self._log_folders(self.container) for file in _oldest_first(folder))

    def last_words(self) -> str:
        """The end of what each container of its pods said last, those that make things ready included."""
        found = [(folder, _oldest_first(folder)) for folder in self._log_folders("*")]
        return "\n".join(f"  {folder.parent.name} {folder.name}:\n{tail(files[-1].read_text(errors='replace'), 5)}" for folder, files in found if files)

    def _log_folders(self, container: str) -> list[Path]:
        logs = self.lab.directory / "state" / "node" / "logs"
        return [folder for name in self.pods() for folder in sorted(logs.glob(f"{NAMESPACE}_{name}_*/{container}"))]

    def _container_id(self, pod: str) -> str:
        statuses = self.lab.get("pod", pod, "--namespace", NAMESPACE)["status"].get("containerStatuses", ())
        return next((status.get("containerID", "").rpartition("/")[2] for status in statuses if status["name"] == self.container), "")


def _oldest_first(folder: Path) -> list[Path]:
    """A container's log files: one per life, named by its number; those that were rotated away have a longer name."""
    return sorted((file for file in folder.glob("*.log") if file.stem.isdecimal()), key=lambda file: int(file.stem))


def tail(text: str, lines: int = 15) -> str:
    """The end of a log, indented, for messages."""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
