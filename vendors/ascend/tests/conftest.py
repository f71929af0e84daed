# SPDX-License-Identifier: Apache-2.0
"""A process that runs the package against the fake library, as the worker does, and a machine file to change under it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hami_ascend
import pytest

from hami_framework import ContainerEdits, Device, Enforcement, Grant, Health, Usage
from hami_framework.model import decode, encode
from hami_framework.testing.fakes import build_libraries

LOOP = """
import sys
import hami_ascend as vendor
from hami_framework import Grant, Host
from hami_framework.model import decode, encode
known = ()
for line in sys.stdin:
    hook, root, grant = line.split(" ", 2)
    if hook == "hami_discover":
        answer = known = tuple(vendor.hami_discover(Host(node="n", root=root)))
    elif hook in ("hami_health", "hami_usage"):
        answer = getattr(vendor, hook)(known)
        answer = answer if hook == "hami_health" else tuple(answer)
    else:
        grant = decode(grant, Grant)
        devices = [device for held in grant.devices for device in known if device.id == held.device_id]
        answer = getattr(vendor, hook)(grant, devices)
    print(encode(answer).decode(), flush=True)
"""


class Player:
    """The package in a process of its own, on a machine of its own."""

    def __init__(self, name: str, directory: Path) -> None:
        machine = {machine.name: machine for machine in hami_ascend.hami_machines()}[name]
        self.root = directory / "root"
        self.state = directory / "machine.ini"
        self.state.write_text(machine.state)
        libraries = build_libraries(machine)
        own = {key: value.format(state=self.state, libdir=libraries) for key, value in machine.environment.items()}
        self.environment = {**os.environ, **own, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen([sys.executable, "-c", LOOP], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, hook: str, answer: Any, grant: Grant | None = None) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{hook} {self.root} {encode(grant).decode()}\n")
        self.process.stdin.flush()
        return decode(self.process.stdout.readline(), answer)

    def discover(self) -> tuple[Device, ...]:
        found: tuple[Device, ...] = self._ask("hami_discover", tuple[Device, ...])
        return found

    def health(self) -> dict[str, Health]:
        state: dict[str, Health] = self._ask("hami_health", dict[str, Health])
        return state

    def usage(self) -> dict[str, Usage]:
        return {usage.device_id: usage for usage in self._ask("hami_usage", tuple[Usage, ...])}

    def allocate(self, grant: Grant) -> ContainerEdits:
        edits: ContainerEdits = self._ask("hami_allocate", ContainerEdits, grant)
        return edits

    def enforce(self, grant: Grant) -> Enforcement:
        enforcement: Enforcement = self._ask("hami_enforce", Enforcement, grant)
        return enforcement

    def change(self, number: int, **values: str) -> None:
        """Write `key = value` into `[device number]`, as a person would; the fake reads it at its next call."""
        added = "".join(f"{key} = {value}\n" for key, value in values.items())
        header = f"[device {number}]\n"
        before, after = self.state.read_text().split(header)
        kept = re.sub(rf"^({'|'.join(values)}) = .*\n", "", after.split("\n[")[0] + "\n", flags=re.MULTILINE)
        rest = after[len(after.split("\n[")[0]) :]
        scratch = self.state.with_suffix(".new")
        scratch.write_text(before + header + added + kept.rstrip("\n") + rest)
        scratch.replace(self.state)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(10) == 0
        self.process.stdout.close()


@pytest.fixture
def play() -> Iterator[Callable[[str], Player]]:
    """`play("machine-name")` starts a process on that machine."""
    players: list[Player] = []
    directory = Path(tempfile.mkdtemp(dir="/tmp"))

    def start(name: str) -> Player:
        (directory / str(len(players))).mkdir()
        players.append(Player(name, directory / str(len(players))))
        return players[-1]

    yield start
    for player in players:
        player.close()
    shutil.rmtree(directory)
