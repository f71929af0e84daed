# SPDX-License-Identifier: Apache-2.0
"""The verdict on every node for one request shape, kept up to date from the fleet's log.

One vectorised pass compares each offer with each device. It is exact for one need; where rules about groups decide,
its answer is a function of the node's layout and of which devices are eligible, and is remembered as that. For pods with several
needs it settles all nodes but the tight ones, which are searched exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hami_framework.model import Reason
from hami_framework.placement.choice import STAGES, Search
from hami_framework.placement.fleet import Bools, Columns, Fleet
from hami_framework.placement.load import UNITS
from hami_framework.placement.plan import Cut, Need, Plan
from hami_framework.placement.policies import Floats, NodeView

_REASONS: tuple[Reason, ...] = tuple(Reason)
_STAGE = {reason: position for position, reason in enumerate(STAGES)}
_UNKNOWN = -1
Counts = NDArray[np.int64]


class Standing:
    """Feasibility, score and refusal code of every column, for one plan."""

    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self.fleet = fleet
        self.plan = plan
        self.feasible: Bools = np.zeros(0, dtype=bool)
        self.score: Floats = np.zeros(0)
        self._codes: NDArray[np.int8] = np.zeros(0, dtype=np.int8)
        self._seen = -1
        self._version = -1
        self._ids: dict[int, Bools] = {}
        self._patterns: dict[tuple[object, ...], bool] = {}

    def refresh(self) -> None:
        """Bring every column up to date."""
        fleet = self.fleet
        if self._version != fleet.version:
            self._ids = {index: self._chosen_ids(need) for index, need in enumerate(self.plan.needs) if need.selector.use_ids or need.selector.nouse_ids}
            self._version = fleet.version
        changed = fleet.touched_since(self._seen) if self._seen >= 0 and len(self.feasible) == fleet.width else None
        self._seen = fleet.log_end
        if changed is None:
            self.feasible = np.zeros(fleet.width, dtype=bool)
            self.score = np.zeros(fleet.width)
            self._codes = np.full(fleet.width, _UNKNOWN, dtype=np.int8)
            self._look(fleet.all)
        elif len(changed):
            self._look(changed)

    def code(self, column: int) -> Reason:
        """The reason that stands for a refused column; made for all refused columns when the first is asked for.

        A column that has come to fit since it was refused answers `shares`: worth trying again.
        """
        if self.feasible[column]:
            return Reason.SHARES
        if self._codes[column] == _UNKNOWN:
            self._complete()
        return _REASONS[int(self._codes[column])]

    def by_reason(self, names: NDArray[np.object_], columns: NDArray[np.intp]) -> dict[Reason, list[str]]:
        """Refused nodes by code; column -1 is a node that is not known."""
        self._complete()
        codes = np.append(np.where(self.feasible, _number(Reason.SHARES), self._codes), _number(Reason.NO_INVENTORY))[columns]
        if self.plan.refusals:
            codes[:] = _number(self.plan.refusals[0].reason)
        return {_REASONS[number]: names[codes == number].tolist() for number in np.unique(codes).tolist()}

    def _complete(self) -> None:
        unknown = np.flatnonzero(~self.feasible & (self._codes == _UNKNOWN))
        if len(unknown):
            self._codes[unknown] = self._reasons(unknown)

    def search(self, column: int, without: tuple[str, ...] = ()) -> Search:
        """An exact search on one node."""
        rows = self.fleet.rows[column]
        return Search(self.plan, rows, self.fleet.class_of[: len(rows), column].tolist(), without)

    # -- feasibility --------------------------------------------------------------------------------------------

    def _look(self, columns: Columns) -> None:
        """Judge by the devices; where the node is silent they do not matter."""
        self._judge(columns)
        self.feasible[columns] &= ~self.fleet.silent[: self.fleet.width][columns]

    def _judge(self, columns: Columns) -> None:
        fleet, plan = self.fleet, self.plan
        self._codes[columns] = _UNKNOWN
        self.score[columns] = plan.node_policy.node(NodeView(fleet.node_used[:, columns], fleet.node_capacity[:, columns]))
        if plan.refusals:
            self.feasible[columns] = False
            return
        eligible = [self._eligible(index, columns) for index in range(len(plan.needs))]
        counts = [self._counts(need, mask, columns) for need, mask in zip(plan.needs, eligible, strict=True)]
        possible = np.logical_and.reduce([count >= need.count for need, count in zip(plan.needs, counts, strict=True)])
        grouped = any(need.grouped for need in plan.needs)
        if len(plan.needs) == 1:
            self.feasible[columns] = self._by_pattern(eligible[0], possible, columns) if grouped else possible
            return
        total = sum(need.count for need in plan.needs)
        roomy = possible & np.logical_and.reduce([count >= total for count in counts]) if not grouped else np.zeros_like(possible)
        self.feasible[columns] = roomy
        numbers = np.arange(fleet.width)[columns]
        for column in numbers[possible & ~roomy].tolist():
            self.feasible[column] = self.search(column).run() is not None

    def _by_pattern(self, eligible: Bools, possible: Bools, columns: Columns) -> Bools:
        """Group rules: exact, once per layout of a node and set of eligible devices."""
        packed = np.packbits(eligible, axis=0)
        numbers = np.arange(self.fleet.width)[columns]
        result = possible.copy()
        for position in np.flatnonzero(possible).tolist():
            column = int(numbers[position])
            pattern = (self.fleet.layouts[column], packed[:, position].tobytes())
            known = self._patterns.get(pattern)
            if known is None:
                known = self._patterns[pattern] = self.search(column).run() is not None
            result[position] = known
        return result

    def _eligible(self, index: int, columns: Columns) -> Bools:
        """Which devices can serve a need, alone."""
        fleet, need = self.fleet, self.plan.needs[index]
        found: Bools = np.zeros(fleet.view(fleet.open, columns).shape, dtype=bool)
        for cut, class_ids in need.shared_cuts:
            mask = fleet.members(class_ids, columns)
            if not mask.any():
                continue
            for _, passed in self._checks(cut, columns):
                mask = mask & passed
            found |= mask
        return found & fleet.view(self._ids[index], columns) if index in self._ids else found

    def _checks(self, cut: Cut, columns: Columns) -> Iterator[tuple[Reason, Bools]]:
        """The comparisons of one offer with every device, in the order of `choice.STAGES`."""
        fleet = self.fleet
        yield Reason.HEALTH, fleet.view(fleet.open, columns)
        if cut.offer.exclusive or self.plan.device_policy.idle_only:
            yield Reason.EXCLUSIVE, fleet.view(fleet.owners, columns) == 0
        else:
            yield Reason.EXCLUSIVE, ~fleet.view(fleet.exclusive, columns)
        yield Reason.MODE_TAKEN, (fleet.view(fleet.modes, columns) & cut.foreign) == 0
        keys = cut.profile_keys
        if keys is not None:
            present, room = keys
            yield Reason.PROFILES, (fleet.view(fleet.grid(present), columns) > 0) | (fleet.view(fleet.grid(room), columns) > 0)
        for reason, key, amount in cut.amounts:
            yield reason, fleet.view(fleet.grid(key), columns) >= amount
        if cut.offer.cost.units:
            yield Reason.UNITS, fleet.view(fleet.grid(UNITS), columns) >= cut.offer.cost.units
        if cut.interval is not None:
            cells = fleet.view(fleet.cells, columns)
            lines = fleet.view(fleet.lines, columns)
            fits = [((cells & bits) == 0) & (lines >= start + cut.interval.size) for start, bits in cut.places]
            yield Reason.PLACEMENT, np.logical_or.reduce(fits) if fits else np.zeros_like(cells, dtype=bool)

    def _counts(self, need: Need, mask: Bools, columns: Columns) -> Counts:
        """How many of the marked devices one vendor has at most, per column."""
        if len(need.vendors) < 2:
            alone: Counts = mask.sum(axis=0)
            return alone
        by_vendor = [(mask & self.fleet.members(class_ids, columns)).sum(axis=0) for class_ids in need.vendors.values()]
        counts: Counts = np.maximum.reduce(by_vendor)
        return counts

    def _chosen_ids(self, need: Need) -> Bools:
        chosen = self.fleet.located(need.selector.use_ids) if need.selector.use_ids else np.ones(self.fleet.open.shape, dtype=bool)
        return chosen & ~self.fleet.located(need.selector.nouse_ids)

    # -- reasons ------------------------------------------------------------------------------------------------

    def _reasons(self, columns: NDArray[np.intp]) -> NDArray[np.int8]:
        """Codes of refused columns: the first need that cannot be served, the first stage at which too few devices remain."""
        codes = np.full(len(columns), _UNKNOWN, dtype=np.int8)
        if self.plan.refusals:
            codes[:] = _number(self.plan.refusals[0].reason)
        else:
            codes[self.fleet.silent[columns]] = _number(Reason.NODE_SILENT)
        for index in range(len(self.plan.needs)):
            for reason, lacking in self._stages(index, columns):
                codes[(codes == _UNKNOWN) & lacking] = _number(reason)
        for position in np.flatnonzero(codes == _UNKNOWN).tolist():
            search = self.search(int(columns[position]))
            search.run()
            codes[position] = _number(nearest(search))
        return codes

    def _stages(self, index: int, columns: NDArray[np.intp]) -> Iterator[tuple[Reason, Bools]]:
        fleet, need = self.fleet, self.plan.needs[index]
        remaining: Bools = np.asarray(fleet.view(fleet.class_of, columns) >= 0)
        yield Reason.NO_INVENTORY, _none(remaining)
        for reason in (Reason.VENDOR_MISSING, Reason.TYPE):
            remaining &= ~fleet.members(frozenset(key for key, refusal in need.refusals.items() if refusal.reason is reason), columns)
            yield reason, _none(remaining)
        if index in self._ids:
            remaining &= fleet.view(self._ids[index], columns)
            yield Reason.ID, _none(remaining)
        offered = remaining & fleet.members(frozenset(need.cuts), columns)
        nothing = _none(offered)
        for class_id, refusal in need.refusals.items() if nothing.any() else ():
            yield refusal.reason, nothing & ~_none(remaining & fleet.members(frozenset((class_id,)), columns))
        yield Reason.TOO_FEW_DEVICES, self._counts(need, offered, columns) < need.count
        for reason, mask in self._cumulative(index, need, columns, offered):
            yield reason, self._counts(need, mask, columns) < need.count

    def _cumulative(self, index: int, need: Need, columns: Columns, offered: Bools) -> Iterator[tuple[Reason, Bools]]:
        """After each stage, the devices that some offer still fits."""
        running = [(offered & self.fleet.members(class_ids, columns), list(self._checks(cut, columns))) for cut, class_ids in need.shared_cuts]
        order = dict.fromkeys(reason for _, checks in running for reason, _ in checks)
        for reason in sorted(order, key=_STAGE.__getitem__):
            running = [(_passed(mask, checks, reason), checks) for mask, checks in running]
            yield reason, np.logical_or.reduce([mask for mask, _ in running])


def _none(mask: Bools) -> Bools:
    """Columns in which nothing is marked."""
    empty: Bools = np.logical_not(mask.any(axis=0))
    return empty


def _passed(mask: Bools, checks: list[tuple[Reason, Bools]], stage: Reason) -> Bools:
    for reason, passed in checks:
        if reason is stage:
            mask = mask & passed
    return mask


def nearest(search: Search) -> Reason:
    """The reason of a failed search: of the devices looked at last, the one that came furthest."""
    if not search.misses:
        return Reason.TOO_FEW_DEVICES
    return max(search.misses, key=lambda miss: _STAGE.get(miss.reason, len(_STAGE))).reason


def _number(reason: Reason) -> int:
    return _REASONS.index(reason)
