# SPDX-License-Identifier: Apache-2.0
"""What the tests of the core share: a container's folder, processes that obey (play.c), and the state file as it lies there."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hami_framework.enforcement import layout
from hami_framework.enforcement.control import Control
from hami_framework.enforcement.fields import offset as place_of
from hami_framework.enforcement.policy import DevicePolicy, Policy, encode
from hami_interceptor import build, compilers, native

HERE = Path(__file__).parent
FILES = ("clock", "report", "process", "policy_file", "policy", "state", "slots", "liveness", "reclaim", "mutex", "memory", "exports")
SOURCES = tuple(native.core() / f"{name}.c" for name in FILES)
OK, OVER_LIMIT, REFUSED = 0, 1, 2
STATE_SIZE = ctypes.sizeof(layout.StateFile)
LIMIT = 10_000
_SLOTS = place_of(layout.StateFile, "slots")
_SLOT = ctypes.sizeof(layout.Slot)
_HELD = place_of(layout.Slot, "devices")


def _points() -> dict[str, int]:
    text = (native.core() / "internal.h").read_text()
    table = text[text.index("#define HAMI_WRITE_POINTS") : text.index("#define HAMI_POINT_NAME")]
    return {name: number for number, name in enumerate(re.findall(r"POINT\((\w+)\)", table), start=1) if name}


POINTS = _points()


@functools.cache
def _compiled(folder: Path, name: str, variant: str, flags: tuple[str, ...]) -> Path:
    output = folder / f"{variant}-{abs(hash(flags))}" / name
    output.parent.mkdir(parents=True, exist_ok=True)
    program = [] if name.endswith(".so") else [str(HERE / "play.c")]
    base = [flag for flag in build.FLAGS if not (name.endswith(".so") and flag.startswith("-fvisibility"))]
    linked = ["-shared"] if name.endswith(".so") else []
    arguments = [*base, *build.variant_flags(variant), *flags, *linked, f"-I{native.core()}", *program, *map(str, SOURCES), "-o", str(output), "-ldl", "-lrt"]
    compilers.choose().run(arguments, name)
    return output


def player(folder: Path, variant: str = "testing", flags: Sequence[str] = ()) -> Path:
    """The program play.c with the core in it."""
    return _compiled(folder, "play", variant, tuple(flags))


def library(folder: Path, variant: str = "testing") -> Path:
    """The core as a shared object whose functions ctypes can call."""
    return _compiled(folder, "libcore.so", variant, ())


def device(name: str = "GPU-a", **changes: object) -> DevicePolicy:
    """A record with a limit of LIMIT bytes, unless `changes` say otherwise."""
    values: dict[str, object] = {"vendor": "nvidia", "identities": (("uuid", name),), "memory_bytes": LIMIT, "capacity_bytes": 4 * LIMIT, **changes}
    return DevicePolicy(**values)  # type: ignore[arg-type]


class Container:
    """A prepared folder: policy, control file, state file. Processes are started in it, and all of them end with it."""

    def __init__(self, folder: Path, program: Path, *devices: DevicePolicy, advisory: bool = False, state: bool = True) -> None:
        self.folder = folder
        self.program = program
        self.started: list[Player] = []
        (folder / "policy").mkdir(parents=True)
        (folder / "state").mkdir()
        self.devices = devices or (device(), device("GPU-b", memory_bytes=2 * LIMIT))
        self.put(1, *self.devices, advisory=advisory)
        self.control = Control.create(folder / "policy" / "control.bin", 1)
        if state:
            self.state_path.write_bytes(bytes(STATE_SIZE))

    @property
    def state_path(self) -> Path:
        return self.folder / "state" / "state.bin"

    @property
    def policy_path(self) -> Path:
        return self.folder / "policy" / "policy.bin"

    def put(self, generation: int, *devices: DevicePolicy, advisory: bool = False) -> None:
        """A new policy by rename, as the agent does it; `control.set_generation` comes after it."""
        temporary = self.policy_path.with_suffix(".new")
        temporary.write_bytes(encode(Policy(container="uid/main", devices=devices, generation=generation, advisory=advisory)))
        temporary.rename(self.policy_path)

    def change(self, generation: int, *devices: DevicePolicy, advisory: bool = False) -> None:
        self.put(generation, *devices, advisory=advisory)
        self.control.set_generation(generation)

    def play(self, program: Path | None = None, env: Mapping[str, str] | None = None) -> Player:
        """A process of this container."""
        one = Player(program or self.program, {**os.environ, "HAMI_DEVELOPMENT_POLICY": str(self.folder), **(env or {})})
        self.started.append(one)
        return one

    def state(self) -> layout.StateFile:
        """The state file as it is now."""
        return layout.StateFile.from_buffer_copy(self.state_path.read_bytes())

    def change_state(self, offset: int, data: bytes) -> None:
        with self.state_path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def used(self, number: int = 0) -> int:
        return self.state().devices[number].used_bytes

    def taken(self) -> list[layout.Slot]:
        return [slot for slot in self.state().slots if slot.state & 0xFFFFFFFF != layout.SlotState.FREE]

    def assert_books(self) -> None:
        """Nobody is in the middle of anything, and every device's figure is the sum of the slots'."""
        data = self.state_path.read_bytes()
        state = layout.StateFile.from_buffer_copy(data)
        live: list[layout.Slot] = []
        for number, word in enumerate(memoryview(data)[_SLOTS:].cast("Q")[:: _SLOT // 8].tolist()):
            kind = word & 0xFFFFFFFF
            if kind == layout.SlotState.LIVE:
                live.append(state.slots[number])
                continue
            assert kind == layout.SlotState.FREE, (number, kind)
            at = _SLOTS + number * _SLOT
            assert data.count(0, at + _HELD, at + _SLOT) == _SLOT - _HELD, f"free slot {number} holds something"
        for number, books in enumerate(state.devices):
            assert books.used_bytes == sum(slot.devices[number].held_bytes for slot in live), number
            assert books.virtual_used_bytes == sum(slot.devices[number].virtual_bytes for slot in live), number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for one in self.started:
            one.close()
        self.control.close()


class Player:
    """A running play.c."""

    def __init__(self, program: Path, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, env=dict(env))
        self.pid = self._process.pid
        self.said: str | None = None

    def tell(self, command: str) -> None:
        """Without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"process {self.pid} ended with {self._process.wait(timeout=30)}: {self.stderr()}"
        return line.strip()

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.answer()

    def numbers(self, command: str) -> tuple[int, ...]:
        return tuple(map(int, self.ask(command).split()))

    def verdict(self, command: str) -> int:
        return self.numbers(command)[0]

    def dies(self, *commands: str) -> bool:
        """Whether the process killed itself somewhere in these commands."""
        assert self._process.stdout is not None
        for command in commands:
            try:
                self.tell(command)
            except BrokenPipeError:
                break
            if not self._process.stdout.readline():
                break
        else:
            return False
        return self._process.wait(timeout=30) == -signal.SIGKILL

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=30)

    def stderr(self) -> str:
        """All that it has said on stderr; ends it."""
        if self.said is None:
            self.kill()
            assert self._process.stderr is not None
            self.said = self._process.stderr.read()
        return self.said

    def close(self) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # it died with a command still on its way
