# SPDX-License-Identifier: Apache-2.0
"""A program started through the launcher, as the side that starts it holds it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from hami_framework.errors import HamiError
from hami_framework.model import Value

FAILED = 125
LAUNCHER = Path(__file__).with_name("launcher.py")


class LaunchFailed(HamiError):
    """The program could not be begun; nothing of it runs."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status
        """As shells give it: 127 not found, 126 not runnable, 125 anything else."""


class Bind(Value, frozen=True, kw_only=True):
    """A file or directory of the host at a path of the program's own."""

    source: str
    target: str
    read_only: bool = True


class Launch(Value, frozen=True, kw_only=True):
    """What the launcher is told (see `launcher.py`)."""

    argv: tuple[str, ...]
    env: dict[str, str]
    root: str | None = None
    """An empty directory to build the view on; None: no view of its own, the host's files as they are."""
    mounts: tuple[Bind, ...] = ()
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    read_only_root: bool = False
    join: int | None = None
    """Share the view of this running process instead."""


def command(source: int, report: int) -> list[str]:
    """The launcher's own command line."""
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(source), str(report)]


def specification(launch: Launch, *, with_parent: bool) -> IO[bytes]:
    """An open file that holds what the launcher reads. `with_parent`: the program is killed when we are."""
    told = {key: value for key, value in msgspec.to_builtins(launch).items() if value is not None}
    plain = {"mounts": [], **{_snake(key): value for key, value in told.items()}}
    plain["mounts"] = [{"source": each.source, "target": each.target, "read_only": each.read_only} for each in launch.mounts]
    if with_parent:
        plain["parent"] = os.getpid()
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(json.dumps(plain).encode("utf-8", "surrogateescape"))
    file.seek(0)
    return file


def _snake(key: str) -> str:
    return {"readOnlyRoot": "read_only_root"}.get(key, key)


def failure_in(report: bytes) -> LaunchFailed | None:
    """The launcher's complaint, None when the program has begun. A launcher that died before it could say anything says that much."""
    if not report:
        return None
    try:
        said = json.loads(report)
        return LaunchFailed(str(said["reason"]), int(said["status"]))
    except (ValueError, KeyError):
        return LaunchFailed(f"the launcher said {report[:200]!r}", FAILED)


def reason_in(report: bytes) -> str | None:
    """The same in words alone."""
    failure = failure_in(report)
    return None if failure is None else str(failure)


class Process:
    """A program that runs apart from us: a session of its own, output to a file."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, launch: Launch, output: Path) -> Process:
        """Return once the program itself has begun. Raises `LaunchFailed`. A caller that is cancelled leaves nothing behind."""
        reading, writing = os.pipe()
        process: asyncio.subprocess.Process | None = None
        try:
            with specification(launch, with_parent=True) as told, output.open("ab") as log:
                try:
                    process = await asyncio.create_subprocess_exec(
                        *command(told.fileno(), writing),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        pass_fds=(told.fileno(), writing),
                    )
                finally:
                    os.close(writing)
            failure = failure_in(await _read_all(reading))
        except BaseException:
            if process is not None:
                _kill_group(process.pid)
                await process.wait()
            raise
        if failure is not None:
            await process.wait()
            raise failure
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit status as shells give it (128 + signal); whatever the program left in its session is killed then."""
        status = await self._process.wait()
        _kill_group(self._process.pid)
        return status if status >= 0 else 128 - status

    def terminate(self) -> None:
        """SIGTERM to the main process, as a container runtime sends it."""
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal to the whole session."""
        if self._process.returncode is None:
            _kill_group(self._process.pid, number)


def _kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return  # nothing is left of it, which is what was wanted


async def _read_all(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0))
    try:
        return await reader.read()
    finally:
        transport.close()


def run_here(launch: Launch) -> subprocess.Popen[bytes]:
    """Start a program that shares our terminal, input and output, and dies with us. Raises `LaunchFailed`."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as report:
        with specification(launch, with_parent=True) as told:
            try:
                process = subprocess.Popen(command(told.fileno(), writing), pass_fds=(told.fileno(), writing))
            finally:
                os.close(writing)
        failure = failure_in(report.read())
    if failure is not None:
        process.wait()
        raise failure
    return process


def own_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours with `extra` on top; library paths are put in front of those that are there."""
    merged: dict[str, Any] = {**os.environ, **extra}
    if "LD_LIBRARY_PATH" in extra and os.environ.get("LD_LIBRARY_PATH"):
        merged["LD_LIBRARY_PATH"] = f"{extra['LD_LIBRARY_PATH']}:{os.environ['LD_LIBRARY_PATH']}"
    return merged
