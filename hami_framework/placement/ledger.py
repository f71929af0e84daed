# SPDX-License-Identifier: Apache-2.0
"""Who has been promised what: one entry per owner, and the boards it weighs on.

`tentative` entries are made by filter (one per pod, on its first-ranked node) and expire; `reserved` ones by bind, until the
outcome is known; `committed` ones are facts seen in the cluster. All three count against everyone else. `nominated` ones hold
room that others were asked to leave, until its pod comes back for it; a pod of higher priority looks through them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from hami_framework.model import PodGrant
from hami_framework.placement.board import Board
from hami_framework.placement.fleet import Fleet
from hami_framework.placement.load import pod_loads


class EntryState(StrEnum):
    TENTATIVE = "tentative"
    NOMINATED = "nominated"
    RESERVED = "reserved"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Entry:
    """One owner's promise."""

    grant: PodGrant
    state: EntryState
    priority: int = 0
    made_at: float = 0.0


class Ledger:
    """Entries by owner uid. Putting an entry replaces the owner's former one, so nothing is ever counted twice."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._entries: dict[str, Entry] = {}
        self._tentative: dict[str, float] = {}
        self._nominated: dict[str, Entry] = {}

    def get(self, uid: str) -> Entry | None:
        return self._entries.get(uid)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """Count this entry in place of the owner's former one."""
        uid = entry.grant.owner.uid
        former = self._entries.get(uid)
        claim = entry.state is EntryState.NOMINATED
        if former is None or former.grant != entry.grant or claim != (former.state is EntryState.NOMINATED):
            self.drop(uid)
            self._weigh(entry.grant, claim=claim)
        self._entries[uid] = entry
        if entry.state is EntryState.TENTATIVE:
            self._tentative[uid] = entry.made_at
        else:
            self._tentative.pop(uid, None)
        if claim:
            self._nominated[uid] = entry

    def nominated_below(self, priority: int) -> list[Entry]:
        """What is held for pods of lower priority than this."""
        return [entry for entry in self._nominated.values() if entry.priority < priority] if self._nominated else []

    def drop(self, uid: str) -> Entry | None:
        """Stop counting this owner; returns what it had."""
        entry = self._entries.pop(uid, None)
        self._tentative.pop(uid, None)
        self._nominated.pop(uid, None)
        if entry is not None:
            boards = [board for board in self._boards(entry.grant) if uid in board.holders]
            for board in boards:
                board.release(uid)
            self._fleet.changed(boards)
        return entry

    def older_than(self, moment: float) -> list[str]:
        """Owners of tentative entries made before this moment."""
        return [uid for uid, made_at in self._tentative.items() if made_at < moment]

    def _weigh(self, grant: PodGrant, *, claim: bool) -> None:
        boards = []
        for device_id, load in pod_loads(grant).items():
            board = self._fleet.board(grant.node, device_id)
            board.hold(grant.owner.uid, load, claim=claim)
            boards.append(board)
        self._fleet.changed(boards)

    def _boards(self, grant: PodGrant) -> Iterable[Board]:
        device_ids = {device.device_id for container in grant.containers for device in container.devices}
        return [self._fleet.board(grant.node, device_id) for device_id in sorted(device_ids)]
