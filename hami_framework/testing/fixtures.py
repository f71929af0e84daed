# SPDX-License-Identifier: Apache-2.0
"""pytest fixtures for vendor authors; loaded by pytest itself through the entry point `pytest11`.

What they need of the project is imported when a test asks for it: this module is loaded in every run of pytest, everywhere.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hami_framework.testing.stage import Stage


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A temporary directory whose path is short enough for unix sockets (at most 107 bytes), which `tmp_path` does not promise."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def play(short_directory: Path) -> Iterator[Callable[[str], Stage]]:
    """`play("acme-box")` is a stage with that machine, of whichever installed package can play it."""
    from hami_framework.plugins import load_registry
    from hami_framework.testing.stage import Stage

    registry = load_registry()
    machines = registry.machines()
    stages: list[Stage] = []

    def start(name: str) -> Stage:
        vendor, machine = machines[name]
        directory = short_directory / str(len(stages))
        directory.mkdir()
        stages.append(Stage(registry.vendors[vendor].source, machine, directory))
        return stages[-1]

    yield start
    for stage in stages:
        stage.close()
