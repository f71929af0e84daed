# SPDX-License-Identifier: Apache-2.0
"""All devices of the cluster as device-major arrays, kept up to date in place.

Row = position of a device on its node, column = node. A grid per dimension shows what is free; it is never rebuilt for
a pod: a change of one device writes one cell of each grid and logs its column, and capacity grows by doubling. Whoever
derives something from the grids reads the log to learn which columns to look at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hami_framework.errors import ConfigError
from hami_framework.model import DeviceClass, Inventory
from hami_framework.placement.board import Board
from hami_framework.placement.load import MEMORY, NO_OVERCOMMIT, PLAIN, UNITS, Overcommit, limits_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Columns = slice | NDArray[np.intp]

_LOG_LIMIT = 65_536
_MODE_LIMIT = 62
"""Modes are bits of one int64."""


class Fleet:
    """Boards (exact, per device) and grids (the same facts, for all nodes at once)."""

    def __init__(self, overcommit: Callable[[str], Overcommit] | None = None) -> None:
        self._overcommit = overcommit or (lambda node: NO_OVERCOMMIT)
        self.columns: dict[str, int] = {}
        self.names: NDArray[Any] = np.empty(0, dtype=object)
        self.boards: list[dict[str, Board]] = []
        self.rows: list[list[Board]] = []
        self.layouts: list[int] = []
        """Equal numbers: the same classes and groups in the same rows."""
        self._layout_ids: dict[tuple[object, ...], int] = {}
        self.classes: list[DeviceClass] = []
        self._class_ids: dict[DeviceClass, int] = {}
        self._modes: dict[str, int] = {}
        self._named: dict[str, list[Board]] = {}
        """Casefolded id, name or address → the devices that answer to it (a PCI address: one on many nodes)."""
        self.version = 0
        """Counts inventory changes: what was derived from classes and positions is stale when it moves."""
        self.width = 0
        self._depth = 0
        self.class_of: NDArray[np.int16] = np.full((1, 16), -1, dtype=np.int16)
        self.open: Bools = np.zeros((1, 16), dtype=bool)
        self.owners: NDArray[np.int32] = np.zeros((1, 16), dtype=np.int32)
        self.exclusive: Bools = np.zeros((1, 16), dtype=bool)
        self.modes: Ints = np.zeros((1, 16), dtype=np.int64)
        self.cells: Ints = np.zeros((1, 16), dtype=np.int64)
        self.lines: NDArray[np.int16] = np.zeros((1, 16), dtype=np.int16)
        self.memory_limit: Ints = np.zeros((1, 16), dtype=np.int64)
        self.grids: dict[str, Ints] = {key: np.zeros((1, 16), dtype=np.int64) for key in (*PLAIN, UNITS)}
        self.node_used = np.zeros((len(PLAIN), 16))
        self.node_capacity = np.zeros((len(PLAIN), 16))
        self.silent: Bools = np.zeros(16, dtype=bool)
        """Columns of nodes that have not been heard of for too long: nothing new goes there."""
        self._silent_names: frozenset[str] = frozenset()
        self._log: list[int] = []
        self._log_base = 0
        self._order: NDArray[np.intp] | None = None
        self._members: dict[frozenset[int], Bools] = {}

    # -- reading ------------------------------------------------------------------------------------------------

    def view(self, grid: NDArray[Any], columns: Columns) -> NDArray[Any]:
        """The part of a grid that is in use, for these columns."""
        used = grid[: self._depth]
        return used[:, columns] if isinstance(columns, slice) else used.take(columns, axis=1)  # take: three times as quick for a few columns

    @property
    def all(self) -> slice:
        return slice(0, self.width)

    def grid(self, key: str) -> Ints:
        """What is free of a dimension; made on first use, kept up to date from then on."""
        found = self.grids.get(key)
        if found is None:
            found = self.grids[key] = np.zeros_like(self.cells)
            for rows in self.rows:
                for board in rows:
                    found[board.row, board.column] = board.value(key)
        return found

    def members(self, class_ids: frozenset[int], columns: Columns) -> Bools:
        """Where devices of these classes are."""
        found = self._members.get(class_ids)
        if found is None:
            table = np.zeros(len(self.classes) + 1, dtype=bool)
            table[list(class_ids)] = True
            found = self._members[class_ids] = table[self.class_of]
        return self.view(found, columns)

    def located(self, device_ids: Iterable[str]) -> Bools:
        """Where devices that answer to these ids are (`Device.ids`; exact, ignoring case)."""
        found = np.zeros(self.open.shape, dtype=bool)
        for device_id in device_ids:
            for board in self._named.get(device_id.strip().casefold(), ()):
                found[board.row, board.column] = True
        return found

    def mode_bits(self, names: Iterable[str]) -> int:
        """These modes as a bit set; raises `ConfigError` beyond 62 different mode names in one cluster."""
        bits = 0
        for name in names:
            position = self._modes.setdefault(name, len(self._modes))
            if position >= _MODE_LIMIT:
                raise ConfigError(f"more than {_MODE_LIMIT} different device modes in one cluster (at {name!r}); use fewer mode names")
            bits |= 1 << position
        return bits

    def foreign_modes(self, allowed: Iterable[str]) -> int:
        """Every mode bit but these."""
        return ((1 << _MODE_LIMIT) - 1) & ~self.mode_bits(allowed)

    def live_classes(self) -> frozenset[int]:
        """Classes of which the cluster has a device now, healthy or not."""
        return frozenset(np.flatnonzero(np.bincount(self.class_of.ravel() + 1)[1:]).tolist())

    def most_devices(self, class_ids: frozenset[int]) -> int:
        """The largest number of devices of these classes on one node."""
        return int(self.members(class_ids, self.all).sum(axis=0).max(initial=0))

    def largest_memory(self, class_ids: frozenset[int]) -> int:
        """The most memory that one device of these classes may promise, in bytes."""
        return int(self.view(self.memory_limit, self.all)[self.members(class_ids, self.all)].max(initial=0))

    @property
    def log_end(self) -> int:
        return self._log_base + len(self._log)

    def touched_since(self, position: int) -> NDArray[np.intp] | None:
        """Columns changed since this log position, once each; None when the log does not reach back or it is not worth it."""
        if position < self._log_base:
            return None
        recent = set(self._log[position - self._log_base :])
        return None if len(recent) * 4 > self.width + 16 else np.fromiter(recent, dtype=np.intp, count=len(recent))

    @property
    def order(self) -> NDArray[np.intp]:
        """Rank of each column by node name: the tie-break."""
        if self._order is None:
            by_name = sorted(range(self.width), key=lambda column: self.names[column] or "")
            self._order = np.empty(self.width, dtype=np.intp)
            self._order[by_name] = np.arange(self.width)
        return self._order

    # -- writing ------------------------------------------------------------------------------------------------

    def column(self, node: str) -> int:
        """The column of a node, made when it is new."""
        found = self.columns.get(node)
        if found is None:
            found = self.columns[node] = self.width
            self._grow(rows=self._depth, columns=self.width + 1)
            self.width += 1
            self.names[found] = node
            self.silent[found] = node in self._silent_names
            self.boards.append({})
            self.rows.append([])
            self.layouts.append(-1)
            self._order = None
            self.version += 1
            self._touch(found)
        return found

    def board(self, node: str, device_id: str) -> Board:
        """The board of a device, made when it is new (a grant may be seen before its node's inventory)."""
        column = self.column(node)
        boards = self.boards[column]
        if device_id not in boards:
            boards[device_id] = Board(device_id, column)
        return boards[device_id]

    def describe(self, inventory: Inventory) -> None:
        """Take a node's inventory: new, changed and vanished devices."""
        column = self.column(inventory.node)
        self._grow(rows=len(inventory.devices), columns=self.width)
        overcommit = self._overcommit(inventory.node)
        self._clear(column)
        class_ids: dict[int, int] = {}
        for row, device in enumerate(inventory.devices):
            board = self.board(inventory.node, device.id)
            board.describe(device, overcommit)
            board.row = row
            self.rows[column].append(board)
            shape = id(device.device_class)
            if shape not in class_ids:
                class_ids[shape] = self._class_id(device.device_class)
            self.class_of[row, column] = class_ids[shape]
            self.memory_limit[row, column] = board.limits[MEMORY]
            self.lines[row, column] = device.device_class.capacity.line
            for name in device.ids:
                self._named.setdefault(name, []).append(board)
            self._write(board)
        layout = tuple((int(self.class_of[row, column]), device.groups) for row, device in enumerate(inventory.devices))
        self.layouts[column] = self._layout_ids.setdefault(layout, len(self._layout_ids))
        self._settle(column)

    def forget_devices(self, node: str) -> None:
        """The node has no inventory any more; its grants stay known until they are forgotten."""
        if node in self.columns:
            column = self.columns[node]
            self._clear(column)
            self._settle(column)

    def silence(self, nodes: frozenset[str]) -> None:
        """Exactly these nodes are silent. Costs one mark and one look again for each node that differs."""
        for node in nodes ^ self._silent_names:
            column = self.columns.get(node)
            if column is not None:
                self.silent[column] = node in nodes
                self._touch(column)
        self._silent_names = nodes

    def changed(self, boards: Iterable[Board]) -> None:
        """These boards' holders changed: write their cells."""
        columns = set()
        for board in boards:
            columns.add(board.column)
            if board.row >= 0:
                self._write(board)
            elif not board.holders and board.device is None:
                self.boards[board.column].pop(board.device_id, None)
        for column in columns:
            self._sum(column)
            self._touch(column)

    # -- inside -------------------------------------------------------------------------------------------------

    def _class_id(self, device_class: DeviceClass) -> int:
        found = self._class_ids.get(device_class)
        if found is None:
            found = self._class_ids[device_class] = len(self.classes)
            self.classes.append(device_class)
            for key in limits_of(device_class):
                self.grid(key)
        return found

    def _clear(self, column: int) -> None:
        boards = self.boards[column]
        for board in self.rows[column]:
            assert board.device is not None  # rows are the devices of the inventory
            for name in board.device.ids:
                answering = self._named[name]
                answering.remove(board)
                if not answering:
                    del self._named[name]
            board.describe(None)
            board.row = -1
            if not board.holders:
                boards.pop(board.device_id, None)
        self.rows[column] = []
        self.class_of[:, column] = -1
        self.open[:, column] = False

    def _settle(self, column: int) -> None:
        for device_id in [key for key, board in self.boards[column].items() if board.row < 0 and not board.holders]:
            del self.boards[column][device_id]
        self.version += 1
        self._members.clear()
        for index, key in enumerate(PLAIN):
            self.node_capacity[index, column] = sum(board.limits[key] for board in self.rows[column])
        self._sum(column)
        self._touch(column)

    def _write(self, board: Board) -> None:
        place = (board.row, board.column)
        held = board.held
        self.open[place] = board.open
        self.owners[place] = len(board.holders)
        self.exclusive[place] = held.exclusive
        self.modes[place] = self.mode_bits(held.modes)
        self.cells[place] = held.cells
        for key, grid in self.grids.items():
            grid[place] = board.value(key)

    def _sum(self, column: int) -> None:
        for index, key in enumerate(PLAIN):
            self.node_used[index, column] = sum([board.held.amounts.get(key, 0) for board in self.rows[column]])

    def _touch(self, column: int) -> None:
        self._log.append(column)
        if len(self._log) > _LOG_LIMIT:
            half = len(self._log) // 2
            del self._log[:half]
            self._log_base += half

    def _grow(self, *, rows: int, columns: int) -> None:
        depth, width = self.open.shape
        self._depth = max(self._depth, rows)
        if rows <= depth and columns <= width and len(self.names) == width:
            return
        shape = (_doubled(depth, rows), _doubled(width, columns))
        self.class_of = _enlarged(self.class_of, shape, -1)
        self.lines, self.memory_limit = _enlarged(self.lines, shape), _enlarged(self.memory_limit, shape)
        self.open, self.exclusive = _enlarged(self.open, shape), _enlarged(self.exclusive, shape)
        self.owners, self.modes, self.cells = _enlarged(self.owners, shape), _enlarged(self.modes, shape), _enlarged(self.cells, shape)
        self.grids = {key: _enlarged(grid, shape) for key, grid in self.grids.items()}
        self.node_used, self.node_capacity = (_enlarged(array, (len(PLAIN), shape[1])) for array in (self.node_used, self.node_capacity))
        self.silent = np.concatenate((self.silent, np.zeros(max(shape[1] - len(self.silent), 0), dtype=bool)))
        names: NDArray[Any] = np.full(shape[1], None, dtype=object)
        names[: len(self.names)] = self.names
        self.names = names
        self._members.clear()


def _doubled(size: int, needed: int) -> int:
    while size < needed:
        size *= 2
    return size


def _enlarged(array: NDArray[Any], shape: tuple[int, int], fill: int = 0) -> NDArray[Any]:
    larger = np.full(shape, fill, dtype=array.dtype)
    larger[: array.shape[0], : array.shape[1]] = array
    return larger
