# SPDX-License-Identifier: Apache-2.0
"""The fake CUDA driver by itself: what it takes from the card, when it gives it back, and how long its kernels run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hami_framework.testing.card import Card
from hami_framework.testing.fakes import HEADER_DIRECTORY

MIB = 1 << 20
MACHINE = "[machine]\ncuda = 12040\n" + "".join(
    f"[device {i}]\nuuid = GPU-0000000{i}-0000-0000-0000-000000000000\npci = 0000:0{i}:00.0\nmemory_mib = 1024\ncontext_mib = 100\n" for i in range(2)
)

PRELUDE = """
import ctypes as c, os, sys, time
cu = c.CDLL(sys.argv[1])
u64, size = c.c_uint64, c.c_size_t
def ok(result): assert result == 0, result
def used():
    free, total = size(), size()
    ok(cu.cuMemGetInfo_v2(c.byref(free), c.byref(total)))
    return (total.value - free.value) // 1048576
def alloc(bytes):
    pointer = u64()
    result = cu.cuMemAlloc_v2(c.byref(pointer), size(bytes))
    return pointer if result == 0 else result
ok(cu.cuInit(0))
context = c.c_void_p()
ok(cu.cuDevicePrimaryCtxRetain(c.byref(context), 0))
ok(cu.cuCtxSetCurrent(context))
stream = c.c_void_p()
ok(cu.cuStreamCreate(c.byref(stream), 1))
"""

Play = Callable[..., str]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.ini"
    path.write_text(MACHINE)
    return path


@pytest.fixture
def play(machine: Path, fake_driver: Callable[..., Path]) -> Play:
    """Runs Python text against the driver in a process of its own; answers what it printed."""
    library = fake_driver("cuda", include=[HEADER_DIRECTORY], variant="testing")

    def run(text: str, **environment: str) -> str:
        command = [sys.executable, "-c", PRELUDE + text, str(library)]
        done = subprocess.run(
            command, env={**os.environ, "HAMI_FAKE_NVIDIA": str(machine), **environment}, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("print(used())", "100", id="context"),
        pytest.param("alloc(3 << 20); print(used())", "104", id="whole-pages"),
        pytest.param(
            "many = [alloc(100) for _ in range(64)]; print(used()); [ok(cu.cuMemFree_v2(p)) for p in many]; print(used())", "102\n100", id="shared-page"
        ),
        pytest.param("print(alloc(2 << 30), used())", "2 100", id="out-of-memory"),
        pytest.param("print(alloc(900 << 20) == 2, alloc(1 << 62) == 2)", "False True", id="exactly-what-fits"),
        pytest.param(
            "p = u64(); ok(cu.cuMemAllocAsync(c.byref(p), size(5 << 20), stream)); print(used()); ok(cu.cuMemFreeAsync(p, stream)); print(used());"
            "ok(cu.cuStreamSynchronize(stream)); print(used())",
            "132\n132\n100",
            id="pool",
        ),
        pytest.param(
            "p = alloc(100); given = c.create_string_buffer(b'hello', 100); got = c.create_string_buffer(100);"
            "ok(cu.cuMemcpyHtoD_v2(p, given, size(100))); ok(cu.cuMemcpyDtoH_v2(got, p, size(100))); print(got.value.decode())",
            "hello",
            id="data",
        ),
        pytest.param("alloc(3 << 20); ok(cu.cuDevicePrimaryCtxRelease_v2(0)); print(cu.cuMemFree_v2(u64(1)))", "709", id="context-gone"),
        pytest.param("pid = os.fork() or print(cu.cuMemFree_v2(u64(1)), flush=True) or os._exit(0); os.waitpid(pid, 0)", "3", id="not-after-fork"),
    ],
)
def test_memory_is_counted_as_a_driver_takes_it(play: Play, text: str, expected: str) -> None:
    assert play(text) == expected


def test_kernels_of_a_stream_run_one_after_the_other(play: Play) -> None:
    text = """
module, kernel = c.c_void_p(), c.c_void_p()
ok(cu.cuModuleLoadData(c.byref(module), b"code"))
ok(cu.cuModuleGetFunction(c.byref(kernel), module, b"spin_5ms"))
start = time.monotonic()
for _ in range(20): ok(cu.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, None, None))
ok(cu.cuStreamSynchronize(stream))
print(time.monotonic() - start >= 0.1)
"""
    assert play(text) == "True"


def test_on_a_virtual_clock_an_hour_of_kernels_takes_no_time(play: Play, machine: Path) -> None:
    machine.write_text(MACHINE.replace("[machine]\n", "[machine]\nclock = virtual\n"))
    text = """
module, kernel, begin, end, took = c.c_void_p(), c.c_void_p(), c.c_void_p(), c.c_void_p(), c.c_float()
ok(cu.cuModuleLoadData(c.byref(module), b"code"))
ok(cu.cuModuleGetFunction(c.byref(kernel), module, b"spin_600000ms"))
for event in (begin, end): ok(cu.cuEventCreate(c.byref(event), 0))
ok(cu.cuEventRecord(begin, stream))
for _ in range(6): ok(cu.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, None, None))
ok(cu.cuEventRecord(end, stream))
assert cu.cuEventQuery(end) == 600
ok(cu.cuStreamSynchronize(stream))
ok(cu.cuEventQuery(end))
ok(cu.cuEventElapsedTime(c.byref(took), begin, end))
print(round(took.value))
"""
    assert play(text) == "3600000"


def test_the_card_knows_containers_and_sweeps_the_dead(play: Play, machine: Path) -> None:
    play("alloc(10 << 20)", HAMI_GRANT="uid/first")
    play("alloc(20 << 20); alloc(5 << 30)", HAMI_GRANT="uid/second")
    device = Card(machine).devices[0]
    assert device.used == 0
    assert {name: container.high_water // MIB for name, container in device.containers.items()} == {"uid/first": 110, "uid/second": 120}
    assert device.refused == 1


def test_visible_devices_are_chosen_and_ordered(play: Play) -> None:
    text = """
count, address = c.c_int(), c.create_string_buffer(16)
ok(cu.cuDeviceGetCount(c.byref(count)))
ok(cu.cuDeviceGetPCIBusId(address, 16, 0))
print(count.value, address.value.decode())
"""
    assert play(text, CUDA_VISIBLE_DEVICES="1,0") == "2 0000:01:00.0"
    assert play(text, CUDA_VISIBLE_DEVICES="GPU-00000001,7,0") == "1 0000:01:00.0"


def test_faults_come_from_the_machine_file(play: Play) -> None:
    text = """
open(os.environ["HAMI_FAKE_NVIDIA"], "a").write("[device]\\nfail_next_alloc = 1\\n")
pointer = u64()
ok(cu.cuDeviceGet(c.byref(c.c_int()), 0))
print([cu.cuMemAlloc_v2(c.byref(pointer), size(1 << 20)) for _ in range(2)])
"""
    assert play(text) == "[2, 0]"


def test_physical_memory_lives_as_long_as_a_handle_or_a_mapping(play: Play) -> None:
    text = """
class Properties(c.Structure):
    _fields_ = [("type", c.c_int), ("handles", c.c_int), ("where", c.c_int), ("device", c.c_int), ("win32", c.c_void_p), ("flags", c.c_char * 8)]
handle, address, properties = u64(), u64(), Properties(1, 1, 1, 0)
ok(cu.cuMemCreate(c.byref(handle), size(4 << 20), c.byref(properties), u64(0)))
ok(cu.cuMemAddressReserve(c.byref(address), size(4 << 20), size(0), u64(0), u64(0)))
ok(cu.cuMemMap(address, size(4 << 20), size(0), handle, u64(0)))
ok(cu.cuMemRelease(handle))
held = used()
ok(cu.cuMemUnmap(address, size(4 << 20)))
ok(cu.cuMemAddressFree(address, size(4 << 20)))
print(held, used())
"""
    assert play(text) == "104 100"


def test_a_graph_takes_memory_when_it_runs_and_gives_it_back_when_trimmed(play: Play) -> None:
    text = """
graph, executable, pointer = c.c_void_p(), c.c_void_p(), u64()
ok(cu.cuStreamBeginCapture_v2(stream, 0))
ok(cu.cuMemAllocAsync(c.byref(pointer), size(5 << 20), stream))
ok(cu.cuMemFreeAsync(pointer, stream))
ok(cu.cuStreamEndCapture(stream, c.byref(graph)))
ok(cu.cuGraphInstantiateWithFlags(c.byref(executable), graph, u64(0)))
figures = [used()]
ok(cu.cuGraphLaunch(executable, stream))
ok(cu.cuStreamSynchronize(stream))
figures.append(used())
ok(cu.cuDeviceGraphMemTrim(0))
print(*figures, used())
"""
    assert play(text) == "100 106 100"


def test_the_resolver_knows_versions_and_stream_flags(play: Play) -> None:
    text = """
def resolve(name, version, flags):
    address, status = c.c_void_p(), c.c_int()
    cu.cuGetProcAddress_v2(name, c.byref(address), version, u64(flags), c.byref(status))
    names = ("cuMemAlloc", "cuMemAlloc_v2", "cuLaunchKernel", "cuLaunchKernel_ptsz")
    return next((n for n in names if address.value and c.cast(getattr(cu, n), c.c_void_p).value == address.value), status.value)
print(resolve(b"cuMemAlloc", 12000, 0), resolve(b"cuMemAlloc", 2000, 0), resolve(b"cuLaunchKernel", 12000, 2), resolve(b"cuNothing", 12000, 0))
"""
    assert play(text) == "cuMemAlloc_v2 cuMemAlloc cuLaunchKernel_ptsz 1"
