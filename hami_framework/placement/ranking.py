# SPDX-License-Identifier: Apache-2.0
"""Which feasible node stands first. Ties go to the lowest node name, always: equals drawn at random cost whole nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hami_framework.placement.policies import SetScore
from hami_framework.placement.standing import Standing

_SETS_COMPARED = 8
"""Nodes whose exact device sets are compared when the device policy ranks sets."""


def first_ranked(standing: Standing, columns: NDArray[np.intp]) -> int:
    """The best of these feasible columns (at least one)."""
    scores = standing.score[columns]
    order = standing.fleet.order
    together = standing.plan.device_policy.together
    if together is None or all(need.count == 1 for need in standing.plan.needs):
        best = columns[scores == scores.max()]
        return int(best[order[best].argmin()])
    top = np.lexsort((order[columns], -scores))[:_SETS_COMPARED]
    return max((int(columns[position]) for position in top), key=lambda column: _quality(standing, column, together))


def _quality(standing: Standing, column: int, together: SetScore) -> float:
    """How good the sets of devices are that the pod would get there."""
    search = standing.search(column)
    pieces = search.run() or ()
    sets: dict[int, list[int]] = {}
    for piece in pieces:
        sets.setdefault(piece.need, []).append(piece.row)
    devices = [board.device for board in search.rows]
    return sum(together([device for row in rows if (device := devices[row]) is not None]) for rows in sets.values())
