# SPDX-License-Identifier: Apache-2.0
"""The node agent's side of the ledger's lock.

A `hami run` that chooses devices and an agent that admits a container must not both find the same room free. Both hold the one
flock from before they read what others hold until their own promise is on disk. All admissions of one agent share it: they
see each other in memory, and forty of them at once still reach the disk in one write.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from hami_framework.errors import Unavailable
from hami_framework.local import ledger

WAIT_SECONDS = 5.0
"""A run holds the lock for milliseconds; one that holds it so long is stopped (SIGSTOP), or the disk is."""
LOOK_SECONDS = (0.002, 0.05)


class Gate:
    """`async with gate:` nobody outside this process promises anything of this machine's devices. Raises Unavailable."""

    def __init__(self, state_directory: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        self._state_directory = state_directory
        self._wait_seconds = wait_seconds
        self._opening = asyncio.Lock()
        self._inside = 0
        self._descriptor = -1

    async def __aenter__(self) -> None:
        async with self._opening:
            if self._inside == 0:
                self._descriptor = await self._take()
            self._inside += 1

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._inside -= 1
        if self._inside == 0:
            os.close(self._descriptor)

    async def _take(self) -> int:
        try:
            descriptor = ledger.open_lock(self._state_directory)
        except OSError as error:
            raise Unavailable(f"the ledger of local runs cannot be locked: {error.filename}: {error.strerror}") from error
        try:
            await self._locked(descriptor)
            ledger.sign(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    async def _locked(self, descriptor: int) -> None:
        """Not a blocking flock in a thread: a cancelled call would leave the thread to take the lock and keep it."""
        end = time.monotonic() + self._wait_seconds
        pause, longest = LOOK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > end:
                    path = ledger.folder(self._state_directory) / ledger.LOCK
                    holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                    what = f"{path} has been locked for {self._wait_seconds:g} s by process {holder}, a `hami run` or `hami limit`: see what it does"
                    raise Unavailable(what) from error
            await asyncio.sleep(pause)
            pause = min(longest, 2 * pause)
