# SPDX-License-Identifier: Apache-2.0
"""What the management library says in a container: its slice; and what it refuses there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import CONTEXT, FAKE_INCLUDES, LIMIT, MIB, Container, record

from hami_framework.testing import fakes
from hami_interceptor import compilers, native

NVML = native.root().parent / "vendors" / "nvidia" / "hami_nvidia" / "fakes" / "nvml.c"

ASK = """
import ctypes, json, sys
nvml = ctypes.CDLL("libnvidia-ml.so.1")
class Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64))
class Memory2(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("total", ctypes.c_uint64), ("reserved", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64))
device, one, two = ctypes.c_void_p(), Memory(), Memory2(version=ctypes.sizeof(Memory2) | 2 << 24)
codes = [nvml.nvmlInit_v2(), nvml.nvmlDeviceGetHandleByIndex_v2(int(sys.argv[1]), ctypes.byref(device))]
codes += [nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(one)), nvml.nvmlDeviceGetMemoryInfo_v2(device, ctypes.byref(two))]
print(json.dumps({"codes": codes, "one": [one.total, one.free, one.used], "two": [two.total, two.free, two.used, two.reserved]}))
"""


DENIED = """
import ctypes, json
nvml = ctypes.CDLL("libnvidia-ml.so.1")
print(json.dumps({name: getattr(nvml, name)(None, 1) for name in ("nvmlDeviceSetComputeMode", "nvmlDeviceSetMigMode", "nvmlDeviceGetName")}))
"""


@pytest.fixture
def container(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]) -> Container:
    nvml = tmp_path / "nvml" / "libnvidia-ml.so.1"
    nvml.parent.mkdir()
    compilers.choose().run([*fakes.FLAGS, f"-I{fakes.HEADER_DIRECTORY}", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(nvml), str(NVML), "-ldl"], "fake NVML")
    return Container(tmp_path / "container", interceptor("cuda", "nvml", variant="testing"), [fake_driver("cuda", FAKE_INCLUDES), nvml], (record(0),))


def ask(container: Container, device: int) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", ASK, str(device)], env=container.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_memory_is_the_slice_and_what_the_container_holds_of_it(container: Container) -> None:
    before = ask(container, 0)
    assert before["codes"] == [0, 0, 0, 0]
    assert before["one"] == [LIMIT, LIMIT, 0]
    with container.running("hold", "cuMemAlloc_v2", 256 * MIB) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = CONTEXT + 256 * MIB
        assert ask(container, 0)["one"] == [LIMIT, LIMIT - held, held]
        assert ask(container, 0)["two"] == [LIMIT, LIMIT - held, held, 0]


def test_a_device_of_no_record_is_shown_as_it_is(container: Container) -> None:
    said = ask(container, 1)
    assert said["codes"] == [0, 0, 0, 0]
    assert isinstance(said["one"], list)
    assert said["one"][0] > LIMIT


def test_what_changes_the_device_for_others_is_refused(container: Container, fake_driver: Callable[..., Path]) -> None:
    container.libraries = [fake_driver("nvml")]
    done = subprocess.run([sys.executable, "-c", DENIED], env=container.environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"nvmlDeviceSetComputeMode": 4, "nvmlDeviceSetMigMode": 4, "nvmlDeviceGetName": 0}
