# SPDX-License-Identifier: Apache-2.0
"""A bystander without the library under test: for each line on stdin it says how much of device 0 is in use, by the driver's own word.

Its own context is there from the beginning, so that differences are other programs' doing. Where NVML can be loaded, it says what
NVML says, too: of the device, and of each process.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cuda"))

from cuda_calls import begin, info

PROCESSES = 256
UNKNOWN = 2**64 - 1


class Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64))


class Process(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("used", ctypes.c_uint64), ("gpu_instance", ctypes.c_uint), ("compute_instance", ctypes.c_uint))


def management(uuid: str) -> tuple[Any, ctypes.c_void_p] | None:
    """NVML and its handle of the device, or None where there is none."""
    device = ctypes.c_void_p()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)) != 0:
        return None
    return nvml, device


def by_management(nvml: Any, device: ctypes.c_void_p) -> dict[str, Any]:
    memory, count, processes, driver = Memory(), ctypes.c_uint(PROCESSES), (Process * PROCESSES)(), ctypes.create_string_buffer(96)
    said: dict[str, Any] = {}
    if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0:
        said["nvml_used"] = memory.used
    if nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), processes) == 0:
        said["nvml_processes"] = {str(one.pid): one.used for one in processes[: count.value] if one.used != UNKNOWN}
    if nvml.nvmlSystemGetDriverVersion(driver, 96) == 0:
        said["driver"] = driver.value.decode()
    return said


def main(uuid: str) -> None:
    begin()
    found = management(uuid)
    for _ in sys.stdin:
        free, total = info()
        print(json.dumps({"used": total - free, **(by_management(*found) if found else {})}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
