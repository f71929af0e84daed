# SPDX-License-Identifier: Apache-2.0
"""A program that runs with an interceptor preloaded before a fake driver, one line at a time, and the card that says what it really took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hami_framework.enforcement import container
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.enforcement.region import DeviceUse, Region
from hami_framework.testing import fakes
from hami_framework.testing.card import Card, CardContainer
from hami_interceptor.table import Api, Row

FAKES = Path(fakes.__file__).parent
DATA = Path(__file__).parent.parent / "data"
GRANT = "u1/main"
MIB = 1 << 20
LIMIT = 100 * MIB


class Running:
    """The program, stopped at each line that it has said."""

    def __init__(self, process: subprocess.Popen[str], card: Card, region: Region) -> None:
        self.process, self._card, self._region = process, card, region

    def says(self) -> Any:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, f"the program ended: {self.process.wait()}: {self.process.stderr.read()}"
        return json.loads(line)

    def goes_on(self) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.says()

    def held(self) -> CardContainer:
        """What it really holds of the device."""
        return self._card.devices[0].containers.get(GRANT, CardContainer(used=0, high_water=0, busy_ns=0))

    def books(self) -> DeviceUse:
        """What is charged to it."""
        return self._region.usage(1).devices[0]

    def charged_and_held(self) -> tuple[int, int]:
        """In MiB; looked at from outside, since a query is one of the occasions on which pools are read again."""
        return self.books().used_bytes // MIB, self.held().used // MIB

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A front end, its fake driver, and a container with one device of a machine."""

    place: Path
    program: str
    library: Path
    driver: Path
    machine: tuple[str, str]
    """The fake's variable, and the file's text."""
    device: DevicePolicy

    def start(self, case: str, *arguments: str, environment: Mapping[str, str] | None = None, **changes: Any) -> Running:
        """`program` of tests/data with this case; `changes`: to the policy's record of the device."""
        folder, file = self.place / "container", self.place / "machine"
        file.write_text(self.machine[1])
        values = {name: getattr(self.device, name) for name in self.device.__struct_fields__}
        container.prepare(folder, Policy(container=GRANT, devices=(DevicePolicy(**{**values, **changes}),)), [self.library])
        own = {
            "LD_PRELOAD": str(self.library),
            "LD_LIBRARY_PATH": str(self.driver.parent),
            "HAMI_DEVELOPMENT_POLICY": str(folder),
            "HAMI_GRANT": GRANT,
            self.machine[0]: str(file),
        }
        command = [sys.executable, str(DATA / self.program), self.driver.name, case, *arguments]
        process = subprocess.Popen(
            command, env={**os.environ, **own, **(environment or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return Running(process, Card(file), Region(folder / "state" / "state.bin"))


Start = Callable[..., Running]


@contextmanager
def starting(rig: Rig) -> Iterator[Start]:
    """`start(case, …)` as `Rig.start`; whatever was started has ended when the block is left."""
    running: list[Running] = []

    def start(case: str, *arguments: str, **options: Any) -> Running:
        running.append(rig.start(case, *arguments, **options))
        return running[-1]

    try:
        yield start
    finally:
        for one in running:
            one.stop()


# -- launches -------------------------------------------------------------------------------------------------------------

KERNEL_NS = 4_000_000
SHARE_MILLI = 25_000
LEAST_SECONDS = 0.08
"""Ten kernels of 4 ms take 0.16 s at a quarter of the device, and half that only if the hook is not there. A loaded machine only takes longer."""


def launch_rows(api: Api) -> tuple[Row, ...]:
    return tuple(row for row in api.rows if row.kind == "launch" and row.hooked)


def shape(row: Row, letters: Mapping[str, str]) -> str:
    """The symbol, and a letter for each of its parameters, as `driving.launches` reads them; `letters`: of types that are not plain."""
    return f"{row.symbol}:{''.join(_letter(parameter.declaration, letters) for parameter in row.args or ())}"


def _letter(declaration: str, letters: Mapping[str, str]) -> str:
    for kind, letter in letters.items():
        if kind in declaration:
            return letter
    return "p" if "*" in declaration else "i"


def check_a_launch(said: Any, symbol: str) -> None:
    assert said["codes"][symbol] == [0]
    assert said["seconds"][symbol] > LEAST_SECONDS
