# SPDX-License-Identifier: Apache-2.0
"""What the probe in a container said, read from the container's log on the node's disk: no kubelet in between, and 1,000 logs are quick."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.lab import Lab

Json = dict[str, Any]

MIB = 1 << 20
EVERYWHERE = frozenset({"/dev/console", "/dev/full", "/dev/null", "/dev/ptmx", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"})
"""Device files that every container has (OCI runtime specification, default devices)."""


@dataclass(frozen=True)
class Inside:
    """One look of the probe."""

    report: Json

    @property
    def status(self) -> str:
        """MATCH, WRONG or NONE."""
        return str(self.report["status"])

    @property
    def problems(self) -> list[str]:
        return list(self.report["problems"])

    @property
    def env(self) -> dict[str, str]:
        return dict(self.report["env"])

    @property
    def limits(self) -> Json:
        """The contents of limits.json; {} when there was none."""
        return self.report["limits"] or {}

    @property
    def devices(self) -> list[Json]:
        """What limits.json says of each device."""
        return list(self.limits.get("devices", ()))

    @property
    def memory_mib(self) -> list[int | None]:
        """The memory limit of each device, in the order of the grant; None where there is none."""
        amounts = [device["limit"].get("memoryBytes") for device in self.devices]
        return [None if amount is None else amount // MIB for amount in amounts]

    @property
    def core_percent(self) -> list[int | None]:
        """The compute limit of each device."""
        return [device["limit"].get("corePercent") for device in self.devices]

    @property
    def device_files(self) -> set[str]:
        """Device files beside those that every container has."""
        return {device["path"] for device in self.report["devices"] or ()} - EVERYWHERE

    @property
    def closed_files(self) -> list[str]:
        """Of these, those that could not be opened."""
        return [device["path"] for device in self.report["devices"] or () if device["path"] in self.device_files and device["opens"]]

    @property
    def mounts(self) -> dict[str, str]:
        """Target → options, of everything mounted."""
        return {mount["target"]: mount["options"] for mount in self.report["mounts"] or ()}


def looks(lab: Lab, pod: Json, container: str) -> list[Inside]:
    """All looks of a container, over all its lives, oldest first; [] when it has said nothing yet."""
    meta = pod["metadata"]
    folder = lab.directory / "state" / "node" / "logs" / f"{meta['namespace']}_{meta['name']}_{meta['uid']}" / container
    files = sorted(folder.glob("*.log"), key=lambda file: int(file.stem)) if folder.is_dir() else []
    return [Inside(json.loads(line)) for file in files for line in _lines(file) if line.startswith("{")]


def _lines(file: Path) -> list[str]:
    """The lines of a log in the container runtimes' format: `<time> <stream> <P|F> <text>`, a P being continued by the next."""
    whole, part = [], ""
    for line in file.read_text(errors="replace").splitlines():
        fields = line.split(" ", 3)
        if len(fields) < 4:
            continue
        part += fields[3]
        if fields[2] == "F":
            whole.append(part)
            part = ""
    return whole
