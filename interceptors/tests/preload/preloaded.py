# SPDX-License-Identifier: Apache-2.0
"""A program that runs with an interceptor preloaded before a fake driver, one line at a time, and the card that says what it really took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hami_framework.enforcement import container
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_framework.testing import fakes
from hami_framework.testing.card import Card, CardContainer

FAKES = Path(fakes.__file__).parent
DATA = Path(__file__).parent.parent / "data"
GRANT = "u1/main"


class Running:
    """The program, stopped at each line that it has said."""

    def __init__(self, process: subprocess.Popen[str], card: Card) -> None:
        self.process, self._card = process, card

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
        return self._card.devices[0].containers.get(GRANT, CardContainer(used=0, high_water=0, busy_ns=0))

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def run(
    place: Path, program: str, case: str, *, library: Path, driver: Path, machine: tuple[str, str], device: DevicePolicy, environment: Mapping[str, str]
) -> Running:
    """`program` of tests/data with `case`, in a container that has `device`; `machine`: the fake's variable, and the file's text."""
    folder, file = place / "container", place / "machine"
    file.write_text(machine[1])
    container.prepare(folder, Policy(container=GRANT, devices=(device,)), [library])
    own = {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(driver.parent),
        "HAMI_DEVELOPMENT_POLICY": str(folder),
        "HAMI_GRANT": GRANT,
        machine[0]: str(file),
    }
    command = [sys.executable, str(DATA / program), driver.name, case]
    process = subprocess.Popen(
        command, env={**os.environ, **own, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return Running(process, Card(file))
