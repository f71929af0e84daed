# SPDX-License-Identifier: Apache-2.0
"""Plays a machine of this package: the hooks run in a process of their own, behind the fake library, as in the worker."""

from __future__ import annotations

import configparser
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import hami_hygon
import msgspec
import pytest

from hami_framework import Device, Health, Machine, Usage
from hami_framework.testing.fakes import build_libraries

Change = Mapping[str, Mapping[str, str]]
"""Section of the machine file → keys to set in it."""

STEPS = """
import json, os, sys
from pathlib import Path
import hami_hygon as vendor
from hami_framework import Host
from hami_framework.model import to_builtins
host = Host(node="n", root=sys.argv[1])
for state in json.load(sys.stdin):
    Path(os.environ["HAMI_FAKE_HYGON"]).write_text(state)
    devices = list(vendor.hami_discover(host=host))
    health = vendor.hami_health(devices=devices)
    usage = list(vendor.hami_usage(devices=devices))
    print(json.dumps({"devices": to_builtins(devices), "health": to_builtins(health), "usage": to_builtins(usage)}))
"""


class Moment(msgspec.Struct):
    """What the hooks said after one change."""

    devices: tuple[Device, ...]
    health: dict[str, Health]
    usage: tuple[Usage, ...]


class Stage:
    """One machine, and what the hooks say of it while its file changes."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.root = directory / "root"
        self.state = directory / "machine.ini"
        self.state.write_text(machine.state)
        libraries = build_libraries(machine)
        self.environment = {name: value.format(state=self.state, libdir=libraries) for name, value in machine.environment.items()}

    def after(self, *changes: Change) -> list[Moment]:
        """One process: what is said after each change in turn."""
        states = json.dumps([self.changed(change) for change in changes])
        done = self.python(STEPS, str(self.root), stdin=states)
        return [msgspec.json.decode(line, type=Moment) for line in done.splitlines()]

    def devices(self, change: Change | None = None) -> tuple[Device, ...]:
        """What is discovered."""
        return self.after(change or {})[0].devices

    def changed(self, change: Change) -> str:
        """The machine file with these keys set."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(self.machine.state)
        parser.read_dict(change)
        text = io.StringIO()
        parser.write(text)
        return text.getvalue()

    def python(self, script: str, *arguments: str, stdin: str = "") -> str:
        """Run a script where the fake library is the one that is found."""
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, input=stdin, env=os.environ | self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def machines() -> dict[str, Machine]:
    return {machine.name: machine for machine in hami_hygon.hami_machines()}


@pytest.fixture
def stage(request: pytest.FixtureRequest, machines: dict[str, Machine], short_directory: Path) -> Stage:
    """The machine named by the test's parameter, or the package's first."""
    return Stage(machines[getattr(request, "param", "k100-ai")], short_directory)
