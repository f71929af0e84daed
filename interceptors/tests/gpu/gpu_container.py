# SPDX-License-Identifier: Apache-2.0
"""A container's two folders, written with nothing but the generated layout, and programs that run in it or beside it.

`hami_framework.enforcement` does this for real containers. It is not imported here: a bare machine with a GPU has Python and
this tree, and none of the packages that hami_framework needs.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
OUR_OWN = ("LD_PRELOAD", "HAMI_DEVELOPMENT_POLICY", "HAMI_GRANT")
BEGIN_SECONDS, END_SECONDS = 120, 300
"""How long a program may take to answer at all, and to do all its work: longer, and it hangs."""


def _by_path(path: Path) -> ModuleType:
    """A module without the packages above it."""
    found = importlib.util.spec_from_file_location(f"hami_gpu_{path.stem}", path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


layout = _by_path(ROOT / "hami_framework" / "enforcement" / "layout.py")


class Failed(Exception):
    """A program of the test ended badly, or said nothing; its own words are in the message."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a container may use of device 0."""

    memory: int | None = None
    percent: int | None = None
    lent: bool = False
    """Work-conserving, and the agent says: take the whole device."""


class Program:
    """A program that is spoken with line by line, in JSON."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.name = " ".join(Path(word).name if "\n" not in word else "…" for word in command[:4])
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None

    def heard(self) -> str:
        """The next line. Raises Failed when the program is gone."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._failed()
        return line.strip()

    def answer(self) -> dict[str, Any]:
        return dict(json.loads(self.heard()))

    def ready(self) -> None:
        line = self.heard()
        if line != "ready":
            raise Failed(f"{self.name} said {line!r} instead of 'ready'")

    def end(self) -> None:
        """It shall end by itself, well. Raises Failed."""
        _, error = self.process.communicate(timeout=END_SECONDS)
        if self.process.returncode != 0:
            raise Failed(f"{self.name} ended with {self.process.returncode}: {_last(error)}")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=END_SECONDS)

    def _failed(self) -> Failed:
        _, error = self.process.communicate(timeout=END_SECONDS)
        return Failed(f"{self.name} ended with {self.process.returncode}: {_last(error)}")


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if "DEVELOPMENT POLICY" not in line]
    return " / ".join(lines[-3:]) or "it said nothing"


class Place:
    """Where programs run: directly on the driver."""

    name = "direct"

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in OUR_OWN}

    @contextmanager
    def running(self, command: Sequence[str | Path]) -> Iterator[Program]:
        """It has ended, one way or another, when the block is left."""
        program = Program([str(word) for word in command], self.environment())
        watchdog = threading.Timer(END_SECONDS, program.process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield program
        finally:
            watchdog.cancel()
            program.kill()

    def python(self, script: str, *arguments: object) -> list[str]:
        return [sys.executable, str(HERE / script), *map(str, arguments)]


class Container(Place):
    """A container held to limits on the one device whose UUID is given, with the library preloaded."""

    def __init__(self, folder: Path, library: Path, uuid: str, capacity: int, limits: Limits) -> None:
        self.folder, self.library, self.name = folder, library, folder.name
        (folder / "policy").mkdir(parents=True)
        (folder / "state").mkdir()
        self._state = folder / "state" / "state.bin"
        size = ctypes.sizeof(layout.StateFile)
        self._state.write_bytes(bytes(layout.StateFile(magic=layout.STATE_MAGIC, layout_version=layout.LAYOUT_VERSION, size=size)))
        (folder / "policy" / "policy.bin").write_bytes(_policy(folder.name, uuid, capacity, limits))
        self.heartbeat(limits)

    def heartbeat(self, limits: Limits) -> None:
        """control.bin as an agent would have it now."""
        said = layout.ControlFile(magic=layout.CONTROL_MAGIC, layout_version=layout.LAYOUT_VERSION, size=ctypes.sizeof(layout.ControlFile), generation=1)
        said.heartbeat_ns = time.monotonic_ns()
        said.devices[0].effective_milli = layout.MILLI_PERCENT if limits.lent else 0
        (self.folder / "policy" / "control.bin").write_bytes(bytes(said))

    def environment(self) -> dict[str, str]:
        ours = {"LD_PRELOAD": str(self.library), "HAMI_DEVELOPMENT_POLICY": str(self.folder), "HAMI_GRANT": f"gpu-test/{self.folder.name}"}
        return {**super().environment(), **ours}

    def books(self) -> Any:
        """The library's own record of device 0 (a `StateDevice`)."""
        return layout.StateFile.from_buffer_copy(self._state.read_bytes()).devices[0]

    def live_slots(self) -> int:
        return sum(slot.state & 0xFFFFFFFF == layout.SlotState.LIVE for slot in layout.StateFile.from_buffer_copy(self._state.read_bytes()).slots)


def _policy(container: str, uuid: str, capacity: int, limits: Limits) -> bytes:
    record = layout.PolicyDevice(vendor=b"nvidia", capacity_bytes=capacity, weight=1)
    record.memory_bytes = layout.NO_LIMIT if limits.memory is None else limits.memory
    record.core_milli = layout.CORE_UNLIMITED if limits.percent is None else limits.percent * layout.MILLI_PERCENT // 100
    record.compute_mode = layout.ComputeMode.WORK_CONSERVING if limits.lent else layout.ComputeMode.FIXED
    record.identities[0].kind, record.identities[0].value = b"uuid", uuid.encode()
    header = layout.PolicyHeader(magic=layout.POLICY_MAGIC, layout_version=layout.LAYOUT_VERSION, device_count=1, generation=1)
    header.header_size, header.record_size = ctypes.sizeof(layout.PolicyHeader), ctypes.sizeof(layout.PolicyDevice)
    header.container = f"gpu-test/{container}".encode()
    value = 0xCBF29CE484222325  # FNV-1a of the whole, with the checksum's own field zero
    for byte in bytes(header) + bytes(record):
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    header.checksum = value
    return bytes(header) + bytes(record)
