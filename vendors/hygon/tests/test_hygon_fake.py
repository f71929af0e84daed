# SPDX-License-Identifier: Apache-2.0
"""The fake libraries keep the true ABI's rules, which are what breaks naive code (research/vendors.md §4a, §6b)."""

from __future__ import annotations

import json

import pytest

PREAMBLE = """
import ctypes, json
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64
rsmi, dmi = ctypes.CDLL("librocm_smi64.so.2"), ctypes.CDLL("libhydmi.so.1")
"""


@pytest.fixture
def libraries(stage):
    def run(body: str):
        return json.loads(stage.python(PREAMBLE + body))

    return run


def test_status_codes(libraries):
    body = """
count, value, words = c_uint32(), c_uint64(), c_char_p()
answers = [rsmi.rsmi_num_monitor_devices(byref(count))]
rsmi.rsmi_init(c_uint64(0))
answers += [
    rsmi.rsmi_num_monitor_devices(byref(count)), count.value,
    rsmi.rsmi_dev_unique_id_get(c_uint32(8), byref(value)),
    rsmi.rsmi_dev_unique_id_get(c_uint32(0), None),
    rsmi.rsmi_dev_memory_total_get(c_uint32(0), c_int(1), byref(value)),
    rsmi.rsmi_dev_pci_id_get(c_uint32(0), byref(value)), value.value == 0x33 << 8,
]
short = ctypes.create_string_buffer(4)
answers.append(rsmi.rsmi_dev_serial_number_get(c_uint32(0), short, c_uint32(4)))
rsmi.rsmi_status_string(c_uint32(2), byref(words))
print(json.dumps([*answers, words.value.decode()]))
"""
    assert libraries(body) == [8, 0, 8, 1, 1, 2, 0, True, 11, "NOT_SUPPORTED"]


def test_processes_are_counted_without_an_array(libraries, stage):
    stage.state.write_text(stage.changed({"device 0": {"processes": "100:512,101:256"}}))
    body = """
class Process(ctypes.Structure):
    _fields_ = [("pid", c_uint32), ("pasid", c_uint32), ("vram", c_uint64), ("sdma", c_uint64), ("occupancy", c_uint32)]
rsmi.rsmi_init(c_uint64(0))
count = c_uint32()
answers = [rsmi.rsmi_compute_process_info_get(None, byref(count)), count.value]
one, count = (Process * 1)(), c_uint32(1)
answers += [rsmi.rsmi_compute_process_info_get(one, byref(count)), one[0].pid, one[0].vram >> 20]
print(json.dumps(answers))
"""
    assert libraries(body) == [0, 2, 11, 100, 512]


def test_virtual_devices_come_without_a_number_and_take_what_is_there(libraries):
    body = """
def remaining():
    units, memory = c_size_t(), c_size_t()
    assert dmi.dmiGetDeviceRemainingInfo(0, byref(units), byref(memory)) == 0
    return [units.value, memory.value >> 20]
def create(units, mib):
    return dmi.dmiCreateVDevices(0, 1, (c_int * 1)(units), (c_int * 1)(mib))
answers = [create(100, 60000), remaining(), create(30, 1024), create(20, 5000), remaining()]
answers += [dmi.dmiDestroySingleVDevice(0), dmi.dmiDestroySingleVDevice(0), remaining()]
print(json.dumps(answers))
"""
    assert libraries(body) == [0, [20, 5520], 11, 0, [0, 520], 0, 15, [100, 60520]]
