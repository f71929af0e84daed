# SPDX-License-Identifier: Apache-2.0
"""The exact choice of devices, offers, places and units for one pod on one node.

A depth-first search with backtracking over the pod's needs in start-up order. Containers of one start-up phase share
their devices' capacity at the same time; different phases may reuse what an earlier one held. The first solution in
policy order is the answer, so the same state always gives the same devices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from hami_framework.model import Device, Reason
from hami_framework.placement.board import Board
from hami_framework.placement.groups import device_sets, merged_rule
from hami_framework.placement.load import NOTHING, UNITS, Load, either, offer_load, together
from hami_framework.placement.plan import Cut, Need, Plan
from hami_framework.placement.policies import DeviceView

SEARCH_LIMIT = 20_000
"""Devices tried before a node is given up. Reached only by pods of many containers on a nearly full node with many devices."""

STAGES: tuple[Reason, ...] = (
    Reason.HEALTH, Reason.EXCLUSIVE, Reason.MODE_TAKEN, Reason.PROFILES, Reason.INSTANCES, Reason.SHARES, Reason.MEMORY, Reason.CORES,
    Reason.COUNTER, Reason.UNITS, Reason.PLACEMENT,
)  # fmt: skip
"""The order in which an offer is compared with a device, here and in the vectorised pass."""


@dataclass(frozen=True, slots=True)
class Miss:
    """Why one device cannot serve one need: the furthest that any of its offers came."""

    reason: Reason
    row: int
    dimension: str | None = None
    wanted: int | str | None = None
    free: int | str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """One device (or part of it) for one need."""

    need: int
    container: int
    row: int
    cut: Cut
    load: Load
    start: int | None
    units: int


@dataclass(slots=True)
class Spot:
    """A device of the node during the search: what others hold, and what this pod has taken so far."""

    board: Board
    device: Device
    others: Load
    idle: bool
    pieces: list[Piece] = field(default_factory=list)


@dataclass(slots=True)
class Search:
    """One search on one node. `without`: owners that are looked through as if they were gone."""

    plan: Plan
    rows: Sequence[Board]
    class_ids: Sequence[int]
    without: Collection[str] = ()
    misses: list[Miss] = field(default_factory=list)
    """Of the need that the search could not get beyond; empty after success."""
    stuck_at: int = -1
    _spots: list[Spot] = field(default_factory=list)
    _steps: int = 0

    def run(self) -> list[Piece] | None:
        """The pieces in the order of the plan's needs, or None (then `stuck_at` and `misses` tell why)."""
        for board in self.rows:
            assert board.device is not None  # rows are the devices of the inventory
            others = board.held_without(self.without) if self.without else board.held
            idle = not board.holders or (bool(self.without) and all(uid in self.without for uid in board.holders))
            self._spots.append(Spot(board, board.device, others, idle))
        if self._alone():
            first = self._first_choice()
            if first is not None:
                return [first]
        if not self._place(0):
            return None
        pieces = [piece for spot in self._spots for piece in spot.pieces]
        return sorted(pieces, key=lambda piece: piece.need)

    def _alone(self) -> bool:
        """Whether one device for one need is all that is asked, and no rule about groups has a say in which."""
        if len(self.plan.needs) != 1 or self.plan.needs[0].count != 1:
            return False
        rules = (spot.device.device_class.group_rule for spot in self._spots)
        return not any(rule.same or rule.whole or rule.prefer for rule in rules)

    def _first_choice(self) -> Piece | None:
        """What `_place` would find then, without looking at the devices that come after it in policy order."""
        need = self.plan.needs[0]
        for row in self._ordered(range(len(self._spots))):
            for option in self._options(0, need, row, self._spots[row]):
                if isinstance(option, Piece):
                    return option
        return None

    def _ordered(self, rows: Iterable[int]) -> list[int]:
        """Rows by the device policy's score, then by position."""
        score = self.plan.device_policy.device
        spots = ((row, self._spots[row]) for row in rows)
        return [row for _, row in sorted((-score(DeviceView(spot.device, spot.board.fullness, len(spot.board.holders))), row) for row, spot in spots)]

    def _place(self, index: int) -> bool:
        if index == len(self.plan.needs):
            return True
        need = self.plan.needs[index]
        misses: list[Miss] = []
        candidates: list[int] = []
        for row, spot in enumerate(self._spots):
            first = self._first(index, need, row, spot)
            if isinstance(first, Piece):
                candidates.append(row)
            elif first is not None:
                misses.append(first)
        for rows in self._sets(need, candidates):
            if self._fill(index, need, rows, 0):
                return True
            if self._steps > SEARCH_LIMIT:
                break
        if index > self.stuck_at:
            self.stuck_at = index
            self.misses = misses if len(candidates) < need.count else [Miss(reason=Reason.GROUP, row=candidates[0], dimension="count", wanted=need.count)]
        return False

    def _fill(self, index: int, need: Need, rows: tuple[int, ...], position: int) -> bool:
        if position == len(rows):
            return self._place(index + 1)
        spot = self._spots[rows[position]]
        for option in self._options(index, need, rows[position], spot):
            self._steps += 1
            if isinstance(option, Miss) or self._steps > SEARCH_LIMIT:
                continue
            spot.pieces.append(option)
            if self._fill(index, need, rows, position + 1):
                return True
            spot.pieces.pop()
        return False

    def _sets(self, need: Need, candidates: list[int]) -> Iterator[tuple[int, ...]]:
        """Sets of devices for a need, best first: of one class if possible, of one vendor always."""
        if len(candidates) < need.count:
            return
        ordered = self._ordered(candidates)
        by_class: dict[int, list[int]] = {}
        for row in ordered:
            by_class.setdefault(self.class_ids[row], []).append(row)
        for rows in by_class.values():
            yield from self._allowed_sets(need, rows)
        for class_ids in need.vendors.values():
            mixed = [row for row in ordered if self.class_ids[row] in class_ids]
            if len({self.class_ids[row] for row in mixed}) > 1:
                yield from (rows for rows in self._allowed_sets(need, mixed) if len({self.class_ids[row] for row in rows}) > 1)

    def _allowed_sets(self, need: Need, rows: list[int]) -> Iterator[tuple[int, ...]]:
        if len(rows) < need.count:
            return iter(())
        rule = merged_rule(list(dict.fromkeys(self._spots[row].device.device_class.group_rule for row in rows)))
        if need.partial:
            rule = msgspec.structs.replace(rule, whole=())
        devices = [spot.device for spot in self._spots]
        return device_sets(rows, devices, need.count, rule, self.plan.device_policy.together if need.count > 1 else None)

    def _first(self, index: int, need: Need, row: int, spot: Spot) -> Piece | Miss | None:
        """A piece if the device can serve the need now; else the nearest miss; None when it is not meant at all."""
        nearest: Miss | None = None
        for option in self._options(index, need, row, spot):
            if isinstance(option, Piece):
                return option
            if nearest is None or STAGES.index(option.reason) > STAGES.index(nearest.reason):
                nearest = option
        return nearest

    def _options(self, index: int, need: Need, row: int, spot: Spot) -> Iterator[Piece | Miss]:
        cuts = need.cuts.get(self.class_ids[row])
        if cuts is None or not chosen_by_id(need, spot.device):
            return
        mine, reusable_cells, reusable_units = self._own(need.container, spot)
        for cut in cuts:
            miss = _obstacle(cut, row, spot, mine, idle_only=self.plan.device_policy.idle_only)
            if miss is not None:
                yield miss
            else:
                yield from _pieces(cut, index, need.container, row, spot, mine, reusable_cells, reusable_units)

    def _own(self, container: int, spot: Spot) -> tuple[Load, int, int]:
        """What the pod itself holds there while this container runs, and the cells and units it holds only at other times."""
        if not spot.pieces:
            return NOTHING, 0, 0
        phases = (phase for phase in self.plan.phases if container in phase)
        mine = either(together(piece.load for piece in spot.pieces if piece.container in phase) for phase in phases)
        cells = units = 0
        for piece in spot.pieces:
            cells |= piece.load.cells
            units |= piece.load.units
        return mine, cells & ~mine.cells, units & ~mine.units


def chosen_by_id(need: Need, device: Device) -> bool:
    """Whether the user's lists of ids let this device through."""
    selector = need.selector
    if not selector.use_ids and not selector.nouse_ids:
        return True
    own = device.ids
    if selector.use_ids and not any(wanted.strip().casefold() in own for wanted in selector.use_ids):
        return False
    return not any(unwanted.strip().casefold() in own for unwanted in selector.nouse_ids)


def _obstacle(cut: Cut, row: int, spot: Spot, mine: Load, *, idle_only: bool) -> Miss | None:
    board, others, offer = spot.board, spot.others, cut.offer
    if not spot.device.health.ok:
        return Miss(Reason.HEALTH, row, "health", "healthy", spot.device.health.reason or spot.device.health.state)
    if not board.open:
        return Miss(Reason.HEALTH, row, "promised", "within capacity", "over-committed")
    occupied = not spot.idle or mine is not NOTHING
    if (idle_only and not spot.idle) or (offer.exclusive and occupied) or others.exclusive or mine.exclusive:
        return Miss(Reason.EXCLUSIVE, row, "owners", 0, len(board.holders))
    strangers = (others.modes | mine.modes) - cut.friends
    if strangers:
        return Miss(Reason.MODE_TAKEN, row, "mode", offer.mode, ", ".join(sorted(strangers)))
    if _too_many_profiles(cut, spot):
        return Miss(Reason.PROFILES, row, "profiles", offer.profile, 0)
    held, own = others.amounts, mine.amounts
    for reason, key, amount in cut.amounts:
        free = board.limit(key) - held.get(key, 0) - own.get(key, 0)
        if free < amount:
            return Miss(reason, row, key, amount, free)
    if offer.cost.units:
        free = board.limit(UNITS) - (others.units | mine.units).bit_count()
        if free < offer.cost.units:
            return Miss(Reason.UNITS, row, UNITS, offer.cost.units, free)
    return None


def _too_many_profiles(cut: Cut, spot: Spot) -> bool:
    if cut.max_profiles is None or cut.offer.profile is None:
        return False
    kept = {profile for load in (spot.others, *(piece.load for piece in spot.pieces)) for mode, profile in load.profiles if mode == cut.offer.mode}
    return cut.offer.profile not in kept and len(kept) >= cut.max_profiles


def _pieces(cut: Cut, need: int, container: int, row: int, spot: Spot, mine: Load, reusable_cells: int, reusable_units: int) -> Iterator[Piece | Miss]:
    offer = cut.offer
    units = 0
    if offer.cost.units:
        taken = spot.others.units | mine.units
        units = _lowest_bits(((1 << spot.device.device_class.capacity.units) - 1) & ~taken, reusable_units, offer.cost.units)
    if offer.cost.interval is None:
        yield Piece(need, container, row, cut, offer_load(offer, units=units) if units else cut.load, None, units)
        return
    blocked = spot.others.cells | mine.cells
    line = spot.device.device_class.capacity.line
    free = [(start, cells) for start, cells in cut.places if not cells & blocked and not cells >> line]
    if not free:
        yield Miss(Reason.PLACEMENT, row, "interval", offer.cost.interval.size, f"{line - blocked.bit_count()} cells free, none of the allowed places")
        return
    for start, _ in sorted(free, key=lambda place: (place[1] & ~reusable_cells).bit_count()):
        yield Piece(need, container, row, cut, offer_load(offer, start=start, units=units), start, units)


def _lowest_bits(free: int, first: int, count: int) -> int:
    """`count` bits of `free`: those also in `first` before the others, low before high."""
    chosen = 0
    for source in (free & first, free & ~first):
        while source and chosen.bit_count() < count:
            lowest = source & -source
            chosen |= lowest
            source ^= lowest
    return chosen
