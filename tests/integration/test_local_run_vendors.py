# SPDX-License-Identifier: Apache-2.0
"""`hami run` on a machine of each vendor: a real process before the fake driver gets the driver's own answer, and is seen by `hami ps`."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(120)

HAMI = [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]
MIB = 1 << 20
LIMIT_GIB = 4

CUDA = """
driver = ctypes.CDLL("libcuda.so.1")
context = ctypes.c_void_p()
driver.cuInit(0)
driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
driver.cuCtxSetCurrent(context)
def take(block): return driver.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(SIZE))
def seen():
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value
"""
HIP = """
driver = ctypes.CDLL("libamdhip64.so.6")
driver.hipSetDevice(0)
def take(block): return driver.hipMalloc(ctypes.byref(block), ctypes.c_size_t(SIZE))
def seen():
    count = ctypes.c_int()
    driver.hipGetDeviceCount(ctypes.byref(count))
    return count.value
"""
ASCEND = """
driver = ctypes.CDLL("libruntime.so")
driver.rtSetDevice(0)
def take(block): return driver.rtMalloc(ctypes.byref(block), ctypes.c_uint64(SIZE), 2, 0)
def seen():
    count = ctypes.c_int()
    driver.rtGetDeviceCount(ctypes.byref(count))
    return count.value
"""
CNDRV = """
driver = ctypes.CDLL("libcndrv.so")
context = ctypes.c_void_p()
driver.cnInit(0)
driver.cnCtxCreate(ctypes.byref(context), 0, 0)
def take(block): return driver.cnMalloc(ctypes.byref(block), ctypes.c_uint64(SIZE))
def seen():
    count = ctypes.c_int()
    driver.cnDeviceGetCount(ctypes.byref(count))
    return count.value
"""
PROGRAM = """
import ctypes, json, sys
SIZE = 256 << 20
{driver}
blocks, code = [], 0
while code == 0 and len(blocks) < 100:
    block = ctypes.c_uint64()
    code = take(block)
    if code == 0:
        blocks.append(block)
print(json.dumps(dict(code=code, blocks=len(blocks), seen=seen())), flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True)
class Played:
    device: str
    machine: str
    program: str
    out_of_memory: int
    context_blocks: int = 0
    """Of 256 MiB: what a context takes first."""


VENDORS = [
    pytest.param(Played("nvidia", "dgx-a100-80g", CUDA, 2, 2), id="nvidia"),
    pytest.param(Played("hygon", "k100-ai", HIP, 2), id="hygon"),
    pytest.param(Played("ascend", "atlas-800t-a2", ASCEND, 207001), id="ascend"),
    pytest.param(Played("cambricon", "mlu370-x8", CNDRV, 100100), id="cambricon"),
]


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hv-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def ps(state: Path, environment: dict[str, str]) -> Any:
    done = subprocess.run([*HAMI, "ps", "--state-dir", str(state), "-o", "json"], env=environment, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("played", VENDORS)
def test_a_program_is_held_to_its_part_of_a_device_and_seen(state: Path, played: Played) -> None:
    package = Path(importlib.import_module(f"hami_{played.device}").__file__ or "").parent
    assert (package / "lib" / f"libhami_{played.device}.so").is_file(), "make native builds it"
    environment = {**os.environ, "HAMI_STATE_DIR": str(state), "XDG_STATE_HOME": str(state / "home"), "COLUMNS": "200"}
    place = ["--device", f"{played.device}:1", "--machine", played.machine, "--memory", f"{LIMIT_GIB}GiB"]
    command = [*HAMI, "run", *place, "--", sys.executable, "-c", PROGRAM.format(driver=played.program)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(f"hami run ended: {process.communicate(timeout=20)}")
        said = json.loads(line)
        assert said["code"] == played.out_of_memory
        assert said["seen"] == 1, "the driver shows the program its own device only"
        assert 4 * LIMIT_GIB - played.context_blocks <= said["blocks"] <= 4 * LIMIT_GIB
        (row,) = ps(state, environment)
        assert row["memory_limit_bytes"] == LIMIT_GIB * 1024 * MIB
        assert row["memory_used_bytes"] >= said["blocks"] * 256 * MIB
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(timeout=30) == 0
    end = time.monotonic() + 20
    while ps(state, environment) and time.monotonic() < end:
        time.sleep(0.1)
    assert ps(state, environment) == []
