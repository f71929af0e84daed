# SPDX-License-Identifier: Apache-2.0
"""control.bin: the agent's word while the container runs, written in place and mapped read-only by the library.

Every field is one aligned word, stored whole, so a reader never sees half a value. A change of policy or of suspension
also changes `generation`, on which held-back threads sleep (a futex): they are woken. `generation` only ever grows; a new
policy takes the number after the greater of its own last one and this one (`following`), so that both always agree.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import time
from pathlib import Path
from typing import Self

from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset
from hami_framework.errors import FormatError, Unavailable

FILE = "control.bin"
SIZE = ctypes.sizeof(layout.ControlFile)

_FUTEX_SYSCALLS = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAKE = 1
_EVERYBODY = 2**31 - 1
GAIN_LIMITS = (0.5, 2.0)


class Control:
    """The writer's side. Open it through `create` or `open`, and close it (or use `with`)."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self._mapping: mmap.mmap | None = mapping
        self._file: layout.ControlFile | None = layout.ControlFile.from_buffer(mapping)

    @classmethod
    def create(cls, path: Path, generation: int) -> Self:
        """Make the file (by rename: a reader never maps an unfinished one) and open it."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        begin = layout.ControlFile(magic=layout.CONTROL_MAGIC, layout_version=layout.LAYOUT_VERSION, size=SIZE, generation=generation & 0xFFFFFFFF)
        begin.heartbeat_ns = time.monotonic_ns()
        temporary.write_bytes(bytes(begin))
        temporary.chmod(0o644)
        temporary.rename(path)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the file that is there. Raises FormatError when it is none of ours, FileNotFoundError when there is none."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            head = layout.ControlFile.from_buffer_copy(os.pread(descriptor, SIZE, 0).ljust(SIZE, b"\0"))
            found = (head.magic, head.layout_version, head.size, os.fstat(descriptor).st_size)
            wanted = (layout.CONTROL_MAGIC, layout.LAYOUT_VERSION, SIZE, SIZE)
            if found != wanted:
                raise FormatError(f"{path}: magic, version, size and length are {found}, expected {wanted}: not a control file of this version")
            return cls(path, mmap.mmap(descriptor, SIZE))
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Unmap. The file keeps what was said."""
        self._file = None
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- What is said ---------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        return self._words.generation

    def set_generation(self, generation: int) -> None:
        """The policy of this generation is in place: readers look at it again, sleepers are woken."""
        self._words.generation = generation & 0xFFFFFFFF
        self._wake()

    @property
    def suspended(self) -> bool:
        return bool(self._words.flags & layout.ControlFlag.SUSPENDED)

    def suspend(self) -> None:
        """No launch is admitted from now on, until `resume`. Nothing happens when that is so already."""
        self._suspend(True)

    def resume(self) -> None:
        """Launches are admitted again."""
        self._suspend(False)

    def set_effective(self, device: int, milli: int | None) -> None:
        """The share to hold now, in thousandths of a percent; None: the policy's own."""
        if milli is not None and not 1 <= milli <= layout.MILLI_PERCENT:
            raise ValueError(f"{self.path}: an effective share of {milli} is not between 1 and {layout.MILLI_PERCENT}")
        self._words.devices[device].effective_milli = 0 if milli is None else milli

    def effective(self, device: int) -> int | None:
        """The share that was said last, None: the policy's own."""
        return self._words.devices[device].effective_milli or None

    def set_gain(self, device: int, gain: float) -> None:
        """The outer correction of measured cost, within [0.5, 2]."""
        if not GAIN_LIMITS[0] <= gain <= GAIN_LIMITS[1]:
            raise ValueError(f"{self.path}: a gain of {gain} is not between {GAIN_LIMITS[0]} and {GAIN_LIMITS[1]}")
        self._words.devices[device].gain = round(gain * layout.GAIN_ONE)

    def gain(self, device: int) -> float:
        """The correction that was said last; 1.0 when none was."""
        return (self._words.devices[device].gain or layout.GAIN_ONE) / layout.GAIN_ONE

    def forget(self) -> None:
        """A container begins: what was said to the one before it (suspension, shares, gains) no longer holds."""
        self._words.flags = 0
        for device in self._words.devices:
            device.effective_milli = device.gain = device.flags = 0
        self.heartbeat()

    def heartbeat(self, now_ns: int | None = None) -> None:
        """The agent has just looked: what it says is current for another 10 s."""
        self._words.heartbeat_ns = time.monotonic_ns() if now_ns is None else now_ns

    @property
    def heartbeat_ns(self) -> int:
        return self._words.heartbeat_ns

    # -- How ------------------------------------------------------------------------------------------------------

    @property
    def _words(self) -> layout.ControlFile:
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        return self._file

    def _suspend(self, wanted: bool) -> None:
        if self.suspended == wanted:
            return
        flags = self._words.flags
        self._words.flags = flags | layout.ControlFlag.SUSPENDED if wanted else flags & ~layout.ControlFlag.SUSPENDED
        self.set_generation(self._words.generation + 1)

    def _wake(self) -> None:
        word = ctypes.addressof(self._words) + offset(layout.ControlFile, "generation")
        if _libc().syscall(_futex_number(), ctypes.c_void_p(word), _FUTEX_WAKE, _EVERYBODY, None, None, 0) < 0:
            raise Unavailable(f"{self.path}: sleepers were not woken: {os.strerror(ctypes.get_errno())}")


def following(generation: int, word: int) -> int:
    """The generation after both: a policy's own, and the word in control.bin (its low half, which suspensions move on)."""
    ahead = (word - generation) & 0xFFFFFFFF
    return generation + 1 + (ahead if ahead < 2**31 else 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _futex_number() -> int:
    machine = platform.machine()
    try:
        return _FUTEX_SYSCALLS[machine]
    except KeyError as error:
        raise Unavailable(f"this program does not know the futex call of {machine}") from error
