# SPDX-License-Identifier: Apache-2.0
"""The binding against CNDev's ABI: sizes, version words, and calls that want more room."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hami_cambricon import driver

Play = Callable[[str], Any]


@pytest.mark.parametrize(
    ("structure", "size"),
    [(driver.SMluSet, 16), (driver.MemoryV2, 176), (driver.Uuid, 56), (driver.PcieV2, 64), (driver.CardSn, 24), (driver.SMluProfile, 144)],
)
def test_sizes(structure: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(structure) == size


def test_a_wrong_version_word_is_refused(play: Play) -> None:
    player = play("mlu370-x8")
    program = (
        "from hami_cambricon import driver; count = driver.CardCount(); count.version = 5\n"
        "try: driver.get('cndevGetDeviceCount', count)\n"
        "except driver.CndevError as error: print(error.code, error)"
    )
    assert player.python(program) == "3 cndevGetDeviceCount: wrong API version (CNDev error 3)\n"


def test_a_node_without_the_library_has_no_devices_and_no_error() -> None:
    code = "import hami_cambricon; from hami_framework import Host; print(list(hami_cambricon.hami_discover(Host(node='n'))))"
    environment = {**os.environ, "LD_LIBRARY_PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
