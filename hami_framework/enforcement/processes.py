# SPDX-License-Identifier: Apache-2.0
"""Who is alive, as the host's /proc tells it: from a PID of a container's namespace and its start time to a PID of the host."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

Identity = tuple[int, int]
"""PID in the process's own (innermost) namespace, and start time in clock ticks (field 22 of /proc/<pid>/stat)."""


def host_pids(wanted: Iterable[Identity], proc: Path = Path("/proc")) -> dict[Identity, int]:
    """The host's PIDs of those that live. Reads the start time of every process, and the namespaces of those that match."""
    missing = set(wanted)
    found: dict[Identity, int] = {}
    starts = {start for _, start in missing}
    for directory in proc.iterdir() if missing else ():
        if not directory.name.isdecimal():
            continue
        start = start_ticks(directory)
        if start in starts and start is not None:
            identity = (innermost_pid(directory), start)
            if identity in missing:
                found[(identity[0] or 0, start)] = int(directory.name)
    return found


def start_ticks(directory: Path) -> int | None:
    """When the process began; None when it is gone, or is only waiting for its parent to notice (a zombie holds nothing)."""
    text = _read(directory / "stat")
    if text is None:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def innermost_pid(directory: Path) -> int | None:
    """The PID that the process knows itself by, None when it is gone."""
    text = _read(directory / "status")
    line = next((line for line in (text or "").splitlines() if line.startswith("NSpid:")), None)
    return int(line.split()[-1]) if line else None


def maps_file(pid: int, inode: int, proc: Path = Path("/proc")) -> bool:
    """Whether the process has a file of this inode mapped; True when that cannot be read. A program that was replaced (exec) has not."""
    text = _read(proc / str(pid) / "maps")
    return text is None or any(line.split(maxsplit=5)[4] == str(inode) for line in text.splitlines())


def cgroup_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The process's cgroup paths as one text, None when it is gone."""
    return _read(proc / str(pid) / "cgroup")


def within(pods: Iterable[str], pid: int, proc: Path = Path("/proc")) -> str | None:
    """Which of these pod UIDs the process's cgroup belongs to: kubelet's directory names carry the UID, with `-` or `_`."""
    text = cgroup_of(pid, proc)
    if text is None:
        return None
    plain = text.replace("_", "-")
    return next((uid for uid in pods if uid and uid in plain), None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
