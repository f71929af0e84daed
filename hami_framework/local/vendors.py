# SPDX-License-Identifier: Apache-2.0
"""The vendors of this machine for the length of one command: their workers started, asked, and ended.

Devices are those that the installed packages find; or, to try things without hardware, those of a machine that a package
can play (`--machine`), whose files then lie in a state directory of its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from hami_framework.errors import ConfigError
from hami_framework.model import Device, Host, Inventory, Machine, Value
from hami_framework.plugins import Registry
from hami_framework.worker import WorkerPool

SETTLE_SECONDS = 12.0
"""Longer than a worker's start and first discovery may take."""

Builder = Callable[[Machine], Path]
"""Machine → the directory with its built fake libraries."""


class Setting(Value, frozen=True, kw_only=True):
    """Where local runs happen: this machine, or one that is played."""

    state_directory: Path
    root: str = "/"
    machine: str | None = None
    vendor: str | None = None
    """Whose machine is played."""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    """What the played machine's libraries need, in workers and programs alike."""


def state_directory() -> Path:
    """Where this user's local runs are kept: the agent's own place for root, so that both see each other."""
    if os.environ.get("HAMI_STATE_DIR"):
        return Path(os.environ["HAMI_STATE_DIR"])
    if os.geteuid() == 0:
        return SYSTEM
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "hami"


SYSTEM = Path("/var/lib/hami")


def played(directory: Path, name: str, registry: Registry, build: Builder) -> Setting:
    """A machine without hardware. Its file is kept between commands: that is where its devices' memory and faults are."""
    machines = registry.machines()
    if name not in machines:
        import difflib

        close = difflib.get_close_matches(name, machines, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"no installed package can play a machine {name!r}{hint} Known: {', '.join(sorted(machines)) or 'none'}")
    vendor, machine = machines[name]
    own = directory / "machines" / name
    state = own / "machine" / f"{vendor}.ini"
    state.parent.mkdir(parents=True, exist_ok=True)
    if not state.exists():
        state.write_text(machine.state)
    for path, contents in machine.files.items():
        file = own / "root" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(contents)
    libraries = str(build(machine))
    environment = {key: value.replace("{state}", str(state)).replace("{libdir}", libraries) for key, value in machine.environment.items()}
    return Setting(state_directory=own, root=str(own / "root"), machine=name, vendor=vendor, environment=environment)


class Vendors:
    """`async with Vendors(setting) as vendors`: asks the hooks of the packages that are installed, each in its own worker."""

    def __init__(self, setting: Setting, allow: Sequence[str] | None = None, plugin_files: Sequence[Path] = ()) -> None:
        self._setting = setting
        self._allow = [setting.vendor] if setting.vendor else allow
        self._plugin_files = plugin_files
        self.node = socket.gethostname()
        self.pool: WorkerPool

    async def __aenter__(self) -> Vendors:
        self._sockets = Path(tempfile.mkdtemp(prefix="hami-", dir="/tmp"))  # unix sockets need a short path
        host = Host(node=self.node, root=self._setting.root, state_directory=str(self._setting.state_directory))
        environments: Mapping[str, Mapping[str, str]] = {self._setting.vendor: self._setting.environment} if self._setting.vendor else {}
        self.pool = WorkerPool(self._sockets / "w", host, environments, self._allow, self._plugin_files)
        try:
            await self.pool.start(SETTLE_SECONDS)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        await self._end()

    async def _end(self) -> None:
        await self.pool.stop()
        await asyncio.to_thread(shutil.rmtree, self._sockets, ignore_errors=True)

    def inventory(self) -> Inventory:
        """What was found. Raises ConfigError when that is nothing, with what each package says about it."""
        infos = tuple(self.pool.vendors.values())
        if not infos:
            raise ConfigError("no vendor's package is installed: pip install hami-framework-…; `hami plugins` lists them")
        devices = tuple(device for info in infos for device in self.pool.devices(info.name))
        if not devices:
            said = "; ".join(f"{info.name}: {info.reason or 'no device of theirs is here'}" for info in infos)
            raise ConfigError(f"no accelerator was found on this machine ({said}); to try without one: --machine NAME, see `hami sandbox machines`")
        return Inventory(node=self.node, vendors=infos, devices=devices)

    def device(self, device_id: str, vendor: str) -> Device:
        return next(device for device in self.pool.devices(vendor) if device.id == device_id)
