# SPDX-License-Identifier: Apache-2.0
"""A process that keeps books in a state file as the interceptor library does, without a library or a driver.

`python -m hami_framework.testing.tenant STATE_FILE SLOT BYTES lock|open` makes the mutex if nobody has, takes the slot
(with its lock, or as a process that closed it) and holds so many bytes of device 0. It says `ready`, and then obeys its
standard input, echoing each line: `lock`, `unlock` (the mutex), `charge N` (device time in ns), `hold N` (more bytes), `exec` (become another
program).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hami_framework.enforcement import layout, processes
from hami_framework.enforcement.fields import offset
from hami_framework.enforcement.region import LOCKS_AT

_F_OFD_SETLK = 37


class Tenant:
    """The process, from the test's side. `slot` 0 … 1023; kill it, or let `stop` do so."""

    def __init__(self, state_file: Path, *, slot: int = 0, held: int = 1000, lock: bool = True, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", __name__, str(state_file), str(slot), str(held), "lock" if lock else "open"]
        paths = {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths | (environment or {}))
        self._expect("ready")

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, line: str) -> None:
        """Have it done, and return when it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self._expect(line)

    def stop(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.communicate()

    def _expect(self, line: str) -> None:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer == f"{line}\n", f"the tenant answered {answer!r} instead of {line!r}"


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    path, slot, held, lock = arguments[0], int(arguments[1]), int(arguments[2]), arguments[3] == "lock"
    descriptor = os.open(path, os.O_RDWR)
    image = layout.StateFile.from_buffer(mmap.mmap(descriptor, ctypes.sizeof(layout.StateFile)))
    libc = ctypes.CDLL(None)
    mutex = ctypes.c_void_p(ctypes.addressof(image) + offset(layout.StateFile, "mutex"))
    if not image.ready:
        attributes = ctypes.create_string_buffer(64)
        libc.pthread_mutexattr_init(attributes)
        libc.pthread_mutexattr_setrobust(attributes, 1)
        libc.pthread_mutexattr_setpshared(attributes, 1)
        libc.pthread_mutex_init(mutex, attributes)
        image.ready = 1
    if lock:
        fcntl.fcntl(descriptor, _F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, LOCKS_AT + slot, 1, 0))
    mine = image.slots[slot]
    mine.pid, mine.start_ticks = os.getpid(), processes.start_ticks(Path("/proc/self")) or 0
    mine.devices[0].held_bytes = held
    image.devices[0].used_bytes += held
    mine.state = (mine.state >> 32) + 1 << 32 | layout.SlotState.LIVE
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, amount = line.strip().partition(" ")
        if word == "lock":
            libc.pthread_mutex_lock(mutex)
        elif word == "unlock":
            libc.pthread_mutex_unlock(mutex)
        elif word == "charge":
            mine.devices[0].busy_ns += int(amount)
        elif word == "hold":
            mine.devices[0].held_bytes += int(amount)
            image.devices[0].used_bytes += int(amount)
        print(line.strip(), flush=True)
        if word == "exec":
            os.execv("/bin/sleep", ["sleep", "600"])


if __name__ == "__main__":
    main(sys.argv[1:])
