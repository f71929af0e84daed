# SPDX-License-Identifier: Apache-2.0
"""The fake NVML keeps the true ABI's rules, which are what breaks naive code (research/vendors.md §6b)."""

from __future__ import annotations

import json

import pytest

PREAMBLE = """
import ctypes, json, pynvml as n
n.nvmlInit()
dev = n.nvmlDeviceGetHandleByIndex(0)
lib = n.nvmlLib
def code(name, *arguments):
    return getattr(lib, name)(*arguments)
def refused(function, *arguments):
    try:
        function(*arguments)
    except n.NVMLError as error:
        return error.value
    return 0
"""


@pytest.fixture
def nvml(stage):
    def run(body: str):
        return json.loads(stage.python(PREAMBLE + body))

    return run


def test_version_words_are_checked(nvml):
    body = """
memory = n.c_nvmlMemory_v2_t()
answers = []
for version in (0x02000028, 0x01000028, 0x02000018):
    memory.version = version
    answers.append(code("nvmlDeviceGetMemoryInfo_v2", dev, ctypes.byref(memory)))
info = n.c_nvmlGpuInstanceProfileInfo_v2_t()
for version in (0x02000098, 0x03000098):
    info.version = version
    answers.append(code("nvmlDeviceGetGpuInstanceProfileInfoV", dev, 0, ctypes.byref(info)))
print(json.dumps(answers))
"""
    assert nvml(body) == [0, 25, 25, 0, 25]


def test_a_buffer_that_is_too_small_gets_the_count(nvml, stage):
    stage.state.write_text(stage.changed({"device 0": {"processes": "100:512,101:256,102:1"}}))
    body = """
count = ctypes.c_uint(2)
two = (n.c_nvmlProcessInfo_v3_t * 2)() if hasattr(n, "c_nvmlProcessInfo_v3_t") else (n.c_nvmlProcessInfo_t * 2)()
first = code("nvmlDeviceGetComputeRunningProcesses_v3", dev, ctypes.byref(count), two)
needed = count.value
small = ctypes.c_uint(1)
place = (n.c_nvmlGpuInstancePlacement_t * 1)()
placements = code("nvmlDeviceGetGpuInstancePossiblePlacements_v2", dev, 19, place, ctypes.byref(small))
pids = [p.pid for p in n.nvmlDeviceGetComputeRunningProcesses(dev)]
short = ctypes.create_string_buffer(8)
print(json.dumps([first, needed, placements, small.value, pids, code("nvmlDeviceGetUUID", dev, short, 8)]))
"""
    assert nvml(body) == [7, 3, 7, 7, [100, 101, 102], 7]


def test_profile_index_is_not_profile_id(nvml):
    body = """
found = {}
for index in range(n.NVML_GPU_INSTANCE_PROFILE_COUNT):
    try:
        found[index] = n.nvmlDeviceGetGpuInstanceProfileInfo(dev, index).id
    except n.NVMLError as error:
        assert error.value == n.NVML_ERROR_NOT_SUPPORTED
print(json.dumps(found))
"""
    assert nvml(body) == {"0": 19, "1": 14, "2": 9, "3": 5, "4": 0, "7": 20, "9": 15}


def test_handles_and_errors(nvml, stage):
    stage.state.write_text(stage.changed({"device 1": {"health": "lost"}}))
    body = """
answers = [
    refused(n.nvmlDeviceGetHandleByIndex, 8),
    refused(n.nvmlDeviceGetHandleByIndex, 1),
    refused(n.nvmlDeviceGetHandleByUUID, b"GPU-nobody"),
    n.nvmlDeviceGetMinorNumber(n.nvmlDeviceGetHandleByPciBusId(b"00000000:47:00.0")),
    n.nvmlDeviceGetPciInfo(dev).busId,
    refused(n.nvmlDeviceGetAttributes_v2, dev) if hasattr(n, "nvmlDeviceGetAttributes_v2") else 3,
]
n.nvmlShutdown()
answers.append(code("nvmlDeviceGetCount_v2", ctypes.byref(ctypes.c_uint())))
print(json.dumps(answers))
"""
    assert nvml(body) == [2, 15, 6, 0, "00000000:07:00.0", 3, 1]


def test_mig_instances_block_memory_slices_and_vanish(nvml):
    """After 3g at 4:4: 7g and a 2g at 4 are refused, 2g at 0 is made; a new MIG device has a new UUID."""
    body = """
answers = [refused(n.nvmlDeviceCreateGpuInstance, dev, 9)]
answers.append(n.nvmlDeviceSetMigMode(dev, 1))
def make(profile, start, size):
    place = n.c_nvmlGpuInstancePlacement_t(start, size)
    return n.nvmlDeviceCreateGpuInstanceWithPlacement(dev, profile, ctypes.byref(place))
three = make(9, 4, 4)
answers.append([refused(make, *where) for where in ((0, 0, 8), (14, 4, 2), (14, 1, 2), (5, 0, 4))])
answers.append(n.nvmlDeviceGetGpuInstanceRemainingCapacity(dev, 14))
compute = n.nvmlGpuInstanceCreateComputeInstance(three, 2)
first = n.nvmlDeviceGetUUID(n.nvmlDeviceGetMigDeviceHandleByIndex(dev, 0))
answers.append([refused(n.nvmlGpuInstanceDestroy, three), refused(n.nvmlDeviceGetUtilizationRates, dev)])
n.nvmlComputeInstanceDestroy(compute)
answers.append(refused(n.nvmlDeviceGetMigDeviceHandleByIndex, dev, 0))
n.nvmlGpuInstanceCreateComputeInstance(three, 2)
answers.append(n.nvmlDeviceGetUUID(n.nvmlDeviceGetMigDeviceHandleByIndex(dev, 0)) != first)
answers.append(n.nvmlDeviceSetMigMode(dev, 0))
print(json.dumps(answers))
"""
    assert nvml(body) == [3, 0, [23, 23, 2, 0], 0, [19, 3], 6, True, 19]
