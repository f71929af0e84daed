# SPDX-License-Identifier: Apache-2.0
"""The shared files' layout is described once: making its C header and its Python module anew changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_header_and_the_module_are_what_the_table_says() -> None:
    made = (ROOT / "interceptors" / "core" / "hami_layout.h", ROOT / "hami_framework" / "enforcement" / "layout.py")
    before = [path.read_bytes() for path in made]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "interceptors" / "gen")}
    answer = subprocess.run([sys.executable, "-m", "hami_interceptor", "layout"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    after = [path.read_bytes() for path in made]
    for path, contents in zip(made, before, strict=True):
        if path.read_bytes() != contents:
            path.write_bytes(contents)  # a test leaves the tree as it was
    assert answer.returncode == 0, answer.stderr
    assert after == before, "interceptors/core/layout.toml was changed: run python -m hami_interceptor layout"
