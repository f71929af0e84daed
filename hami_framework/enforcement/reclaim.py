# SPDX-License-Identifier: Apache-2.0
"""Taking dead processes out of a state file, under its mutex; as a program: `python -I -S reclaim.py`.

glibc keeps the links of a robust mutex inside the mutex, and follows them when it unlocks. In a file that a tenant can
write they are the tenant's to choose, and a mapping of it may vanish under the reader. So nobody with privileges locks it:
the agent starts this module as a short-lived process that has the open file, no privilege and a deadline. What a hostile
container can gain is to end or mislead a process that has nothing.

Standard input is the state file; arguments are the timeout in seconds and `slot:state` pairs; the number taken out goes to
standard output. Exit status 3: the mutex could not be had.

Whoever is refused waits for this program, so it imports nothing but the standard library and the generated layout: it has
begun in a third of the time that the package takes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from hami_framework.enforcement import layout
else:  # as a program, without the package around it
    sys.path.append(os.path.dirname(__file__))
    import layout

SIZE = ctypes.sizeof(layout.StateFile)
LOCKS_AT = 1 << 40
"""Slot n is held by an OFD lock on byte `LOCKS_AT + n` of the state file; byte 0 is for making the mutex."""

NOT_HAD = 3
NOBODY = 65534

_F_OFD_GETLK = 36
_FLOCK = struct.Struct("hhqqi4x")
_SLOTS = ctypes.sizeof(layout.StateFile) - layout.MAX_SLOTS * ctypes.sizeof(layout.Slot)
_SLOT_WORDS = ctypes.sizeof(layout.Slot) // 8


class NotHad(Exception):
    """The mutex was not to be had, or the file is none of ours."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def reclaim(descriptor: int, dead: Mapping[int, int], timeout_seconds: float) -> int:
    """Free the slots of `dead` (slot → the state word it was found dead with) that nobody has touched since; how many.

    Raises NotHad when the mutex is not to be had, or the file is no state file.
    """
    if os.fstat(descriptor).st_size < SIZE:
        raise NotHad(f"state file: shorter than {SIZE} bytes")
    image = layout.StateFile.from_buffer(mmap.mmap(descriptor, SIZE))  # unmapped with the last reference to it
    if (image.magic, image.layout_version, image.size) != (layout.STATE_MAGIC, layout.LAYOUT_VERSION, SIZE):
        raise NotHad("state file: magic, version or size are not those of this version")
    return _locked(image, descriptor, dead, timeout_seconds) if image.ready else 0


def _locked(image: layout.StateFile, descriptor: int, dead: Mapping[int, int], timeout_seconds: float) -> int:
    libc = ctypes.CDLL(None)
    mutex = ctypes.c_void_p(ctypes.addressof(image.mutex))
    until = time.time() + timeout_seconds
    status = libc.pthread_mutex_timedlock(mutex, ctypes.byref(_Timespec(int(until), int(until % 1 * 1e9))))
    if status not in (0, errno.EOWNERDEAD):
        raise NotHad(f"state file: the mutex was not to be had: {os.strerror(status)}")
    try:
        freed = [_free(image.slots[slot]) for slot, state in dead.items() if image.slots[slot].state == state and not slot_locked(descriptor, slot)]
        if freed or status == errno.EOWNERDEAD:
            _recount(image)
            image.epoch += 1
        if status == errno.EOWNERDEAD:
            libc.pthread_mutex_consistent(mutex)
    finally:
        libc.pthread_mutex_unlock(mutex)
    return len(freed)


def slot_locked(descriptor: int, slot: int) -> bool:
    """Whether somebody holds the slot's lock. The kernel gives it up with the last process that shares the description."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, LOCKS_AT + slot, 1, 0)
    answer = _FLOCK.unpack(fcntl.fcntl(descriptor, _F_OFD_GETLK, asked))
    return bool(answer[0] != fcntl.F_UNLCK)


def taken_slots(image: layout.StateFile) -> Iterator[int]:
    """The numbers of slots that are not free."""
    words = memoryview(image).cast("B")[_SLOTS:].cast("Q")[::_SLOT_WORDS].tolist()
    return (number for number, word in enumerate(words) if word & 0xFFFFFFFF != layout.SlotState.FREE)


def _free(slot: layout.Slot) -> bool:
    """Books first and the state last: whoever dies between leaves a slot that is still dead."""
    for held in slot.devices:
        held.held_bytes = held.virtual_bytes = held.busy_ns = held.context_bytes = 0
    slot.state = slot.state & ~0xFFFFFFFF | layout.SlotState.FREE
    return True


def _recount(image: layout.StateFile) -> None:
    taken = list(taken_slots(image))
    for number, books in enumerate(image.devices):
        books.used_bytes = sum(image.slots[slot].devices[number].held_bytes for slot in taken)
        books.virtual_used_bytes = sum(image.slots[slot].devices[number].virtual_bytes for slot in taken)


def _drop_privileges() -> None:
    """Before anything of the tenant's is touched. The open file stays."""
    os.chdir("/")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    if os.getuid() == 0:
        _drop_privileges()
    timeout_seconds, *pairs = arguments
    dead = {int(slot): int(state) for slot, _, state in (pair.partition(":") for pair in pairs)}
    try:
        print(reclaim(sys.stdin.fileno(), dead, float(timeout_seconds)))
    except NotHad as error:
        print(error, file=sys.stderr)
        return NOT_HAD
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
