# SPDX-License-Identifier: Apache-2.0
"""Whom to evict. kube-scheduler knows no shares, so its own victims may be too few or the wrong ones: they are kept, and
the fewest others of lower priority are added that make room (most important ones are spared first).
"""

from __future__ import annotations

from collections.abc import Sequence

from hami_framework.model import PodRequest
from hami_framework.placement.ledger import Entry, EntryState, Ledger
from hami_framework.placement.standing import Standing


def victims(standing: Standing, ledger: Ledger, column: int, pod: PodRequest, given: Sequence[str]) -> list[str] | None:
    """The owners to evict from this node, the given ones first; None when evicting all of lower priority would not help."""
    gone = {pod.uid, *given}
    others = _lower(standing, ledger, column, pod, gone)
    if not _fits(standing, column, gone | {entry.grant.owner.uid for entry in others}):
        return None
    evicted = {entry.grant.owner.uid for entry in others}
    for entry in sorted(others, key=lambda entry: (-entry.priority, entry.grant.owner.uid)):
        without = evicted - {entry.grant.owner.uid}
        if _fits(standing, column, gone | without):
            evicted = without
    return [*given, *sorted(evicted)]


def _lower(standing: Standing, ledger: Ledger, column: int, pod: PodRequest, gone: set[str]) -> list[Entry]:
    """Committed grants on the node that the pod may push out."""
    uids = {uid for board in standing.fleet.boards[column].values() for uid in board.holders} - gone
    entries = [entry for uid in sorted(uids) if (entry := ledger.get(uid)) is not None]
    return [entry for entry in entries if entry.state is EntryState.COMMITTED and entry.priority < pod.priority]


def _fits(standing: Standing, column: int, without: set[str]) -> bool:
    return standing.search(column, tuple(without)).run() is not None
