# SPDX-License-Identifier: Apache-2.0
"""One agent per node at a time, and a word to whoever started it.

Two agents would undo each other's sockets and write one state file. The second one (a rolling update that overlaps, a DaemonSet
beside a host service) therefore waits for the first one's end. The lock is a record lock: it goes with the process, however that
ends, and no child inherits it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05


@asynccontextmanager
async def only_agent(state_directory: Path) -> AsyncIterator[None]:
    """Hold the node's agent lock; wait for it as long as another agent has it, and say so."""
    state_directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    path = state_directory / "agent.lock"
    with path.open("a") as file:
        waiting = False
        while not _locked(file.fileno()):
            if not waiting:
                log.warning("another agent of this node runs and holds %s; waiting for its end", path)
                waiting = True
            await asyncio.sleep(POLL_SECONDS)
        yield


def _locked(file: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as POSIX leaves it
        return False
    return True


def say_ready(environment: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager that kubelet may start: from now on its socket is looked for (sd_notify(3); nothing where none listens)."""
    address = environment.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as wire:
        try:
            wire.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warning("the service manager was not told that the agent is ready: %s: %s", address, error)
