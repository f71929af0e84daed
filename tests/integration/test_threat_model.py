# SPDX-License-Identifier: Apache-2.0
"""Each way round a soft limit that docs/enforcement.md lists: resisted, or found by the agent from the driver's own figures.

Real processes with the real library in production's own places; `test_enforcement_doc.py` sees to it that every row has its test.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from agent_lab import free_port
from gpu_lab import MIB, NOT_PERMITTED, OUT_OF_MEMORY, Box, Gpu, GpuLab, python
from msgspec import structs

from hami_framework.enforcement import container as containers
from hami_framework.enforcement import layout, policy
from hami_framework.enforcement.fields import offset

LIMIT = 1024 * MIB


def found_in_time(began: float) -> bool:
    """5 s on a machine that has the time; in proportion on one that has not."""
    return time.monotonic() - began < 5 * max(1.6, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture
def folder(short_directory: Path) -> Path:
    short_directory.chmod(0o755)
    return short_directory


@pytest.fixture
def gpu(folder: Path) -> Gpu:
    return Gpu(folder)


@pytest.fixture
def box(folder: Path, gpu: Gpu) -> Box:
    return Box(folder, gpu)


# -- resisted: the limit holds all the same ----------------------------------------------------------------------------


def kept(box: Box) -> list[str]:
    """What the fake machine needs of the environment; it stands for the hardware, which no program can unset."""
    return [f"{name}={value}" for name, value in box.gpu.environment.items()]


def generous(folder: Path) -> Path:
    """A policy of the tenant's own, with a hundred times the limit."""
    own = folder / "own"
    wide = policy.DevicePolicy(vendor="nvidia", identities=(("uuid", "GPU-2c3f53f3-96d1-8b9f-b948-47d03f83c067"),), memory_bytes=100 * LIMIT)
    containers.prepare(own, policy.Policy(container="own/own", devices=(wide,)), [])
    return own


ENVIRONMENTS: dict[str, Callable[[Box, Path], tuple[list[str], dict[str, str]]]] = {
    "as-it-is": lambda box, folder: ([], {}),
    "cleared": lambda box, folder: (["env", "-i", *kept(box)], {}),
    "without-LD_PRELOAD": lambda box, folder: (["env", "-u", "LD_PRELOAD"], {}),
    "another-user": lambda box, folder: (["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "env", "-i", *kept(box)], {}),
    "a-policy-of-its-own": lambda box, folder: ([], {"HAMI_DEVELOPMENT_POLICY": str(generous(folder))}),
    "hamis-old-names": lambda box, folder: ([], {"CUDA_DEVICE_MEMORY_LIMIT_0": "100g", "CUDA_DISABLE_CONTROL": "true", "LIBCUDA_LOG_LEVEL": "0"}),
}


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.mark.parametrize("how", [pytest.param(how, marks=only_root) if how == "another-user" else how for how in ENVIRONMENTS])
def test_no_environment_raises_a_limit(box: Box, folder: Path, how: str) -> None:
    """su, ssh, cron, a first process without variables, children without LD_PRELOAD, variables that point elsewhere."""
    before, environment = ENVIRONMENTS[how](box, folder)
    blocks, code = box.fill(*before, environment=environment)
    assert code == OUT_OF_MEMORY
    assert 0 < blocks * 32 * MIB <= LIMIT
    grant = "-" if "-i" in before else box.grant
    assert LIMIT - 64 * MIB < box.gpu.high_water(grant) <= LIMIT


@only_root
def test_su_is_limited_like_its_caller(box: Box) -> None:
    words = " ".join([*kept(box), str(box.gpu.taker), "10000", "32"])
    done = box.run("su", "-s", "/bin/sh", "-", "nobody", "-c", words)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == OUT_OF_MEMORY, done
    assert box.gpu.high_water("-") <= LIMIT


WRITES = (
    "echo > /run/hami/policy/policy.bin",
    "mv /run/hami/policy/policy.bin /tmp/x",
    "echo > /run/hami/policy/control.bin",
    "echo > /etc/ld.so.preload",
    "rm /run/hami/lib/libhami_nvidia.so",
)


def test_the_policy_cannot_be_written_from_inside(box: Box) -> None:
    before = (box.directory / "policy" / "policy.bin").read_bytes()
    for words in WRITES:
        assert box.run("sh", "-c", words).returncode != 0, words
    assert (box.directory / "policy" / "policy.bin").read_bytes() == before


ASKS_FOR_A_TABLE = """
import ctypes as c
driver, context, pointer, table = c.CDLL("libcuda.so.1"), c.c_void_p(), c.c_uint64(), c.c_void_p()
driver.cuInit(0)
driver.cuDevicePrimaryCtxRetain(c.byref(context), 0)
driver.cuCtxSetCurrent(context)
driver.cuMemAlloc_v2(c.byref(pointer), c.c_size_t(1 << 20))
print(driver.cuGetExportTable(c.byref(table), b"0" * 16), flush=True)
input()
"""


def test_a_private_table_of_the_driver_is_counted(box: Box) -> None:
    """What is behind cuGetExportTable is not entered; that a process asked for one stands in its slot."""
    process = box.start(sys.executable, "-c", ASKS_FOR_A_TABLE)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    from hami_framework.enforcement.region import Region

    (slot,) = Region(containers.state_path(box.directory)).usage(1).processes
    assert slot.private_tables == 1
    process.communicate("\n", timeout=20)


# -- memory that is easily forgotten -----------------------------------------------------------------------------------


HEAP = """
import ctypes as c
driver, context, pointer = c.CDLL("libcuda.so.1"), c.c_void_p(), c.c_uint64()
driver.cuInit(0)
driver.cuDevicePrimaryCtxRetain(c.byref(context), 0)
driver.cuCtxSetCurrent(context)
heap = driver.cuCtxSetLimit(2, c.c_size_t(512 << 20))
blocks = 0
while (code := driver.cuMemAlloc_v2(c.byref(pointer), c.c_size_t(32 << 20))) == 0:
    blocks += 1
print([heap, blocks, code, driver.cuCtxSetLimit(2, c.c_size_t(900 << 20))])
"""


def test_a_heap_on_the_device_is_charged(box: Box) -> None:
    """512 MiB of heap for kernels' own malloc are 16 blocks of 32 MiB less, and more heap than is left is refused."""
    plain, _ = Box(box.directory.parent, box.gpu, "plain").fill()
    heap, blocks, code, more = json.loads(box.run(sys.executable, "-c", HEAP).stdout)
    assert (heap, code, more) == (0, OUT_OF_MEMORY, OUT_OF_MEMORY)
    assert plain - blocks == 16


SHARES_MEMORY = """
import ctypes as c, sys
class Handle(c.Structure):
    _fields_ = [("bytes", c.c_ubyte * 64)]
driver, context, pointer, handle = c.CDLL("libcuda.so.1"), c.c_void_p(), c.c_uint64(), Handle()
driver.cuInit(0)
driver.cuDevicePrimaryCtxRetain(c.byref(context), 0)
driver.cuCtxSetCurrent(context)
if len(sys.argv) == 1:
    allocated = driver.cuMemAlloc_v2(c.byref(pointer), c.c_size_t(512 << 20))
    print(allocated, driver.cuIpcGetMemHandle(c.byref(handle), pointer), bytes(handle.bytes).hex(), flush=True)
    input()
else:
    handle.bytes[:] = bytes.fromhex(sys.argv[1])
    print(driver.cuIpcOpenMemHandle_v2(c.byref(pointer), handle, 1))
"""


def test_memory_that_two_containers_share_is_paid_by_its_maker(folder: Path, box: Box) -> None:
    other = Box(folder, box.gpu, "other")
    maker = box.start(sys.executable, "-c", SHARES_MEMORY)
    assert maker.stdout is not None
    allocated, exported, handle = maker.stdout.readline().split()
    assert (allocated, exported) == ("0", "0")
    assert other.run(sys.executable, "-c", SHARES_MEMORY, handle).stdout == "0\n"
    maker.communicate("\n", timeout=20)
    assert box.gpu.high_water(box.grant) > 512 * MIB
    assert box.gpu.high_water(other.grant) < 512 * MIB, "its context and nothing more"


# -- programs that cannot load the library start all the same -----------------------------------------------------------


def test_a_static_program_starts_and_says_nothing(box: Box) -> None:
    done = box.run(box.gpu.static, 1, 32)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"blocks": 1, "code": 0}, "")


def test_a_program_without_a_libc_starts_and_says_nothing(box: Box) -> None:
    process = box.start(box.gpu.bare)
    assert process.stdout is not None
    assert process.stdout.readline() == "{}\n"
    process.kill()
    assert process.communicate()[1] == ""


@pytest.mark.slow
def test_a_musl_program_starts_and_says_nothing(box: Box, folder: Path) -> None:
    """Compiling musl takes a minute the first time."""
    (folder / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("{}"); return 0; }\n')
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{os.uname().machine}-linux-musl", "-static"]
    subprocess.run([*compiler, "hello.c", "-o", "hello"], cwd=folder, check=True, capture_output=True)
    done = box.run(folder / "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{}\n", "")


def test_a_program_of_another_architecture_is_told_by_its_loader_only(box: Box, folder: Path) -> None:
    """What ld.so does with a list file that names a library it cannot load: it says so and goes on. Here the library is a foreign one."""
    foreign = folder / "foreign.so"
    image = bytearray(box.gpu.library.read_bytes())
    image[18:20] = (0xF3).to_bytes(2, "little")  # e_machine: RISC-V
    foreign.write_bytes(image)
    binds = [structs.replace(bind, source=str(foreign)) if bind.target.endswith(".so") else bind for bind in box.binds]
    done = box.run("/bin/echo", "started", binds=binds)
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert "cannot be preloaded" in done.stderr


# -- what a tenant does to its own state file harms its own container --------------------------------------------------


def test_a_state_file_that_is_cut_short_harms_its_own_container_only(folder: Path, gpu: Gpu, box: Box) -> None:
    """A process that had it mapped is ended by SIGBUS, as by any file cut short under it. New ones are refused. Neighbours do not notice."""
    neighbour = Box(folder, gpu, "neighbour")
    ours, theirs = box.start(gpu.taker, 1, 32, "hold"), neighbour.start(gpu.taker, 1, 32, "hold")
    for one in (ours, theirs):
        assert one.stdout is not None
        assert json.loads(one.stdout.readline()) == {"blocks": 1, "code": 0}
    assert box.run("truncate", "-s", "0", "/run/hami/state/state.bin").returncode == 0
    output, _ = ours.communicate("\n", timeout=30)
    assert (ours.returncode, output) == (-signal.SIGBUS, "")
    assert theirs.communicate("\n", timeout=30)[0] == '{"code": 0}\n'
    assert neighbour.fill()[1] == OUT_OF_MEMORY
    os.truncate(containers.state_path(box.directory), 100)
    refused = box.run(gpu.taker, 1, 32)
    assert json.loads(refused.stdout)["code"] == NOT_PERMITTED
    assert refused.stderr.count("\n") == 1
    assert "size differs" in refused.stderr


# -- found: the agent compares the driver's figures with the books -----------------------------------------------------


PORT = free_port()


@pytest.fixture
async def lab(short_directory: Path, request: pytest.FixtureRequest) -> AsyncIterator[GpuLab]:
    short_directory.chmod(0o755)
    made = GpuLab(short_directory)
    try:
        await made.up(*getattr(request, "param", ()))
        yield made
    finally:
        await made.down()


UNSHARE = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-rm")
HIDDEN = "mount -t tmpfs none /run/hami && exec {taker} 1 3000 hold"
CHROOT = """
mkdir -p {jail}/usr {jail}/lib {jail}/lib64 {jail}/proc {jail}{folder}
for one in usr lib lib64 proc; do mount --rbind /$one {jail}/$one; done
mount --bind {folder} {jail}{folder}
exec chroot {jail} {taker} 1 3000 hold
"""


async def bypassing(lab: GpuLab) -> dict[str, subprocess.Popen[str]]:
    """Each in a pod of its own, each with about 3,000 MiB beside the library."""
    gpu = lab.gpu
    jail = Path(tempfile.mkdtemp(prefix="jail-", dir="/tmp"))
    places = {"taker": gpu.taker, "jail": jail, "folder": lab.directory}
    own = {"HAMI_DEVELOPMENT_POLICY": str(generous(lab.directory))}
    return {
        "static": await lab.start("static", gpu.static, 1, 3000, "hold"),
        "deepbind": await lab.start("deepbind", *python("around.py", "deepbind", gpu.shared, 3000)),
        "dlmopen": await lab.start("dlmopen", *python("around.py", "dlmopen", gpu.shared, 3000)),
        "elf": await lab.start("elf", *python("around.py", "elf", gpu.shared, 3000)),
        "missing": await lab.start("missing", gpu.taker, 1, 3000, "hold", without=("/run/hami/lib/libhami_nvidia.so",)),
        "hidden": await lab.start("hidden", *UNSHARE, "sh", "-c", HIDDEN.format(**places), environment=own),
        "chroot": await lab.start("chroot", *UNSHARE, "sh", "-c", CHROOT.format(**places)),
        "raw": await lab.start("raw", gpu.bare),
        "graphics": await lab.start("graphics", gpu.taker, 1, 32, "hold"),
    }


@pytest.mark.parametrize("lab", [("--on-bypass", "suspend", "--metrics-listen", f"127.0.0.1:{PORT}")], indirect=True, ids=["suspend"])
async def test_use_of_the_driver_round_the_library_is_found_and_suspended(lab: GpuLab) -> None:
    """Within 5 s, by event and metric and suspension: whatever the way, the driver's own figures name the process."""
    names = ("static", "deepbind", "dlmopen", "elf", "missing", "hidden", "chroot", "raw", "graphics")
    for name in ("honest", *names):
        await lab.pod(name)
    honest = await lab.start("honest", lab.gpu.taker, 10_000, 32, "hold")
    assert (await lab.said(honest))["code"] == OUT_OF_MEMORY
    running = await bypassing(lab)
    for name, process in running.items():
        told = await lab.said(process)
        assert told.get("code", 0) == 0, (name, told)
    began = time.monotonic()
    lab.gpu.used_by((running["raw"].pid, 3000), (running["graphics"].pid, 3000))  # what the fakes cannot take: raw ioctls, and graphics memory

    def suspended() -> set[str]:
        found = set()
        for name in names:
            with containers.control_of(lab.directory_of(name)) as control:
                found |= {name} if control.suspended else set()
        return found

    await lab.until(lambda: suspended() == set(names), f"all suspended: {set(names)}")
    assert found_in_time(began)
    with containers.control_of(lab.directory_of("honest")) as control:
        assert not control.suspended
    assert lab.gpu.high_water(f"{lab.grants['honest'].owner.uid}/main") <= LIMIT

    async def told() -> bool:
        return len(await lab.events("LimitBypassed")) >= len(names)

    await lab.until(told, "events")
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics").read().decode())
    for name in names:
        kind = "more-than-booked" if name == "graphics" else "no-slot"
        assert f'hami_container_findings_total{{container="main",kind="{kind}",namespace="default",node="n1",pod="{name}"}} 1.0' in text, name
    assert 'pod="honest"' not in "".join(line for line in text.splitlines() if "findings" in line)


def write(path: Path, at: int, data: bytes) -> None:
    """As any process of the container can."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


BOOKS = offset(layout.StateFile, "devices")
SLOTS = offset(layout.StateFile, "slots")
HELD = SLOTS + offset(layout.Slot, "devices")
SCRIBBLES: dict[str, tuple[str, list[tuple[int, bytes]]]] = {
    "sum": ("sum", [(BOOKS, bytes(8))]),
    "all-books": ("more-than-booked", [(BOOKS, bytes(8)), (HELD, bytes(8))]),
    "tat": ("tat", [(BOOKS + offset(layout.StateDevice, "tat_ns"), (2**62).to_bytes(8, "little"))]),
    "mutex-word": ("mutex", [(offset(layout.StateFile, "mutex"), (1).to_bytes(4, "little"))]),
    "mutex-kind": ("mutex", [(offset(layout.StateFile, "mutex") + 16, b"\xff\xff\xff\xff")]),
    "slot-state": ("slot", [(SLOTS + 5 * ctypes.sizeof(layout.Slot), (77).to_bytes(8, "little"))]),
    "header": ("layout", [(0, bytes(16))]),
}


async def test_a_scribbled_state_file_is_found_and_raises_no_policy(lab: GpuLab) -> None:
    """Books, arrival time, mutex, slots, header: each in a pod of its own whose process holds 320 MiB."""
    before = {}
    for name in SCRIBBLES:
        await lab.pod(name)
        process = await lab.start(name, lab.gpu.taker, 10, 32, "hold")
        assert await lab.said(process) == {"blocks": 10, "code": 0}
        before[name] = (lab.directory_of(name) / "policy" / "policy.bin").read_bytes()
    began = time.monotonic()
    for name, (_, writes) in SCRIBBLES.items():
        for at, data in writes:
            write(containers.state_path(lab.directory_of(name)), at, data)

    async def found() -> set[tuple[str, str]]:
        listed = await lab.client.call(lab.client.list, "/api/v1/namespaces/default/events")
        return {(event["involvedObject"]["name"], event["message"].split(": ")[1]) for event in listed["items"] if event["reason"] == "LimitBypassed"}

    wanted = {(name, kind) for name, (kind, _) in SCRIBBLES.items()}

    async def all_found() -> bool:
        return wanted <= await found()

    try:
        await lab.until(all_found, f"found: {wanted}")
    except AssertionError:
        raise AssertionError(f"missing: {wanted - await found()}") from None
    assert found_in_time(began)
    assert {name: (lab.directory_of(name) / "policy" / "policy.bin").read_bytes() for name in SCRIBBLES} == before


async def test_without_its_agent_a_container_keeps_its_limit(lab: GpuLab) -> None:
    await lab.pod("p")
    lab.kill_agent()
    process = await lab.start("p", lab.gpu.taker, 10_000, 32)
    assert (await lab.said(process))["code"] == OUT_OF_MEMORY
    assert 0 < lab.gpu.high_water(f"{lab.grants['p'].owner.uid}/main") <= LIMIT
