# SPDX-License-Identifier: Apache-2.0
"""A child that was forked in the middle of anything gets the driver's answers, waits for nobody, and owes nothing for its parent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import FAKE_INCLUDES, Container, record

PROGRAM = Path(__file__).parent / "cuda" / "fork_program.py"
CHILDREN = 150


@pytest.fixture
def container(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Container:
    return Container(tmp_path / "container", interceptor("cuda", "nvml", variant="testing"), [fake_driver("cuda", FAKE_INCLUDES)], (record(0), record(1)))


def test_a_child_forked_while_others_allocate_waits_for_no_lock_of_its_parent(container: Container) -> None:
    command = [sys.executable, str(PROGRAM), str(CHILDREN)]
    done = subprocess.run(command, env=container.environment(), capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["well"] == CHILDREN
    assert set(said["codes"]) == {3}, "the driver's own answer in a child: not initialised"
    assert container.high_water() <= container.state().devices[0].high_water_bytes


BEFORE = """
import ctypes, json
cu, out = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
codes = [cu.cuCtxCreate_v2(ctypes.byref(out), 0, 0), cu.cuDevicePrimaryCtxRetain(ctypes.byref(out), 0), cu.cuInit(0)]
codes += [cu.cuDevicePrimaryCtxRetain(ctypes.byref(out), 0), cu.cuDevicePrimaryCtxRetain(ctypes.byref(out), 9)]
print(json.dumps(codes))
"""


def test_what_was_asked_before_the_driver_was_ready_is_the_drivers_error_and_is_forgotten(container: Container) -> None:
    """#1764: an illegal device id; and a device that could not be named yet must not stay refused."""
    done = subprocess.run([sys.executable, "-c", BEFORE], env=container.environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [3, 3, 0, 0, 101]
