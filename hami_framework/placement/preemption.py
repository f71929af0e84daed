# SPDX-License-Identifier: Apache-2.0
"""Whom to evict. kube-scheduler knows no shares, so its own victims may be too few or the wrong ones: they are kept, and
the fewest others of lower priority are added that make room (most important ones are spared first).

For a pod that only devices refuse, kube-scheduler looks for no victims at all: then `room` finds them. Pure; who may not be evicted
(disruption budgets) and who is leaving anyway is told by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from hami_framework.model import PodRequest
from hami_framework.placement.ledger import Entry, EntryState, Ledger
from hami_framework.placement.standing import Standing


@dataclass(frozen=True, slots=True)
class Room:
    """What it takes to make room on one node. No victims: it is enough to wait for those who are leaving."""

    node: str
    victims: tuple[str, ...]
    """Owners to evict, the least important first."""
    priorities: tuple[int, ...]
    """Theirs, in the same order."""


def victims(standing: Standing, ledger: Ledger, column: int, pod: PodRequest, given: Sequence[str]) -> list[str] | None:
    """The owners to evict from this node, the most important first; None when evicting all of lower priority would not help.

    kube-scheduler takes the first for the most important one (`pickOneNodeForPreemption`); those it gave keep their order.
    """
    gone = {pod.uid, *given, *_held_for_lesser(ledger, pod)}
    chosen = _fewest(standing, column, gone, _lower(standing, ledger, column, pod, gone))
    if chosen is None:
        return None
    added = [entry.grant.owner.uid for entry in sorted(chosen, key=_importance)]
    first = ledger.get(given[0]) if given else None
    leads = bool(chosen) and first is not None and max(entry.priority for entry in chosen) > first.priority
    return [*added, *given] if leads else [*given, *added]


def room(
    standing: Standing,
    ledger: Ledger,
    column: int,
    pod: PodRequest,
    *,
    leaving: Collection[str] = (),
    spared: Callable[[Collection[str]], Collection[str]] = lambda uids: (),
) -> Room | None:
    """The fewest and least important owners whose eviction lets the pod in on this node; None when there are none.

    `leaving`: owners that go anyway. `spared`: of a set of owners, those that may not be evicted together with the rest.
    Never an equal or higher priority; without any one of the victims the pod would not fit.
    """
    gone = {pod.uid, *_held_for_lesser(ledger, pod), *leaving}
    node = str(standing.fleet.names[column])
    if _fits(standing, column, gone):
        return Room(node, (), ())
    lower = _lower(standing, ledger, column, pod, gone)
    protected = set(spared([entry.grant.owner.uid for entry in lower]))
    chosen = _fewest(standing, column, gone, lower, spare_first=protected)
    if chosen is None or spared([entry.grant.owner.uid for entry in chosen]):
        return None
    least_first = sorted(chosen, key=_importance, reverse=True)
    return Room(node, tuple(entry.grant.owner.uid for entry in least_first), tuple(entry.priority for entry in least_first))


def _fewest(standing: Standing, column: int, gone: set[str], others: Sequence[Entry], *, spare_first: Collection[str] = ()) -> list[Entry] | None:
    """Of these, a set that makes room and of which none can be left out: each in turn, the most important first, is let stay if it may."""
    if not _fits(standing, column, gone | {entry.grant.owner.uid for entry in others}):
        return None
    evicted = {entry.grant.owner.uid: entry for entry in others}
    for entry in sorted(others, key=lambda entry: (entry.grant.owner.uid not in spare_first, *_importance(entry))):
        without = evicted.keys() - {entry.grant.owner.uid}
        if _fits(standing, column, gone | without):
            del evicted[entry.grant.owner.uid]
    return list(evicted.values())


def _importance(entry: Entry) -> tuple[int, str]:
    return (-entry.priority, entry.grant.owner.uid)


def _held_for_lesser(ledger: Ledger, pod: PodRequest) -> set[str]:
    return {entry.grant.owner.uid for entry in ledger.nominated_below(pod.priority)}


def _lower(standing: Standing, ledger: Ledger, column: int, pod: PodRequest, gone: set[str]) -> list[Entry]:
    """Committed grants on the node that the pod may push out."""
    uids = {uid for board in standing.fleet.boards[column].values() for uid in board.holders} - gone
    entries = [entry for uid in sorted(uids) if (entry := ledger.get(uid)) is not None]
    return [entry for entry in entries if entry.state is EntryState.COMMITTED and entry.priority < pod.priority]


def _fits(standing: Standing, column: int, without: set[str]) -> bool:
    return standing.search(column, tuple(without)).run() is not None
