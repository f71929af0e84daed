# SPDX-License-Identifier: Apache-2.0
"""Which sets of devices may be taken together, best first, by the group rules of their classes.

Rules come from vendors as data (`GroupRule`); the facts behind them (rings of four, modules of two dies) are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

from hami_framework.model import Device, GroupRule
from hami_framework.placement.policies import SetScore

_RANKED_SETS = 2000
"""Sets that are compared by links and preferred groups before the best is taken; enough for every choice out of 12."""


def merged_rule(rules: Sequence[GroupRule]) -> GroupRule:
    """The rule of a set of devices whose classes have these rules: all of them."""
    if len(rules) == 1:
        return rules[0]
    return GroupRule(
        allowed_counts=rules[0].allowed_counts,
        same=tuple(dict.fromkeys(kind for rule in rules for kind in rule.same)),
        whole=tuple(dict.fromkeys(kind for rule in rules for kind in rule.whole)),
        prefer=tuple(dict.fromkeys(kind for rule in rules for kind in rule.prefer)),
    )


def device_sets(
    candidates: Sequence[int], devices: Sequence[Device], count: int, rule: GroupRule, together: SetScore | None = None
) -> Iterator[tuple[int, ...]]:
    """Sets of `count` of the candidate rows that the rule allows, best first.

    `candidates` are rows in the order in which single devices are preferred; `devices` are all devices of the node.
    """
    for pool in _pools(candidates, devices, count, rule):
        sets = _combinations(_blocks(pool, devices, rule), count)
        if together is None and not rule.prefer:
            yield from sets
            continue
        ranked = sorted(islice(sets, _RANKED_SETS), key=lambda rows: _rank(rows, devices, rule, together))
        yield from ranked
        yield from sets


def _rank(rows: tuple[int, ...], devices: Sequence[Device], rule: GroupRule, together: SetScore | None) -> tuple[int, float]:
    chosen = [devices[row] for row in rows]
    spread = sum(len({device.group(kind) or device.id for device in chosen}) - 1 for kind in rule.prefer)
    return spread, -together(chosen) if together is not None else 0.0


def _pools(candidates: Sequence[int], devices: Sequence[Device], count: int, rule: GroupRule) -> list[Sequence[int]]:
    """The candidates, split by every kind of group that a set of this size must not leave."""
    pools: list[Sequence[int]] = [candidates]
    for kind in rule.same:
        sizes: dict[str, int] = {}
        for device in devices:
            name = device.group(kind) or device.id
            sizes[name] = sizes.get(name, 0) + 1
        if max(sizes.values(), default=0) >= count:
            pools = [part for pool in pools for part in _split(pool, devices, kind)]
    fitting = [pool for pool in pools if len(pool) >= count]
    if rule.same:
        fitting.sort(key=lambda pool: _waste(len(pool) - count, rule.allowed_counts))
    return fitting


def _split(pool: Sequence[int], devices: Sequence[Device], kind: str) -> list[Sequence[int]]:
    parts: dict[str, list[int]] = {}
    for row in pool:
        parts.setdefault(devices[row].group(kind) or devices[row].id, []).append(row)
    return list(parts.values())


@lru_cache(maxsize=1024)
def _waste(left: int, allowed: tuple[int, ...]) -> tuple[int, int]:
    """How little use the rest of a group is: the number of allowed counts it falls into, then what is best kept whole.

    With the counts 1, 2, 4 this orders groups by what would be left as 0, 2, 1, 3, which is the published preference
    of the rings of four (one device: rings with 1, 3, 2, 4 free; two: 2, 4, 3). Any count allowed: the tightest group.
    """
    if not allowed:
        return left, 0
    pieces = [0] + [left + 1] * left
    for amount in range(1, left + 1):
        pieces[amount] = min((pieces[amount - size] + 1 for size in allowed if size <= amount), default=left + 1)
    return pieces[left], -left


def _blocks(pool: Sequence[int], devices: Sequence[Device], rule: GroupRule) -> list[tuple[int, ...]]:
    """The pool in pieces that are taken entirely or not at all; pieces that are not all candidates are left out."""
    if not rule.whole:
        return [(row,) for row in pool]
    inside = set(pool)
    blocks: dict[frozenset[int], None] = {}
    for row in pool:
        block = {row}
        while True:
            names = {(kind, name) for kind in rule.whole for member in block if (name := devices[member].group(kind)) is not None}
            wider = block | {other for other, device in enumerate(devices) if any((kind, device.group(kind)) in names for kind in rule.whole)}
            if wider == block:
                break
            block = wider
        if block <= inside:
            blocks.setdefault(frozenset(block))
    return [tuple(sorted(block, key=pool.index)) for block in blocks]


def _combinations(blocks: Sequence[tuple[int, ...]], count: int, start: int = 0) -> Iterator[tuple[int, ...]]:
    """Unions of blocks of exactly `count` rows, in the order of the blocks."""
    if count == 0:
        yield ()
        return
    for index in range(start, len(blocks)):
        block = blocks[index]
        if len(block) <= count:
            for rest in _combinations(blocks, count - len(block), index + 1):
                yield block + rest
