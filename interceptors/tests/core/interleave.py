# SPDX-License-Identifier: Apache-2.0
"""A model of the core's state machine, and every way in which its processes can be interleaved and killed.

Each process is a list of atomic steps in the order of the C (slots.c, memory.c, reclaim.c, mutex.c): claim a slot (reclaim the dead if
none is free), reserve under the mutex, reclaim the dead and try again on refusal. `explore` visits every reachable state: in each, any process may
take its next step, or die. The mutex is robust: when its owner dies, the next one who locks it recounts first.

`mistakes` leaves out one precaution at a time, to show that the model would notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

FREE, CLAIMING, LIVE, RECLAIMING = range(4)


@dataclass(frozen=True)
class Slot:
    kind: int = FREE
    number: int = 0
    """Counts up at each claim."""
    held: int = 0
    byte: int | None = None
    """Who holds the liveness lock."""


@dataclass(frozen=True)
class Process:
    at: str = "look"
    slot: int | None = None
    cursor: int = 0
    """The slot that is looked at, or summed up."""
    total: int = 0
    tried: bool = False
    looked: bool = False
    """Found no free slot once, and looks for the dead before it asks again."""
    suspect: tuple[int, int] | None = None
    """A slot that was found dead, with its number then."""
    then: str = ""
    """Where to go on after a recount."""
    done: int = 0


@dataclass(frozen=True)
class World:
    limit: int
    wants: tuple[int, ...]
    processes: tuple[Process, ...]
    slots: tuple[Slot, ...]
    used: int = 0
    owner: int | None = None
    owner_died: bool = False
    mistakes: frozenset[str] = frozenset()

    def process(self, who: int, **changes: object) -> World:
        processes = list(self.processes)
        processes[who] = replace(processes[who], **changes)  # type: ignore[arg-type]
        return replace(self, processes=tuple(processes))

    def slot(self, index: int, **changes: object) -> World:
        slots = list(self.slots)
        slots[index] = replace(slots[index], **changes)  # type: ignore[arg-type]
        return replace(self, slots=tuple(slots))


class Wrong(AssertionError):
    """A state that must not be."""


def start(limit: int, wants: tuple[int, ...], slots: int, mistakes: frozenset[str] = frozenset()) -> World:
    return World(limit=limit, wants=wants, processes=tuple(Process() for _ in wants), slots=tuple(Slot() for _ in range(slots)), mistakes=mistakes)


def die(world: World, who: int) -> World:
    """kill -9: the kernel gives up its byte, and marks the mutex if it was its owner."""
    after = world.process(who, at="dead")
    for index, slot in enumerate(world.slots):
        if slot.byte == who:
            after = after.slot(index, byte=None)
    return replace(after, owner=None, owner_died=True) if world.owner == who else after


def step(world: World, who: int) -> World | None:
    """The next atomic step of a process; None when it has none or has to wait."""
    process = world.processes[who]
    if process.at in ("dead", "refused", "finished"):
        return None
    return _STEPS[process.at](world, who, process)


# -- claiming: the byte, CLAIMING, LIVE ------------------------------------------------------------------------------


def _look(world: World, who: int, process: Process) -> World:
    if process.cursor == len(world.slots):
        if process.looked:
            return world.process(who, at="refused")
        return world.process(who, at="probe", cursor=0, looked=True)
    slot = world.slots[process.cursor]
    if slot.kind == FREE and slot.byte is None:
        return world.slot(process.cursor, byte=who).process(who, at="claim")
    return world.process(who, cursor=process.cursor + 1)


def _claim(world: World, who: int, process: Process) -> World:
    slot = world.slots[process.cursor]
    if slot.kind != FREE:
        return world.slot(process.cursor, byte=None).process(who, at="look", cursor=process.cursor + 1)
    return world.slot(process.cursor, kind=CLAIMING, number=slot.number + 1).process(who, at="live")


def _live(world: World, who: int, process: Process) -> World:
    return world.slot(process.cursor, kind=LIVE).process(who, at="lock", slot=process.cursor, then="reserve")


# -- the mutex -------------------------------------------------------------------------------------------------------


def _lock(world: World, who: int, process: Process) -> World | None:
    if world.owner is not None:
        return None
    if world.owner_died and "no recount" not in world.mistakes:
        return replace(world, owner=who).process(who, at="finish", cursor=0)
    return replace(world, owner=who, owner_died=False).process(who, at=process.then)


def _finish(world: World, who: int, process: Process) -> World:
    """A recount, first half: what was marked is emptied and freed, a slot at a time (and in two steps)."""
    if process.cursor == len(world.slots):
        return world.process(who, at="sum", cursor=0, total=0)
    slot = world.slots[process.cursor]
    if slot.kind == RECLAIMING and slot.held != 0:
        return world.slot(process.cursor, held=0)
    if slot.kind == RECLAIMING:
        return world.slot(process.cursor, kind=FREE)
    return world.process(who, cursor=process.cursor + 1)


def _sum(world: World, who: int, process: Process) -> World:
    if process.cursor == len(world.slots):
        return replace(world, used=process.total).process(who, at="consistent")
    slot = world.slots[process.cursor]
    return world.process(who, cursor=process.cursor + 1, total=process.total + (slot.held if slot.kind == LIVE else 0))


def _consistent(world: World, who: int, process: Process) -> World:
    after = replace(world, owner_died=False)
    if after.used != sum(slot.held for slot in after.slots):
        raise Wrong(f"after a recount {after.used} is not the sum of {after.slots}")
    return after.process(who, at=process.then)


def _unlocked(world: World, who: int, **changes: object) -> World:
    return replace(world, owner=None).process(who, **changes)


# -- memory ----------------------------------------------------------------------------------------------------------


def _reserve(world: World, who: int, process: Process) -> World:
    if world.used + world.wants[who] <= world.limit:
        return world.process(who, at="charge slot")
    if process.tried:
        return _unlocked(world, who, at="refused")
    return _unlocked(world, who, at="probe", cursor=0, tried=True)


def _charge_slot(world: World, who: int, process: Process) -> World:
    assert process.slot is not None
    return world.slot(process.slot, held=world.slots[process.slot].held + world.wants[who]).process(who, at="charge used")


def _charge_used(world: World, who: int, process: Process) -> World:
    return replace(world, used=world.used + world.wants[who]).process(who, at="charged")


def _charged(world: World, who: int, process: Process) -> World:
    if process.done:
        return _unlocked(world, who, at="finished")
    return _unlocked(world, who, at="lock", then="lower slot", done=1)


def _lower_slot(world: World, who: int, process: Process) -> World:
    assert process.slot is not None
    return world.slot(process.slot, held=world.slots[process.slot].held - world.wants[who]).process(who, at="lower used")


def _lower_used(world: World, who: int, process: Process) -> World:
    return replace(world, used=world.used - world.wants[who]).process(who, at="lowered")


def _lowered(world: World, who: int, process: Process) -> World:
    return _unlocked(world, who, at="lock", then="reserve", tried=False)


# -- the dead: probed without the mutex, taken back under it -----------------------------------------------------------


def _probe(world: World, who: int, process: Process) -> World:
    if process.cursor == len(world.slots):
        return world.process(who, at="look", cursor=0) if process.slot is None else world.process(who, at="lock", then="reserve")
    slot = world.slots[process.cursor]
    if process.cursor != process.slot and slot.kind in (LIVE, CLAIMING) and slot.byte is None:
        return world.process(who, at="lock", then="mark", suspect=(process.cursor, slot.number))
    return world.process(who, cursor=process.cursor + 1)


def _mark(world: World, who: int, process: Process) -> World:
    assert process.suspect is not None
    index, number = process.suspect
    slot = world.slots[index]
    same = slot.number == number or "no number" in world.mistakes
    if slot.kind not in (LIVE, CLAIMING) or not same:
        return _unlocked(world, who, at="probe", cursor=index + 1)
    if slot.byte is not None:
        raise Wrong(f"slot {index} of the living process {slot.byte} is taken back")
    return world.slot(index, kind=RECLAIMING).process(who, at="take used")


def _take_used(world: World, who: int, process: Process) -> World:
    assert process.suspect is not None
    held = world.slots[process.suspect[0]].held
    return replace(world, used=max(0, world.used - held)).process(who, at="take slot")


def _take_slot(world: World, who: int, process: Process) -> World:
    assert process.suspect is not None
    return world.slot(process.suspect[0], held=0).process(who, at="free")


def _free(world: World, who: int, process: Process) -> World:
    assert process.suspect is not None
    return world.slot(process.suspect[0], kind=FREE).process(who, at="taken back")


def _taken_back(world: World, who: int, process: Process) -> World:
    assert process.suspect is not None
    return _unlocked(world, who, at="probe", cursor=process.suspect[0] + 1, suspect=None)


_STEPS = {
    "look": _look, "claim": _claim, "live": _live, "lock": _lock, "finish": _finish, "sum": _sum, "consistent": _consistent,
    "reserve": _reserve, "charge slot": _charge_slot, "charge used": _charge_used, "charged": _charged,
    "lower slot": _lower_slot, "lower used": _lower_used, "lowered": _lowered,
    "probe": _probe, "mark": _mark, "take used": _take_used, "take slot": _take_slot, "free": _free, "taken back": _taken_back,
}  # fmt: skip


def check(world: World) -> None:
    """What holds in every state."""
    holding = sum(slot.held for slot in world.slots if slot.byte is not None)
    if holding > world.limit:
        raise Wrong(f"the living hold {holding} of {world.limit}: {world}")
    if world.owner is None and not world.owner_died and world.used != sum(slot.held for slot in world.slots):
        raise Wrong(f"nobody is at the books, and they say {world.used}: {world}")
    if any(slot.kind in (FREE, CLAIMING) and slot.held for slot in world.slots):
        raise Wrong(f"a slot that is not live holds something: {world}")
    if not any(process.at not in ("dead", "refused", "finished") for process in world.processes):
        return
    if all(step(world, who) is None for who in range(len(world.processes))):
        raise Wrong(f"everybody waits: {world}")


def explore(begin: World, deaths: int) -> tuple[int, int]:
    """Visits all states with at most `deaths` deaths; how many there were, and how many of them were ends."""
    seen = {(begin, deaths)}
    todo = [(begin, deaths)]
    ends = 0
    while todo:
        world, left = todo.pop()
        check(world)
        following = list(_following(world, left))
        ends += not following
        for item in following:
            if item not in seen:
                seen.add(item)
                todo.append(item)
    return len(seen), ends


def _following(world: World, deaths: int) -> Iterator[tuple[World, int]]:
    for who, process in enumerate(world.processes):
        after = step(world, who)
        if after is not None:
            yield after, deaths
        if deaths and process.at != "dead":
            yield die(world, who), deaths - 1
