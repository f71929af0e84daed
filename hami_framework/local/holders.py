# SPDX-License-Identifier: Apache-2.0
"""Who holds what, live: the books of every local run and of every container that the node agent prepared here."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from hami_framework.enforcement import container
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.enforcement.region import ContainerUsage, Region
from hami_framework.errors import FormatError, HamiError
from hami_framework.local import ledger
from hami_framework.model import LEVELS, DeviceGrant, PodGrant, Value

log = logging.getLogger(__name__)

SHOWN = 8
LIMITS = "limits.json"
"""What the agent tells a container of its own limits."""
POLICIES = "containers/*/enforcement/policy/policy.bin"
"""Below the agent's state directory: one directory `<pod uid>_<container>` for each container."""


class Holding(Value, frozen=True, kw_only=True):
    """One device of a holder."""

    device: str
    """Its name where that is known, else what its driver calls it."""
    device_id: str
    vendor: str
    memory_limit_bytes: int | None = None
    core_percent: float | None = None
    memory_used_bytes: int | None = None
    """None: nothing keeps books for it (no interceptor library)."""
    high_water_bytes: int | None = None
    refusals: int = 0
    busy_percent: float | None = None


class Holder(Value, frozen=True, kw_only=True):
    """A local run or a container."""

    kind: str
    """`local` or `pod`."""
    id: str
    name: str
    """Of the program, or `namespace/pod/container`."""
    directory: str
    holdings: tuple[Holding, ...]
    pids: tuple[int, ...] = ()
    """Processes that hold something, as they see themselves."""
    pid: int | None = None
    """The program's own, of a local run."""
    level: str = ""
    command: tuple[str, ...] = ()
    problem: str = ""
    """Why its books cannot be read."""


class Source(Value, frozen=True, kw_only=True):
    """One holder before its books are read."""

    holder: Holder
    granted: tuple[DeviceGrant, ...]


def sources(state: Path) -> Iterator[Source]:
    """Every local run and every container below a state directory."""
    for record in ledger.live(ledger.read(state)):
        holder = Holder(
            kind="local",
            id=record.id,
            name=record.grant.owner.name,
            directory=record.directory,
            holdings=(),
            pid=record.program_pid or record.pid,
            level=record.level,
            command=record.command,
        )
        yield Source(holder=holder, granted=record.grant.containers[0].devices)
    grants = {grant.owner.uid: grant for grant in _known_grants(state)}
    for policy in sorted(state.glob(POLICIES)):
        directory = policy.parents[1]
        uid, _, name = directory.parent.name.partition("_")
        grant = grants.get(uid)
        shown = f"{grant.owner.namespace}/{grant.owner.name}/{name}" if grant else f"{uid}/{name}"
        holder = Holder(kind="pod", id=f"{uid}/{name}", name=shown, directory=str(directory), holdings=(), level=_level(directory.parent / LIMITS))
        yield Source(holder=holder, granted=_of(grant, name))


def _level(limits: Path) -> str:
    """The weakest that the container's own limits file states for memory; empty when it cannot be read."""
    try:
        stated = [held.get("isolation", {}).get("memory", "advisory") for held in json.loads(limits.read_bytes()).get("enforcement", ())]
    except (OSError, ValueError):
        return ""
    return next((level for level in LEVELS if level in stated), "")


def _known_grants(state: Path) -> tuple[PodGrant, ...]:
    try:
        return ledger.agent_grants(state)
    except HamiError as error:
        log.warning("pods are shown by their UIDs: %s", error)
        return ()


def _of(grant: PodGrant | None, name: str) -> tuple[DeviceGrant, ...]:
    held = grant.container(name) if grant else None
    return held.devices if held else ()


def look(states: Iterable[Path], seconds: float = 0.25) -> list[Holder]:
    """All holders, with how busy each kept its devices in the time of the look."""
    found = [source for state in states for source in sources(state)]
    before = {source.holder.id: _read(source) for source in found}
    began = time.monotonic_ns()
    if any(isinstance(one, tuple) for one in before.values()):
        time.sleep(seconds)
    passed = max(1, time.monotonic_ns() - began)
    return [_holder(source, before[source.holder.id], _read(source), passed) for source in found]


Books = tuple[Policy, ContainerUsage]


def _read(source: Source) -> Books | str | None:
    """Policy and books; in words why they cannot be read; None when nothing keeps any."""
    directory = Path(source.holder.directory)
    try:
        policy = container.policy_of(directory)
        return policy, Region(container.state_path(directory)).usage(len(policy.devices))
    except FileNotFoundError:
        return None
    except (FormatError, PermissionError) as error:
        return str(error)


def _holder(source: Source, before: Books | str | None, now: Books | str | None, passed: int) -> Holder:
    if not isinstance(now, tuple):
        holdings = tuple(_promised(held) for held in source.granted)
        return msgspec.structs.replace(source.holder, holdings=holdings, problem=now or "")
    policy, usage = now
    earlier = before[1] if isinstance(before, tuple) and before[1].epoch == usage.epoch else usage
    holdings = tuple(
        Holding(
            device=_name(device, source.granted),
            device_id=device.identities[0][1],
            vendor=device.vendor,
            memory_limit_bytes=device.memory_bytes,
            core_percent=device.core_milli / 1000 if device.core_milli is not None else None,
            memory_used_bytes=books.used_bytes,
            high_water_bytes=books.high_water_bytes,
            refusals=books.refusals,
            busy_percent=round(min(100.0, 100 * max(0, books.busy_ns - was.busy_ns) / passed), 1),
        )
        for device, books, was in zip(policy.devices, usage.devices, earlier.devices, strict=False)
    )
    pids = tuple(sorted(process.pid for process in usage.processes if process.alive))
    return msgspec.structs.replace(source.holder, holdings=holdings, pids=pids)


def _promised(held: DeviceGrant) -> Holding:
    limit = held.offer.limit
    return Holding(
        device=held.device_name, device_id=held.device_id, vendor=held.vendor, memory_limit_bytes=limit.memory_bytes, core_percent=limit.core_percent
    )


def _name(device: DevicePolicy, granted: Sequence[DeviceGrant]) -> str:
    values = {value.casefold() for _, value in device.identities}
    return next((held.device_name for held in granted if held.vendor == device.vendor and held.device_id.casefold() in values), device.identities[0][1])


def find(holders: Sequence[Holder], wanted: str) -> Holder:
    """The holder a word means: its id, its name, or the PID of one of its processes. Raises HamiError with what there is."""
    matches = [one for one in holders if wanted in (one.id, one.name, one.id.removeprefix("local-")) or wanted == one.name.rpartition("/")[0]]
    if not matches and wanted.isdecimal():
        matches = [one for one in holders if int(wanted) in (one.pid, *one.pids)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise HamiError(f"{wanted!r} names several programs or containers of this machine: say which: {_listed(matches)}")
    raise HamiError(f"{wanted!r} names no running program or container of this machine; there are: {_listed(holders) or 'none'}")


def _listed(holders: Sequence[Holder]) -> str:
    words = [f"{one.id} ({one.name}, pid {one.pid})" if one.kind == "local" else one.name for one in holders]
    more = f", and {len(words) - SHOWN} more, see `hami ps`" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
