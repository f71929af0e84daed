# SPDX-License-Identifier: Apache-2.0
"""Whose process is it? By the cgroup, which a container cannot choose; which of the pod's containers, by its environment."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hami_framework.enforcement import processes
from hami_framework.model import Value


class Party(Value, frozen=True, kw_only=True):
    """Who a process of the host belongs to."""

    uid: str
    container: str | None
    """None: one of the pod's, and the process does not (or does no longer) say which."""
    identity: processes.Identity | None
    """As the container's books would know it; None when the process has just ended."""


def party(pid: int, uids: Collection[str], proc: Path = Path("/proc")) -> Party | None:
    """The owner, if it is one of these pods; None for strangers and for what is gone.

    Without a cgroup of its own (a process of the sandbox) the environment alone says it. Inside a pod it only chooses
    among that pod's containers, so that no container can be blamed for another pod's process.
    """
    by_cgroup = processes.within(uids, pid, proc)
    told_uid, _, told_container = granted(pid, proc).partition("/")
    uid = by_cgroup or (told_uid if told_uid in uids else None)
    if uid is None:
        return None
    return Party(uid=uid, container=told_container or None if told_uid == uid else None, identity=_identity(proc / str(pid)))


def granted(pid: int, proc: Path = Path("/proc")) -> str:
    """The process's HAMI_GRANT, empty when it has none (or is gone)."""
    try:
        environment = (proc / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
    return next((entry.partition(b"=")[2].decode(errors="replace") for entry in environment.split(b"\0") if entry.startswith(b"HAMI_GRANT=")), "")


def _identity(directory: Path) -> processes.Identity | None:
    pid, start = processes.innermost_pid(directory), processes.start_ticks(directory)
    return None if pid is None or start is None else (pid, start)
