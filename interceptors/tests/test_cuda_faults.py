# SPDX-License-Identifier: Apache-2.0
"""The driver fails after a reserve, or in a free: the program gets the driver's code, and the books are what the device really gave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cuda_rig import FAKE_INCLUDES, Container, offsets, record

PROGRAM = Path(__file__).parent / "cuda" / "faults_program.py"
OVER = 2  # MiB: a mipmapped array is charged by a bound of its size


def expected(step: str) -> int:
    """The code that the step's name asks for."""
    if "fails with" in step:
        return int(step.rsplit(" ", 1)[1])
    return 999 if step.endswith("fails") else 0


def test_whatever_fails_the_books_are_right(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> None:
    driver = fake_driver("cuda", FAKE_INCLUDES)
    container = Container(tmp_path / "container", interceptor("cuda", "nvml", variant="testing"), [driver], (record(0), record(1)))
    (tmp_path / "offsets.json").write_text(json.dumps(offsets(driver)))
    command = [sys.executable, str(PROGRAM), str(container.state_path), str(tmp_path / "offsets.json")]
    done = subprocess.run(command, env=container.environment(HAMI_FAKE_FAULTS=""), capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    said = dict(json.loads(done.stdout))
    assert len(said) > 100
    bounds = {step: OVER if step.startswith("cuMipmappedArrayCreate") and "free again" not in step and "Create fails" not in step else 0 for step in said}
    assert {step: difference for step, (_, difference) in said.items() if not 0 <= difference <= bounds[step]} == {}
    assert {step: code for step, (code, _) in said.items() if code != expected(step)} == {}
