# SPDX-License-Identifier: Apache-2.0
"""What the agent must still know after it was killed: which slot is whose, and which vendor calls are to be undone.

One file, replaced as a whole (temporary file, fsync, rename, fsync of the directory), so a kill at any instant leaves the
old or the new state. A record is durable *before* its vendor's hooks run: whatever they make can be released later. All
changes waiting at one moment go to disk together. The first line carries the format and a digest; a damaged file is a
FormatError, never garbage.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Literal

import msgspec

from hami_framework.errors import FormatError
from hami_framework.model import DeviceGrant, Grant, Owner, PodGrant, Value, decode, encode
from hami_framework.model.request import ContainerKind

FORMAT = "hami-agent-state/1"

Key = tuple[str, str, str]
"""Pod UID, container, resource."""


class Record(Value, frozen=True, kw_only=True):
    """What one container holds of one resource."""

    owner: Owner
    container: str
    kind: ContainerKind
    resource: str
    slots: tuple[str, ...]
    devices: tuple[DeviceGrant, ...]
    leads: tuple[Grant, ...] = ()
    """The vendor grants whose hooks were (or are about to be) called for this record; each is owed a release."""
    phase: Literal["preparing", "ready", "released"] = "preparing"
    """`released`: a finished init container; kept until its pod goes, because its token lives on."""
    at: float
    """When it was last prepared, seconds since the epoch."""
    boot: str
    """The node's boot id at that time."""

    @property
    def key(self) -> Key:
        return (self.owner.uid, self.container, self.resource)

    @property
    def live(self) -> bool:
        return self.phase != "released"


class Offered(Value, frozen=True, kw_only=True):
    """How many slots of a resource were last offered: offered again until the vendor has answered after a restart."""

    resource: str
    vendor: str
    slots: int


class State(Value, frozen=True, kw_only=True):
    """Everything in the file."""

    records: tuple[Record, ...] = ()
    grants: tuple[PodGrant, ...] = ()
    """The complete grant of every pod that has a record: the last fence adds them up."""
    offered: tuple[Offered, ...] = ()


def dump(state: State) -> bytes:
    """The file's bytes: format and digest on the first line, JSON after it."""
    body = encode(state)
    return f"{FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def parse(data: bytes) -> State:
    """The inverse of `dump`; raises FormatError on another version and on any damage."""
    head, _, body = data.partition(b"\n")
    name, _, digest = head.decode("ascii", "replace").partition(" ")
    if name != FORMAT:
        raise FormatError(f"state file begins with {name[:40]!r}, expected {FORMAT!r}: written by another version, or damaged")
    if digest != hashlib.sha256(body).hexdigest():
        raise FormatError("state file is damaged: its digest does not match its contents")
    try:
        return decode(body, State)
    except msgspec.DecodeError as error:
        raise FormatError(f"state file cannot be read: {error}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` so that a crash at any instant leaves the old or the new contents, also after power loss."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class StateFile:
    """The state in memory and its copy on disk. Changes are made at once; `durable()` returns when they are on disk."""

    def __init__(self, path: Path, state: State | None = None) -> None:
        self.path = path
        known = state or State()
        self.records: dict[Key, Record] = {record.key: record for record in known.records}
        self.grants: dict[str, PodGrant] = {grant.owner.uid: grant for grant in known.grants}
        self.offered: tuple[Offered, ...] = known.offered
        self._changes = 0
        self._written = 0
        self._writing: asyncio.Task[None] | None = None

    @classmethod
    def load(cls, path: Path) -> StateFile:
        """Read the file; a missing one is an empty state. Raises FormatError (see `parse`), naming the file."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        try:
            return cls(path, parse(path.read_bytes()))
        except FileNotFoundError:
            return cls(path)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error

    def put(self, record: Record, grant: PodGrant | None = None) -> None:
        """Add or replace a record, and the complete grant of its pod."""
        self.records[record.key] = record
        if grant is not None:
            self.grants[grant.owner.uid] = grant
        self._changes += 1

    def remove(self, key: Key) -> None:
        """Forget a record; the pod's grant goes with its last one."""
        self.records.pop(key, None)
        if not any(record.owner.uid == key[0] for record in self.records.values()):
            self.grants.pop(key[0], None)
        self._changes += 1

    def remember(self, offered: tuple[Offered, ...]) -> bool:
        """Note what is offered; True when that is news."""
        if offered == self.offered:
            return False
        self.offered = offered
        self._changes += 1
        return True

    def of_pod(self, uid: str) -> tuple[Record, ...]:
        """All records of one pod."""
        return tuple(record for record in self.records.values() if record.owner.uid == uid)

    def holder(self, slot: str) -> Record | None:
        """The live record that was prepared last with this slot: the one its CDI file belongs to."""
        return max((record for record in self.records.values() if record.live and slot in record.slots), key=lambda record: record.at, default=None)

    def occupied(self) -> dict[str, frozenset[str]]:
        """Slot → devices that its live grants name."""
        found: dict[str, frozenset[str]] = {}
        for record in self.records.values():
            if record.live:
                for slot in record.slots:
                    found[slot] = found.get(slot, frozenset()) | {device.device_id for device in record.devices}
        return found

    async def durable(self) -> None:
        """Return when every change made so far is on disk. Cancelling the wait does not cancel the write."""
        target = self._changes
        while self._written < target:
            if self._writing is None:
                self._writing = asyncio.create_task(self._write())
            await asyncio.shield(self._writing)

    async def _write(self) -> None:
        try:
            changes, data = self._changes, dump(self._snapshot())
            await asyncio.to_thread(write_durably, self.path, data)
            self._written = changes
        finally:
            self._writing = None

    def _snapshot(self) -> State:
        return State(records=tuple(self.records.values()), grants=tuple(self.grants.values()), offered=self.offered)
