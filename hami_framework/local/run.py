# SPDX-License-Identifier: Apache-2.0
"""`hami run`: choose, note, prepare, run, wait, release.

The record in the ledger is that of this process. It waits for its program, and the kernel kills the program if this
process dies in whatever way; so a record whose process is gone stands for nothing that runs.
"""

from __future__ import annotations

import getpass
import importlib
import logging
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hami_framework.errors import HamiError
from hami_framework.local import choose, ledger, prepare
from hami_framework.local.ledger import LocalGrant
from hami_framework.local.process import Bind, Launch, own_environment, run_here
from hami_framework.local.vendors import SYSTEM, Setting, Vendors
from hami_framework.model import ContainerEdits, Inventory, Owner, PodGrant, Value
from hami_framework.plugins import Registry, load_registry

log = logging.getLogger(__name__)

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
SI_KERNEL = 128
"""Sent by the terminal: then the program, in the same process group, has got the signal too (sigaction(2))."""


class Order(Value, frozen=True, kw_only=True):
    """One call of `hami run`."""

    command: tuple[str, ...]
    wanted: choose.Wanted
    advisory: bool = False
    unheld: bool = False
    allow: tuple[str, ...] | None = None
    plugin_files: tuple[str, ...] = ()


class Started(Value, frozen=True, kw_only=True):
    """A run that is prepared: the program may begin."""

    record: LocalGrant
    prepared: prepare.Prepared


def load_threads() -> None:
    """Load what starts threads of its own (NumPy's linear algebra) with our signals blocked, before anything else does.

    A thread that does not block a signal may be handed it in our place, and then it ends us instead of reaching the program.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    importlib.import_module("hami_framework.placement.engine")
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def begin(order: Order, setting: Setting, registry: Registry, *, dry: bool = False) -> Started:
    """Everything before the program. `dry`: nothing is noted, and nothing is left. Raises ConfigError, PluginError; nothing is held then."""
    identity = uuid.uuid4().hex[:12]
    owner = Owner(kind="local", uid=f"local-{identity}", namespace=_user(), name=Path(order.command[0]).name if order.command else "")
    state = setting.state_directory
    async with Vendors(setting, _concerned(order, registry, state), [Path(file) for file in order.plugin_files]) as vendors:
        inventory = vendors.inventory()
        with ledger.locked(state, ledger.SWEEPING):  # apart: a vendor may take its time, and the node agent waits for the other lock
            await sweep(state, vendors)
        record = promise(order, setting, registry, inventory, owner, dry=dry)
        try:
            prepared = await prepare.prepare(vendors, record.grant, Path(record.directory), advisory=order.advisory, unheld=order.unheld)
        except BaseException:
            await release(record, state, vendors)
            raise
        record = msgspec.structs.replace(record, level=prepared.level)
        if dry:
            await release(record, state, vendors)
        else:
            ledger.write(state, record)
    return Started(record=record, prepared=prepared)


def _concerned(order: Order, registry: Registry, state: Path) -> Sequence[str] | None:
    """The vendors whose workers are needed: those that the user named, and those that are to release what killed runs left. None: all."""
    named = {word.partition(":")[0] for word in order.wanted.devices}
    if not named or named - registry.vendors.keys():
        return order.allow
    owed = {lead.devices[0].vendor for record in stale(state) for lead in record.leads}
    return sorted(named | owed & registry.vendors.keys())


def promise(order: Order, setting: Setting, registry: Registry, inventory: Inventory, owner: Owner, *, dry: bool = False) -> LocalGrant:
    """Choose and note, under the lock: whoever promises next sees it. Raises ConfigError."""
    with ledger.locked(setting.state_directory):
        others = choose.others(setting.state_directory, inventory.node, *(() if setting.machine else (SYSTEM,)))
        record = _record(choose.choose(registry, inventory, others, order.wanted, owner), order, setting)
        if not dry:
            ledger.write(setting.state_directory, record)
    return record


def perform(started: Started, setting: Setting) -> int:
    """Run the program to its end; its exit status, as shells give it. Raises LaunchFailed when it cannot be begun."""
    record, edits = started.record, started.prepared.edits
    own = _environment(edits, setting)
    launch = Launch(argv=record.command, env=own, cwd=os.getcwd())
    if started.prepared.private:
        root = Path(record.directory) / "view"
        root.mkdir(exist_ok=True)
        mounts = tuple(Bind(source=mount.host_path, target=mount.container_path, read_only=mount.read_only) for mount in edits.mounts)
        launch = msgspec.structs.replace(launch, root=str(root), mounts=mounts)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    try:
        process = run_here(launch)
        _note_program(record, process.pid, setting.state_directory)
        return _supervise(process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def end(started: Started, order: Order, setting: Setting, registry: Registry) -> None:
    """Release everything. A vendor that must undo something is asked once more."""
    record = started.record
    owed = [lead for lead in record.leads if "hami_release" in registry.vendors[lead.devices[0].vendor].hooks]
    if not owed:
        _forget(record, setting.state_directory)
        return
    async with Vendors(setting, [lead.devices[0].vendor for lead in owed], [Path(file) for file in order.plugin_files]) as vendors:
        await release(record, setting.state_directory, vendors)


async def release(record: LocalGrant, state: Path, vendors: Vendors) -> None:
    """Undo what the vendors made, then forget the record; it stays for the next sweep when a vendor cannot."""
    for lead in record.leads:
        vendor = lead.devices[0].vendor
        if vendor not in vendors.pool.vendors:
            log.warning("run %s: vendor %s is not installed any more: nothing is undone", record.id, vendor)
            continue
        try:
            await vendors.pool.release(vendor, lead)
        except HamiError as error:
            log.warning("run %s is not released yet, the next run or `hami ps` tries again: %s", record.id, error)
            return
    _forget(record, state)


async def sweep(state: Path, vendors: Vendors) -> None:
    """Release what runs have left that were killed. Under the lock."""
    for record in stale(state):
        await release(record, state, vendors)


def stale(state: Path) -> tuple[LocalGrant, ...]:
    """Records whose process is gone."""
    records = ledger.read(state)
    living = {record.id for record in ledger.live(records)}
    return tuple(record for record in records if record.id not in living)


def sweep_without_vendors(state: Path) -> None:
    """The same for commands that start no worker: what owes no vendor a release is forgotten, the rest is the next run's to sweep."""
    if not stale(state) or not os.access(ledger.folder(state), os.W_OK):
        return  # nothing to do, or another user's to do
    with ledger.locked(state, ledger.SWEEPING):
        _forget_free(stale(state), state)


def _note_program(record: LocalGrant, pid: int, state: Path) -> None:
    """In the record as it is now: somebody may have changed its limit since."""
    with ledger.locked(state):
        now = next((one for one in ledger.read(state) if one.id == record.id), record)
        ledger.write(state, msgspec.structs.replace(now, program_pid=pid))


def _forget_free(records: Sequence[LocalGrant], state: Path) -> None:
    registry = load_registry(None, [Path(file) for file in dict.fromkeys(file for record in records for file in record.plugin_files)])
    for record in records:
        hooks = (registry.vendors[lead.devices[0].vendor].hooks for lead in record.leads if lead.devices[0].vendor in registry.vendors)
        if not any("hami_release" in each for each in hooks):
            _forget(record, state)


def _forget(record: LocalGrant, state: Path) -> None:
    shutil.rmtree(record.directory, ignore_errors=True)
    ledger.remove(state, record)


def _record(grant: PodGrant, order: Order, setting: Setting) -> LocalGrant:
    directory = setting.state_directory / "local" / f"{grant.owner.uid}.d"
    ticks = ledger.start_ticks(os.getpid())
    assert ticks is not None  # we are running
    return LocalGrant(
        grant=grant,
        pid=os.getpid(),
        start_ticks=ticks,
        boot=ledger.boot_id(),
        at=time.time(),
        command=order.command,
        level="advisory",
        directory=str(directory),
        leads=prepare.leads(grant, directory),
        machine=setting.machine,
        plugin_files=tuple(str(Path(file).resolve()) for file in order.plugin_files),
    )


def _environment(edits: ContainerEdits, setting: Setting) -> dict[str, str]:
    unknown = {name: value for name, value in own_environment(setting.environment).items() if name != prepare.DEVELOPMENT_POLICY}
    return {**unknown, **edits.env}


def _supervise(process: subprocess.Popen[bytes]) -> int:
    """Wait, passing signals on that were sent to us alone."""
    while True:
        status = process.poll()
        if status is not None:
            return status if status >= 0 else 128 - status
        got = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
        if got.si_signo != signal.SIGCHLD and got.si_code != SI_KERNEL:
            process.send_signal(got.si_signo)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
