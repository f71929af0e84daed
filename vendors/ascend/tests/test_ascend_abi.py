# SPDX-License-Identifier: Apache-2.0
"""The binding against DCMI's ABI."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hami_ascend import driver

Play = Callable[[str], Any]


@pytest.mark.parametrize(
    ("structure", "size"),
    [(driver.ChipInfo, 100), (driver.DieInfo, 20), (driver.ElabelInfo, 1280), (driver.PcieInfo, 64), (driver.HbmInfo, 32), (driver.ComputingResource, 96)],
)
def test_sizes(structure: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("driver.memory(driver.Address(99, 0))", "-8007 dcmi_get_device_hbm_info: no such device (DCMI error -8007)"),
        ("driver.call('dcmi_of_tomorrow')", "-8255 dcmi_of_tomorrow: not supported (DCMI error -8255)"),
        ("print(driver.addresses()[0])", "Address(card=1, chip=0)"),
    ],
    ids=["no such chip", "older library", "cards need not begin at 0"],
)
def test_answers(play: Play, program: str, answer: str) -> None:
    code = f"from hami_ascend import driver\ntry: {program}\nexcept driver.DcmiError as error: print(error.code, error)"
    assert play("atlas-300i-duo").python(code).strip() == answer


def test_a_node_without_the_library_has_no_devices_and_no_error() -> None:
    code = "import hami_ascend; from hami_framework import Host; print(list(hami_ascend.hami_discover(Host(node='n'))))"
    environment = {**os.environ, "LD_LIBRARY_PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
