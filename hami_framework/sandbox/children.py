# SPDX-License-Identifier: Apache-2.0
"""Child processes that are started again when they die, and that never outlive us.

Each child is a process group of its own (a Ctrl-C at the terminal reaches only us) and gets SIGKILL from the kernel when
we die in whatever way (`prctl(PR_SET_PDEATHSIG)`, set by a tether that then becomes the child by `exec`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hami_framework

log = logging.getLogger(__name__)

TETHER = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"  # PR_SET_PDEATHSIG = 1 (prctl(2))
    "if os.getppid() != int(sys.argv[1]): os._exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
STOP_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 5.0
STEADY_SECONDS = 10.0
"""A child that ran this long is started again at once the next time it dies."""


@dataclass
class Child:
    """One supervised program: `python -m MODULE ARGUMENTS`, its output in `log_file`."""

    name: str
    module: str
    arguments: Sequence[str]
    log_file: Path
    restart_s: float = 0.3
    """How long after a death the next start comes, as a DaemonSet's kubelet would do it; doubled while it keeps dying."""
    starts: int = 0
    exit_status: int | None = None
    """Of the last process that ended by itself or was killed; None before that."""
    _process: asyncio.subprocess.Process | None = None
    _supervisor: asyncio.Task[None] | None = field(default=None, repr=False)
    _ending: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    """Held while the process is being started or ended."""

    @property
    def pid(self) -> int | None:
        """None while it is down."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and keep it running."""
        await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervisor of {self.name}")

    def kill(self) -> int | None:
        """SIGKILL, as the kernel's out-of-memory killer would do it; the supervisor starts it again. Answers the pid."""
        pid = self.pid
        if self._process is not None and pid is not None:
            self._process.kill()
        return pid

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to all of its group after a while."""
        self._ending.set()
        async with self._changing:
            if self._process is not None:
                await self._end(self._process)
        if self._supervisor is not None:
            await self._supervisor

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                log.warning("%s (pid %d) did not end within %g s of SIGTERM", self.name, process.pid, STOP_SECONDS)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("%s left no process behind", self.name)
        await process.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of its log, for error messages."""
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    async def _spawn(self) -> None:
        self.starts += 1
        argv = [sys.executable, "-I", "-S", "-c", TETHER, str(os.getpid()), sys.executable, "-m", self.module, *self.arguments]
        with self.log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), start_new_session=True
            )

    async def _supervise(self) -> None:
        loop, pause = asyncio.get_running_loop(), self.restart_s
        while self._process is not None:
            began = loop.time()
            self.exit_status = status = await self._process.wait()
            pause = self.restart_s if loop.time() - began >= STEADY_SECONDS else min(2 * pause, LONGEST_PAUSE_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._ending.wait()
            except TimeoutError:
                log.info("%s ended with status %d and is started again", self.name, status)
            async with self._changing:
                if self._ending.is_set():
                    return
                await self._spawn()


def environment() -> dict[str, str]:
    """Our own environment, with this very package importable: a child must not run another copy of the product."""
    ours = str(Path(hami_framework.__file__).parents[1])
    paths = [ours, *(part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != ours)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
