# SPDX-License-Identifier: Apache-2.0
"""What the engine tells about itself: what is promised per device, and promises that can no longer be kept."""

from __future__ import annotations

from collections.abc import Iterator

from hami_framework.model.base import Value
from hami_framework.placement.board import Board
from hami_framework.placement.fleet import Fleet
from hami_framework.placement.load import CORES, MEMORY, SHARES


class Promise(Value, frozen=True, kw_only=True):
    """What is promised on one device, beside what it may promise (overcommitment included)."""

    device_id: str
    device_name: str
    vendor: str
    model: str
    memory_bytes: int
    memory_capacity_bytes: int
    core_percent: int
    core_capacity_percent: int
    shares: int
    share_capacity: int
    exclusive: bool
    modes: tuple[str, ...]
    owners: tuple[str, ...]
    healthy: bool


class OverCommitment(Value, frozen=True, kw_only=True):
    """A promise that a device cannot keep any more, because it shrank, changed, failed or vanished. It takes no new grants."""

    node: str
    device_id: str
    device_name: str
    dimension: str
    """`memory_bytes`, `core_percent`, …; `device` when it is gone; `health`; `layout` when its partitions no longer fit."""
    promised: int
    capacity: int
    owners: tuple[str, ...]
    reason: str


def promise(board: Board) -> Promise:
    """What is promised on a device that the inventory has."""
    device, held, limits = board.device, board.held, board.limits
    return Promise(
        device_id=board.device_id,
        device_name=device.name if device is not None else "",
        vendor=device.vendor if device is not None else "",
        model=device.device_class.model if device is not None else "",
        memory_bytes=held.amount(MEMORY),
        memory_capacity_bytes=limits.get(MEMORY, 0),
        core_percent=held.amount(CORES),
        core_capacity_percent=limits.get(CORES, 0),
        shares=held.amount(SHARES),
        share_capacity=limits.get(SHARES, 0),
        exclusive=held.exclusive,
        modes=tuple(sorted(held.modes)),
        owners=tuple(sorted(board.holders)),
        healthy=device is not None and device.health.ok,
    )


def over_commitments(fleet: Fleet) -> Iterator[OverCommitment]:
    """Every promise that cannot be kept, in the order of nodes and devices."""
    for boards in fleet.boards:
        for board in boards.values():
            if board.holders and (board.device is None or not board.device.health.ok or board.broken):
                yield from _of_board(str(fleet.names[board.column]), board)


def _of_board(node: str, board: Board) -> Iterator[OverCommitment]:
    def report(dimension: str, promised: int, capacity: int, reason: str) -> OverCommitment:
        name = board.device.name if board.device is not None else ""
        owners = tuple(sorted(board.holders))
        return OverCommitment(
            node=node,
            device_id=board.device_id,
            device_name=name,
            dimension=dimension,
            promised=promised,
            capacity=capacity,
            owners=owners,
            reason=reason,
        )

    if board.device is None:
        yield report("device", len(board.holders), 0, "the device is not in the node's inventory")
        return
    if not board.device.health.ok:
        yield report("health", len(board.holders), 0, board.device.health.reason or "unhealthy")
    for key in board.overdrawn:
        yield report(key, board.held.amount(key), board.limit(key), "more is promised than the device has")
    if board.broken and not board.overdrawn:
        yield report("layout", len(board.holders), 0, "what is promised does not fit the device as it now is")
