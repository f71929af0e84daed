# SPDX-License-Identifier: Apache-2.0
"""A vendor's fake management library shows what its fake driver gave away: both play one card."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hami_framework.model import Machine
from hami_framework.testing.fakes import build_libraries

GIB = 1 << 30

HYGON = """
import ctypes
driver, smi = ctypes.CDLL("libamdhip64.so.6"), ctypes.CDLL("librocm_smi64.so.2")
driver.hipSetDevice(1)
class Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("pasid", ctypes.c_uint), ("vram", ctypes.c_uint64), ("sdma", ctypes.c_uint64), ("occupancy", ctypes.c_uint)]
def take(): return driver.hipMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(1 << 30))
def run():
    for _ in range(8): driver.hipLaunchByPtr(ctypes.c_void_p(4096))
    driver.hipDeviceSynchronize()
def used():
    smi.rsmi_init(ctypes.c_uint64(0))
    bytes_ = ctypes.c_uint64()
    smi.rsmi_dev_memory_usage_get(1, 0, ctypes.byref(bytes_))
    return bytes_.value
def busy():
    percent = ctypes.c_uint()
    smi.rsmi_dev_busy_percent_get(1, ctypes.byref(percent))
    return percent.value
def processes():
    list_, count = (Process * 8)(), ctypes.c_uint(8)
    smi.rsmi_compute_process_info_get(list_, ctypes.byref(count))
    return [(one.pid, one.vram) for one in list_[:count.value]]
"""
ASCEND = """
import ctypes
driver, smi = ctypes.CDLL("libruntime.so"), ctypes.CDLL("libdcmi.so")
driver.rtSetDevice(1)
class Hbm(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint64), ("freq", ctypes.c_uint), ("used", ctypes.c_uint64), ("temp", ctypes.c_int), ("bandwidth", ctypes.c_uint)]
class Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_int), ("bytes", ctypes.c_ulong)]
def take(): return driver.rtMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_uint64(1 << 30), 2, 0)
def run():
    for _ in range(8): driver.rtLaunch(ctypes.c_void_p(4096))
    driver.rtStreamSynchronize(None)
def used():
    smi.dcmi_init()
    hbm = (Hbm * 4)()
    smi.dcmi_get_device_hbm_info(1, 0, hbm)
    return hbm[0].used << 20
def busy():
    percent = ctypes.c_uint()
    smi.dcmi_get_device_utilization_rate(1, 0, 2, ctypes.byref(percent))
    return percent.value
def processes():
    list_, count = (Process * 32)(), ctypes.c_int()
    smi.dcmi_get_device_resource_info(1, 0, list_, ctypes.byref(count))
    return [(one.pid, one.bytes) for one in list_[:count.value]]
"""
CAMBRICON = """
import ctypes
driver, smi = ctypes.CDLL("libcndrv.so"), ctypes.CDLL("libcndev.so")
driver.cnInit(0)
driver.cnCtxCreate(ctypes.byref(ctypes.c_void_p()), 0, 1)
handle = ctypes.c_int()
class Process(ctypes.Structure):
    _fields_ = [("version", ctypes.c_int), ("pid", ctypes.c_uint), ("physical", ctypes.c_uint64), ("virtual", ctypes.c_uint64)]
def take(): return driver.cnMalloc(ctypes.byref(ctypes.c_uint64()), ctypes.c_uint64(1 << 30))
def run():
    for _ in range(8): driver.cnTaskTopoEntityInvoke(ctypes.c_void_p(4096), None)
    driver.cnQueueSync(None)
def used():
    smi.cndevInit(0)
    smi.cndevGetDeviceHandleByIndex(1, ctypes.byref(handle))
    memory = (ctypes.c_int64 * 22)()
    smi.cndevGetMemoryUsageV2(memory, handle)
    return memory[1] << 20
def busy():
    utilization = (ctypes.c_int * 82)(6)
    smi.cndevGetDeviceUtilizationInfo(utilization, handle)
    return utilization[1]
def processes():
    list_, count = (Process * 8)(*(Process(version=6) for _ in range(8))), ctypes.c_uint(8)
    smi.cndevGetProcessInfo(ctypes.byref(count), list_, handle)
    return [(one.pid, one.physical * 1024) for one in list_[:count.value]]
"""
REST = """
import json, os, time
code = take()
first = used()
run()
time.sleep(0.12)
print(json.dumps(dict(code=code, used=first, busy=busy(), mine=[held for pid, held in processes() if pid == os.getpid()])))
"""


@pytest.mark.parametrize(("vendor", "program"), [("hygon", HYGON), ("ascend", ASCEND), ("cambricon", CAMBRICON)], ids=["hygon", "ascend", "cambricon"])
def test_management_shows_what_the_driver_gave(tmp_path: Path, vendor: str, program: str) -> None:
    machines: Callable[[], list[Machine]] = importlib.import_module(f"hami_{vendor}").hami_machines
    machine = next(machine for machine in machines() if "hbm" in machine.state or vendor != "ascend")
    state = tmp_path / "machine"
    state.write_text(machine.state)
    (variable,) = set(machine.environment) - {"LD_LIBRARY_PATH"}
    environment = {**os.environ, "LD_LIBRARY_PATH": str(build_libraries(machine)), variable: str(state), "HAMI_FAKE_KERNEL_NS": "20000000"}
    done = subprocess.run([sys.executable, "-c", program + REST], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["code"] == 0
    assert said["used"] == GIB
    assert said["mine"] == [GIB]
    assert 0 < said["busy"] <= 100
