# SPDX-License-Identifier: Apache-2.0
"""A machine to try a vendor's package on: its fake libraries, its files, and the product's own worker process.

A `Node` is where a machine stands; a `Stage` plays it: the hooks run in the worker as they do on a node, and the test
changes the machine under them. The fixture `play` hands stages out.
"""

from __future__ import annotations

import configparser
import io
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hami_framework.errors import PluginError
from hami_framework.model import ContainerEdits, Device, Enforcement, Grant, Health, Host, Machine, Usage
from hami_framework.plugins import Source
from hami_framework.testing.fakes import build_libraries
from hami_framework.worker.protocol import LENGTH, RESULTS, Answer, Call, Hello, frame, plain

Change = Mapping[str, Mapping[str, str]]
"""Section of the machine file → keys to set in it."""

START_SECONDS = 10.0


class Node:
    """A made-up node with one machine of the vendor: its machine file, its kernel's files, its environment."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.directory = directory
        self.root = directory / "root"
        self.state = directory / "machine.ini"
        self.state.write_text(machine.state)
        self.host = Host(node="stage", root=str(self.root), state_directory=str(directory / "state"))
        for path, contents in machine.files.items():
            self.write(path, contents)
        libraries = build_libraries(machine)
        self.environment = {name: value.format(state=self.state, libdir=libraries) for name, value in machine.environment.items()}

    def write(self, path: str, contents: str) -> None:
        """Put a file where the hooks of this node find it."""
        file = self.host.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(contents)


class Moment(msgspec.Struct):
    """What the hooks said after one change."""

    devices: tuple[Device, ...]
    health: dict[str, Health]
    usage: tuple[Usage, ...]


class Stage(Node):
    """A node whose hooks can be called. The worker starts with the first call; `close` ends it. Hooks that raise: `PluginError`."""

    def __init__(self, source: Source, machine: Machine, directory: Path) -> None:
        super().__init__(machine, directory)
        self._source = source
        self._worker: _Worker | None = None
        self._known: tuple[Device, ...] = ()

    def discover(self) -> tuple[Device, ...]:
        """`hami_discover`, by the worker that remembers what it saw before."""
        self._known = self._ask("hami_discover", host=self.host) or ()
        return self._known

    def health(self) -> dict[str, Health]:
        """`hami_health` of what was last discovered."""
        return self._ask("hami_health", host=self.host, devices=self._known) or {}

    def usage(self) -> dict[str, Usage]:
        """`hami_usage` of what was last discovered, by device id."""
        return {usage.device_id: usage for usage in self._ask("hami_usage", host=self.host, devices=self._known) or ()}

    def allocate(self, grant: Grant) -> ContainerEdits:
        """`hami_allocate`."""
        return self._ask("hami_allocate", grant=grant, devices=self._devices_of(grant)) or ContainerEdits()

    def enforce(self, grant: Grant) -> Enforcement:
        """`hami_enforce`."""
        return self._ask("hami_enforce", grant=grant, devices=self._devices_of(grant)) or Enforcement()

    def release(self, grant: Grant) -> None:
        """`hami_release`."""
        self._ask("hami_release", grant=grant, devices=self._devices_of(grant))

    def change(self, number: int, **values: str) -> None:
        """Set keys of `[device number]`; they stay set."""
        self._replace(_with(self.state.read_text(), {f"device {number}": values}))

    def after(self, *changes: Change) -> list[Moment]:
        """What a new worker says after each change in turn; each change is to the machine as it came."""
        self.close()
        moments = []
        for change in changes:
            self._replace(self.changed(change))
            moments.append(Moment(self.discover(), self.health(), tuple(self.usage().values())))
        return moments

    def devices(self, change: Change | None = None) -> tuple[Device, ...]:
        """What a new worker discovers."""
        return self.after(change or {})[0].devices

    def changed(self, change: Change) -> str:
        """The machine file as it came, with these keys set."""
        return _with(self.machine.state, change)

    def python(self, script: str, *arguments: str) -> str:
        """What a script prints that finds the fake libraries. Raises AssertionError, with its error output, when it fails."""
        done = subprocess.run([sys.executable, "-c", script, *arguments], env=os.environ | self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        """End the worker; the next call starts a new one, which remembers nothing."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _ask(self, hook: str, **arguments: object) -> Any:
        if self._worker is None:
            self._worker = _Worker(self._source, self.directory / "worker.sock", self.environment)
        return self._worker.ask(hook, **arguments)

    def _devices_of(self, grant: Grant) -> tuple[Device, ...]:
        """In the grant's order, as the agent hands them over."""
        return tuple(device for held in grant.devices for device in self._known if device.id == held.device_id)

    def _replace(self, text: str) -> None:
        scratch = self.state.with_suffix(".new")
        scratch.write_text(text)
        scratch.replace(self.state)


class _Worker:
    """The product's worker process, asked without an event loop."""

    def __init__(self, source: Source, path: Path, environment: Mapping[str, str]) -> None:
        self._vendor = source.vendor
        command = [sys.executable, "-m", "hami_framework.worker.main", "--socket", str(path), "--source", msgspec.json.encode(source).decode()]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(START_SECONDS)
            self._process = subprocess.Popen(command, env=os.environ | dict(environment))
            self._connection, _ = listener.accept()
        path.unlink()
        self._incoming = self._connection.makefile("rb")
        hello = self._read(Hello)
        if hello.problem:
            raise PluginError(self._vendor, "(load)", hello.problem)
        self._hooks = hello.hooks

    def ask(self, hook: str, **arguments: object) -> Any:
        if hook not in self._hooks:
            return None
        self._connection.sendall(frame(Call(number=0, hook=hook, arguments={name: plain(value) for name, value in arguments.items()})))
        answer = self._read(Answer)
        if answer.problem:
            raise PluginError(self._vendor, hook, answer.problem)
        return msgspec.convert(answer.result, type=RESULTS[hook])

    def close(self) -> None:
        self._incoming.close()
        self._connection.close()
        assert self._process.wait(START_SECONDS) == 0, f"the worker of {self._vendor} did not end well"

    def _read(self, type_: Any) -> Any:
        header = self._incoming.read(LENGTH.size)
        if len(header) < LENGTH.size:
            raise PluginError(self._vendor, "(worker)", f"the worker died with exit status {self._process.wait(START_SECONDS)}")
        return msgspec.json.decode(self._incoming.read(LENGTH.unpack(header)[0]), type=type_)


def _with(state: str, change: Change) -> str:
    """A machine file with keys set; comments get lost."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), inline_comment_prefixes=("#",))
    parser.read_string(state)
    parser.read_dict(change)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()
