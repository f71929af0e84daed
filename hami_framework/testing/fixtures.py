# SPDX-License-Identifier: Apache-2.0
"""pytest fixtures for vendor authors; loaded by pytest itself through the entry point `pytest11`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A temporary directory whose path is short enough for unix sockets (at most 107 bytes), which `tmp_path` does not promise."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)
