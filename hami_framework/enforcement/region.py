# SPDX-License-Identifier: Apache-2.0
"""state.bin: what a container's processes hold. They can write it, so nothing here is believed above the policy.

It is only ever read with `pread` from a file opened without following links: a tenant that truncates it, replaces it by a
pipe, or scribbles over it gets a finding, and cannot harm the reader (a mapping would end it with SIGBUS). The one thing
that needs the shared mutex, taking out the dead, lives in `reclaim`, which the agent runs in a process of its own.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from hami_framework.enforcement import layout, processes, reclaim
from hami_framework.enforcement.fields import offset
from hami_framework.enforcement.policy import Policy
from hami_framework.enforcement.reclaim import LOCKS_AT, SIZE, slot_locked, taken_slots
from hami_framework.errors import FormatError, Unavailable
from hami_framework.model import Value

__all__ = ["LOCKS_AT", "SIZE", "ContainerUsage", "DeviceUse", "Finding", "ProcessDeviceUse", "ProcessUse", "Region", "create", "opened"]

FILE = "state.bin"
TAT_HORIZON_NS = 60 * 10**9
"""No share makes a container wait so long: a theoretical arrival time beyond it was not written by the library."""

MUTEX_LOOKS = 8
MUTEX_PAUSE_SECONDS = 0.005
"""The library holds the mutex for microseconds, never over a call of the driver: the same owner at so many looks keeps it."""
_OWNER = 0x3FFFFFFF
"""The bits of a robust mutex's word that name its owner (FUTEX_TID_MASK)."""
_ROBUST, _SHARED, _PRIORITY_BITS = 16, 128, 32 | 64
"""glibc's bits in a mutex's kind (bits/pthreadtypes.h, since 2.4): what the library makes is robust and shared, and nothing else."""
MUTEX_WORD, MUTEX_KIND = 0, 16
"""Offsets in glibc's 64-bit pthread_mutex_t: the futex word and the kind."""

_STATES = frozenset(layout.SlotState)

FindingKind = Literal["missing", "size", "layout", "mutex", "sum", "tat", "capacity", "slot"]


class DeviceUse(Value, frozen=True, kw_only=True):
    """One device's books, over all processes of the container."""

    used_bytes: int
    high_water_bytes: int
    virtual_bytes: int
    context_bytes: int
    busy_ns: int
    """Device time charged to the processes that are there now."""
    refusals: int
    launches: int
    waited_ns: int


class ProcessDeviceUse(Value, frozen=True, kw_only=True):
    """What one process holds on one device."""

    held_bytes: int
    virtual_bytes: int
    busy_ns: int
    context_bytes: int


class ProcessUse(Value, frozen=True, kw_only=True):
    """One slot that is not free."""

    slot: int
    state: int
    """The slot's whole state word: what it must still be for the slot to be reclaimed."""
    pid: int
    """In the container's PID namespace."""
    start_ticks: int
    joined_ns: int
    unknown_symbols: int
    private_tables: int
    alive: bool
    devices: tuple[ProcessDeviceUse, ...]

    @property
    def identity(self) -> processes.Identity:
        return (self.pid, self.start_ticks)


class ContainerUsage(Value, frozen=True, kw_only=True):
    """Everything in the books at one moment."""

    devices: tuple[DeviceUse, ...]
    processes: tuple[ProcessUse, ...]
    epoch: int

    @property
    def dead(self) -> tuple[ProcessUse, ...]:
        """Those to be taken out. A slot in a state that there is not was scribbled: it stays as it is, and is found."""
        return tuple(process for process in self.processes if not process.alive and process.state & 0xFFFFFFFF in _STATES)


class Finding(Value, frozen=True, kw_only=True):
    """Something in the state file that the library would not have written."""

    kind: FindingKind
    message: str
    device: int | None = None
    slot: int | None = None


class Region:
    """A container's state file. Cheap to make; every call opens the file anew, since it may have been replaced."""

    def __init__(self, path: Path, proc: Path = Path("/proc")) -> None:
        self.path = path
        self._proc = proc

    def usage(self, devices: int = layout.MAX_DEVICES) -> ContainerUsage:
        """What is held now, by the first `devices` of the policy. Raises FormatError when the file cannot be trusted at all."""
        with opened(self.path) as descriptor:
            image = self._image(descriptor)
            taken = list(taken_slots(image))
            held = {number for number in taken if slot_locked(descriptor, number)}
            inode = os.fstat(descriptor).st_ino
        loose = [(image.slots[number].pid, image.slots[number].start_ticks) for number in taken if number not in held]
        found = processes.host_pids(loose, self._proc)
        living = {identity: pid for identity, pid in found.items() if processes.maps_file(pid, inode, self._proc)}
        return ContainerUsage(
            devices=tuple(_device_use(image, number, taken) for number in range(devices)),
            processes=tuple(_process_use(image.slots[number], number, number in held, living, devices) for number in taken),
            epoch=image.epoch,
        )

    def reclaim_dead(self, timeout_seconds: float = 1.0) -> int:
        """Take out the slots of processes that are gone; how many. Only for a state file that no stranger can write: see `reclaim`.

        Raises Unavailable when the mutex cannot be had in time, FormatError when the file cannot be trusted.
        """
        dead = self.usage().dead
        if not dead:
            return 0
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return reclaim.reclaim(descriptor, {process.slot: process.state for process in dead}, timeout_seconds)
        except reclaim.NotHad as error:
            raise Unavailable(f"{self.path}: {error}") from error
        finally:
            os.close(descriptor)

    def check(self, policy: Policy) -> tuple[Finding, ...]:
        """What the library would not have written. Values that are being changed this moment are not judged."""
        try:
            with opened(self.path) as descriptor:
                before, after = self._image(descriptor), self._image(descriptor)
                length = os.fstat(descriptor).st_size
                keeper = _keeper(descriptor, mutex_word(after)) if mutex_word(after) & _OWNER else None
        except FileNotFoundError:
            return (Finding(kind="missing", message=f"{self.path} is gone"),)
        except FormatError as error:
            return (Finding(kind="layout", message=str(error)),)
        found = [Finding(kind="size", message=f"{self.path} has grown to {length} bytes, and {SIZE} are its size")] if length != SIZE else []
        found += _mutex_findings(self.path, after)
        if keeper is not None:
            found.append(Finding(kind="mutex", message=f"{self.path}: the mutex is kept by thread {keeper}: stopped, or scribbled; everyone else is refused"))
        found += _slot_findings(self.path, after)
        for number, device in enumerate(policy.devices):
            found += _device_findings(before, after, number, device.capacity_bytes)
        return tuple(found)

    def _image(self, descriptor: int) -> layout.StateFile:
        data = os.pread(descriptor, SIZE, 0)
        if len(data) != SIZE:
            raise FormatError(f"{self.path}: {len(data)} bytes, expected {SIZE}: cut short")
        image = layout.StateFile.from_buffer_copy(data)
        if (image.magic, image.layout_version, image.size) != (layout.STATE_MAGIC, layout.LAYOUT_VERSION, SIZE):
            raise FormatError(f"{self.path}: magic {image.magic:#018x}, version {image.layout_version}, size {image.size}: not a state file of this version")
        return image


class opened:  # noqa: N801 - reads as a verb where it is used
    """`with opened(path) as descriptor`: for reading, no links followed, never blocking, only a regular file. Raises FormatError."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise FormatError(f"{path}: cannot be opened ({error.strerror}): replaced by something else?") from error
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise FormatError(f"{path}: not a regular file: replaced by something else")

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)


def create(path: Path) -> None:
    """Put an empty state file there, in one step: allocated in full, so that a full disk is found now and not in a tenant's process."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, SIZE)
        head = layout.StateFile(magic=layout.STATE_MAGIC, layout_version=layout.LAYOUT_VERSION, size=SIZE)
        os.pwrite(descriptor, bytes(head)[: offset(layout.StateFile, "ready")], 0)
        os.fchmod(descriptor, 0o666)
    finally:
        os.close(descriptor)
    temporary.rename(path)


def _device_use(image: layout.StateFile, number: int, taken: Sequence[int]) -> DeviceUse:
    books = image.devices[number]
    return DeviceUse(
        used_bytes=books.used_bytes,
        high_water_bytes=books.high_water_bytes,
        virtual_bytes=books.virtual_used_bytes,
        context_bytes=books.context_bytes,
        busy_ns=sum(image.slots[slot].devices[number].busy_ns for slot in taken),
        refusals=books.refusals,
        launches=books.launches,
        waited_ns=books.waited_ns,
    )


def _process_use(slot: layout.Slot, number: int, locked: bool, living: dict[processes.Identity, int], devices: int) -> ProcessUse:
    return ProcessUse(
        slot=number,
        state=slot.state,
        pid=slot.pid,
        start_ticks=slot.start_ticks,
        joined_ns=slot.joined_ns,
        unknown_symbols=slot.unknown_symbols,
        private_tables=slot.private_tables,
        alive=locked or (slot.pid, slot.start_ticks) in living,
        devices=tuple(
            ProcessDeviceUse(held_bytes=held.held_bytes, virtual_bytes=held.virtual_bytes, busy_ns=held.busy_ns, context_bytes=held.context_bytes)
            for held in slot.devices[:devices]
        ),
    )


def _mutex_findings(path: Path, image: layout.StateFile) -> list[Finding]:
    if not image.ready:
        return []
    kind = int.from_bytes(bytes(image.mutex)[MUTEX_KIND : MUTEX_KIND + 4], "little")
    if kind & (_ROBUST | _SHARED) == _ROBUST | _SHARED and not kind & _PRIORITY_BITS and kind < 2 * _SHARED:
        return []
    return [Finding(kind="mutex", message=f"{path}: the mutex's kind is {kind:#x}: scribbled")]


def mutex_word(image: layout.StateFile) -> int:
    """0 while nobody holds or waits for the mutex."""
    return int.from_bytes(bytes(image.mutex)[MUTEX_WORD : MUTEX_WORD + 4], "little")


def _keeper(descriptor: int, word: int) -> int | None:
    """The thread that holds the mutex all the while."""
    place = offset(layout.StateFile, "mutex") + MUTEX_WORD
    for _ in range(MUTEX_LOOKS):
        time.sleep(MUTEX_PAUSE_SECONDS)
        if int.from_bytes(os.pread(descriptor, 4, place), "little") & _OWNER != word & _OWNER:
            return None
    return word & _OWNER


def _slot_findings(path: Path, image: layout.StateFile) -> Iterator[Finding]:
    for number in taken_slots(image):
        state = image.slots[number].state & 0xFFFFFFFF
        if state not in _STATES:
            yield Finding(kind="slot", slot=number, message=f"{path}: slot {number} is in state {state}, which there is not: scribbled")
            return  # one is enough: a file that was written over has a thousand


def _device_findings(before: layout.StateFile, after: layout.StateFile, number: int, capacity: int | None) -> Iterator[Finding]:
    sums = [_sum(image, number) for image in (before, after)]
    books = after.devices[number]
    quiet = sums[0] == sums[1] and before.devices[number].used_bytes == books.used_bytes and not mutex_word(before) and not mutex_word(after)
    if quiet and books.used_bytes != sums[1]:
        yield Finding(kind="sum", device=number, message=f"device {number}: the books say {books.used_bytes} bytes, the processes' own add up to {sums[1]}")
    ahead = books.tat_ns - time.monotonic_ns()
    if ahead > TAT_HORIZON_NS:
        yield Finding(kind="tat", device=number, message=f"device {number}: launches would be held back for {ahead // 10**9} s")
    if capacity is not None and max(books.used_bytes, sums[1]) > capacity:
        most = max(books.used_bytes, sums[1])
        yield Finding(kind="capacity", device=number, message=f"device {number}: {most} bytes are said to be held on a device that has {capacity}")


def _sum(image: layout.StateFile, number: int) -> int:
    return sum(image.slots[slot].devices[number].held_bytes for slot in taken_slots(image))
