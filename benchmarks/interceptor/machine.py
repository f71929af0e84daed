# SPDX-License-Identifier: Apache-2.0
"""The machine that the time-modelling fake driver plays for the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import hami_nvidia

from hami_framework.testing.fakes import build_libraries


@dataclass(frozen=True)
class Card:
    """One device of a fake machine, and what a program needs in its environment to meet it."""

    uuid: str
    environment: dict[str, str]


def fake_card(directory: Path, name: str = "dgx-a100-40g") -> Card:
    """The first device of the machine, on a card file of its own."""
    machine = next(machine for machine in hami_nvidia.hami_machines() if machine.name == name)
    state = directory / "machine.ini"
    state.write_text(machine.state)
    libraries = build_libraries(machine)
    environment = {key: value.format(libdir=libraries, state=state) for key, value in machine.environment.items()}
    uuid = next(line.partition("=")[2].strip() for line in machine.state.splitlines() if line.startswith("uuid"))
    return Card(uuid=uuid, environment=environment)
