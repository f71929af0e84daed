# SPDX-License-Identifier: Apache-2.0
"""One worker process as the agent holds it: start, greet, ask, kill."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hami_framework.errors import PluginError
from hami_framework.plugins import Source
from hami_framework.worker.protocol import BUDGET_SECONDS, LENGTH, MAX_FRAME_BYTES, RESULTS, Answer, Call, Hello, frame, plain

START_BUDGET_SECONDS = 10.0
ACCEPT_POLL_SECONDS = 0.005
_PEER = struct.Struct("3i")
"""Linux `struct ucred` as SO_PEERCRED answers it: pid, uid, gid."""


class Broken(PluginError):
    """The process can no longer be used: it died, hung, or spoke out of turn. It has been killed."""


class WorkerProcess:
    """A live worker. Calls are put one at a time; a call that overruns its budget kills the process."""

    def __init__(self, vendor: str, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: Hello) -> None:
        self.vendor = vendor
        self.pid = process.pid
        self.hello = hello
        self._process = process
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._number = 0

    @classmethod
    async def start(cls, source: Source, directory: Path, environment: Mapping[str, str], user: int | None = None) -> WorkerProcess:
        """Start the worker of `source`. Raises `PluginError` when it does not greet in time or cannot load its plugin."""
        path = directory / f"{source.vendor}.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(1)
            process = subprocess.Popen(_command(source, path, user), env={**os.environ, **environment}, stdin=subprocess.DEVNULL, start_new_session=False)
            try:
                async with asyncio.timeout(START_BUDGET_SECONDS):
                    return await cls._greet(source.vendor, process, listener)
            except BaseException as error:
                _end(process)
                if isinstance(error, TimeoutError):
                    raise Broken(source.vendor, "(start)", f"did not come up within {START_BUDGET_SECONDS:.0f} s") from error
                if isinstance(error, asyncio.IncompleteReadError | ConnectionError):
                    raise Broken(source.vendor, "(start)", f"died while starting ({_last_words(process)})") from error
                raise
        finally:
            listener.close()
            path.unlink(missing_ok=True)

    @classmethod
    async def _greet(cls, vendor: str, process: subprocess.Popen[bytes], listener: socket.socket) -> WorkerProcess:
        connection = await _accept(listener, vendor, process)
        connection.setblocking(False)
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_FRAME_BYTES)
        except BaseException:
            connection.close()
            raise
        try:
            hello = await _read(reader, Hello)
            if hello.problem:
                raise Broken(vendor, "(load)", hello.problem)
        except BaseException:
            writer.close()
            raise
        return cls(vendor, process, reader, writer, hello)

    async def call(self, hook: str, **arguments: object) -> Any:
        """The hook's answer, of the type the specification says, or None when the vendor does not implement it.

        Raises `Broken` (and the process is gone) on a crash, a hang or nonsense; plain `PluginError` when the hook raised.
        A caller that is cancelled does not disturb the protocol: the call is left to end by itself.
        """
        if hook not in self.hello.hooks:
            return None
        return await asyncio.shield(asyncio.ensure_future(self._call(hook, {name: plain(value) for name, value in arguments.items()})))

    async def _call(self, hook: str, arguments: dict[str, Any]) -> Any:
        async with self._lock:
            self._number += 1
            try:
                self._writer.write(frame(Call(number=self._number, hook=hook, arguments=arguments)))
                async with asyncio.timeout(BUDGET_SECONDS[hook]):
                    answer = await _read(self._reader, Answer)
            except TimeoutError as error:
                self.kill()
                raise Broken(self.vendor, hook, f"overran its budget of {BUDGET_SECONDS[hook]:.0f} s; the worker was killed") from error
            except (asyncio.IncompleteReadError, ConnectionError, msgspec.MsgspecError) as error:
                self.kill()
                raise Broken(self.vendor, hook, f"the worker died ({_last_words(self._process)})") from error
        if answer.problem:
            raise PluginError(self.vendor, hook, answer.problem)
        try:
            return msgspec.convert(answer.result, type=RESULTS[hook])
        except msgspec.ValidationError as error:
            self.kill()
            raise Broken(self.vendor, hook, f"answered nonsense: {error}") from error

    def kill(self) -> None:
        """End the process now; harmless when it has ended."""
        self._writer.close()
        _end(self._process)


def _command(source: Source, path: Path, user: int | None) -> list[str]:
    command = [sys.executable, "-m", "hami_framework.worker.main", "--socket", str(path), "--source", msgspec.json.encode(source).decode()]
    return command if user is None else [*command, "--user", str(user)]


async def _accept(listener: socket.socket, vendor: str, process: subprocess.Popen[bytes]) -> socket.socket:
    """The connection of our own child, and of nobody else; notices when the child dies before it connects."""
    while True:
        try:
            connection, _ = listener.accept()  # not the loop's: a cancelled sock_accept can lose a connection it has accepted
            break
        except BlockingIOError:
            if process.poll() is not None:
                raise Broken(vendor, "(start)", f"died while starting ({_last_words(process)})") from None
            await asyncio.sleep(ACCEPT_POLL_SECONDS)
    pid, uid, _gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if pid != process.pid or uid != os.geteuid():
        connection.close()
        raise Broken(vendor, "(start)", f"process {pid} of user {uid} came in on the worker's socket instead of our child {process.pid}")
    return connection


Message = Any


async def _read(reader: asyncio.StreamReader, type_: type[Message]) -> Message:
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise msgspec.ValidationError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return msgspec.json.decode(await reader.readexactly(length), type=type_)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _last_words(process: subprocess.Popen[bytes]) -> str:
    status = process.poll()
    if status is None:
        return "connection lost"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
