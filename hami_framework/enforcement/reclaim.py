# SPDX-License-Identifier: Apache-2.0
"""Taking dead processes out of a state file, under its mutex; as a program: `python -m hami_framework.enforcement.reclaim`.

glibc keeps the links of a robust mutex inside the mutex, and follows them when it unlocks. In a file that a tenant can
write they are the tenant's to choose, and a mapping of it may vanish under the reader. So nobody with privileges locks it:
the agent starts this module as a short-lived process that has the open file, no privilege and a deadline. What a hostile
container can gain is to end or mislead a process that has nothing.

Standard input is the state file; arguments are `slot:state` pairs; the number taken out goes to standard output. Exit
status 3: the mutex could not be had.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import time
from collections.abc import Mapping

from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset
from hami_framework.enforcement.region import SIZE, slot_locked, taken_slots
from hami_framework.errors import FormatError, HamiError, Unavailable

NOT_HAD = 3
NOBODY = 65534


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def reclaim(descriptor: int, dead: Mapping[int, int], timeout_seconds: float) -> int:
    """Free the slots of `dead` (slot → the state word it was found dead with) that nobody has touched since; how many.

    Raises Unavailable when the mutex is not to be had, FormatError when the file is no state file.
    """
    if os.fstat(descriptor).st_size < SIZE:
        raise FormatError(f"state file: shorter than {SIZE} bytes")
    image = layout.StateFile.from_buffer(mmap.mmap(descriptor, SIZE))  # unmapped with the last reference to it
    if (image.magic, image.layout_version, image.size) != (layout.STATE_MAGIC, layout.LAYOUT_VERSION, SIZE):
        raise FormatError("state file: magic, version or size are not those of this version")
    return _locked(image, descriptor, dead, timeout_seconds) if image.ready else 0


def _locked(image: layout.StateFile, descriptor: int, dead: Mapping[int, int], timeout_seconds: float) -> int:
    libc = ctypes.CDLL(None)
    mutex = ctypes.c_void_p(ctypes.addressof(image) + offset(layout.StateFile, "mutex"))
    until = time.time() + timeout_seconds
    status = libc.pthread_mutex_timedlock(mutex, ctypes.byref(_Timespec(int(until), int(until % 1 * 1e9))))
    if status not in (0, errno.EOWNERDEAD):
        raise Unavailable(f"state file: the mutex was not to be had: {os.strerror(status)}")
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
    except HamiError as error:
        print(error, file=sys.stderr)
        return NOT_HAD
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
