# SPDX-License-Identifier: Apache-2.0
"""For each hooked symbol of NVML, what its hook does: how to see it, and what is seen. As cuda_rows.py."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from cuda_bench import MIB, Bench, size_t, u64, void
from cuda_rows import Drive

LIMIT = 1024
NOT_HERE = 4_190_000  # above any PID of this kernel's default: a process of another namespace
NO_PERMISSION = 4


class Old(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("used", u64))


class New(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("used", u64), ("instances", ctypes.c_uint * 2))


class Detail(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("used", u64), ("instances", ctypes.c_uint * 2), ("protected", u64))


class DetailList(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("mode", ctypes.c_uint), ("count", ctypes.c_uint), ("processes", ctypes.POINTER(Detail)))


class Memory(ctypes.Structure):
    _fields_ = (("total", u64), ("free", u64), ("used", u64))


class Memory2(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("total", u64), ("reserved", u64), ("free", u64), ("used", u64))


def listed(kind: Any) -> Any:
    """Four processes, of which the second and the last are this one."""
    entries = (kind * 4)()
    for number, pid in enumerate((NOT_HERE, os.getpid(), NOT_HERE + 1, os.getpid())):
        entries[number] = kind(pid=pid, used=number)
    return entries


def processes(b: Bench, symbol: str) -> Any:
    """[what the second and the last use]: the container's own are left, in their order, each with its figures."""
    entries = listed(New if symbol.endswith(("_v2", "_v3")) else Old)
    count = ctypes.c_uint(4)
    code = b.code(symbol, void(0), ctypes.byref(count), entries)
    return [code, [entries[i].used for i in range(count.value)]]


def details(b: Bench, symbol: str) -> Any:
    entries = listed(Detail)
    given = DetailList(count=4, processes=entries)
    return [b.code(symbol, void(0), ctypes.byref(given)), [entries[i].used for i in range(given.count)]]


def memory(b: Bench, symbol: str) -> Any:
    device = void()
    b("nvmlInit_v2")
    b("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(device))
    out = Memory2(version=ctypes.sizeof(Memory2) | 2 << 24) if symbol.endswith("_v2") else Memory()
    b(symbol, device, ctypes.byref(out))
    return [out.total // MIB, out.free // MIB, out.used // MIB]


def denied(b: Bench, symbol: str) -> Any:
    """[what the program gets, how often the driver was asked]."""
    nothing = (size_t(0),) * 8
    return [b.code(symbol, *nothing), b.driver.nvml_fake_calls(ctypes.c_char_p(symbol.encode()))]


MEMORY = {"nvmlDeviceGetMemoryInfo": Drive(memory, [LIMIT, LIMIT, 0]), "nvmlDeviceGetMemoryInfo_v2": Drive(memory, [LIMIT, LIMIT, 0])}
LISTS = {
    **{
        symbol: Drive(processes, [0, [1, 3]])
        for symbol in (
            "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetComputeRunningProcesses_v2",
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetGraphicsRunningProcesses",
            "nvmlDeviceGetGraphicsRunningProcesses_v2",
            "nvmlDeviceGetGraphicsRunningProcesses_v3",
            "nvmlDeviceGetMPSComputeRunningProcesses",
            "nvmlDeviceGetMPSComputeRunningProcesses_v2",
            "nvmlDeviceGetMPSComputeRunningProcesses_v3",
        )
    },
    "nvmlDeviceGetRunningProcessDetailList": Drive(details, [0, [1, 3]]),
}
