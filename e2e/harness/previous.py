# SPDX-License-Identifier: Apache-2.0
"""The sources of the previous release, out of this repository's history."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASE, COMMIT = "0.1", "73e246ee3e9a1ce1ef5b48ded8bc7935ac64c95c"


def sources(directory: Path) -> Path:
    """A folder for PYTHONPATH. Skips the test, in words, where the clone is too shallow: `tests/unit/test_golden_formats.py` stands for it there."""
    kept = subprocess.run(["git", "archive", COMMIT, "hami_framework"], cwd=ROOT, capture_output=True, check=False)
    if kept.returncode != 0:
        pytest.skip(f"this clone has no commit {COMMIT[:7]}: release {RELEASE} cannot run beside this one here")
    folder = directory / f"release-{RELEASE}"
    with tarfile.open(fileobj=io.BytesIO(kept.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder
