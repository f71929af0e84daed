# SPDX-License-Identifier: Apache-2.0
"""Part 4, programs as they are: PyTorch's allocators, the CUDA runtime, nvidia-smi; each where this machine has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_bench import MIB, Bench
from gpu_container import BEGIN_SECONDS, END_SECONDS, Container, Failed
from gpu_memory import Observer, filler, observing
from gpu_report import Part

MOST = 100_000
ALLOCATORS = {"default": "", "expandable segments": "expandable_segments:True", "cudaMallocAsync": "backend:cudaMallocAsync"}

TORCH = """
import json, sys, torch
blocks, refused = [], ""
try:
    while len(blocks) < 100000:
        blocks.append(torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda"))
except torch.cuda.OutOfMemoryError as error:
    refused = type(error).__name__
a = None if blocks else torch.ones(4, device="cuda")
print(json.dumps({"count": len(blocks), "refused": refused, "torch": torch.__version__, "cuda": torch.version.cuda}), flush=True)
sys.stdin.readline()
del blocks
torch.cuda.empty_cache()
x = torch.ones(256, 256, device="cuda")
print(json.dumps({"sum": float((x @ x).sum()), "expected": 256.0 ** 3}), flush=True)
"""

RUNTIME = """
import ctypes, json, sys
cudart = ctypes.CDLL(sys.argv[1])
blocks, code, version = [], 0, ctypes.c_int()
cudart.cudaRuntimeGetVersion(ctypes.byref(version))
while code == 0 and len(blocks) < int(sys.argv[3]):
    pointer = ctypes.c_void_p()
    code = cudart.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(int(sys.argv[2])))
    blocks += [pointer] if code == 0 else []
print(json.dumps({"count": len(blocks), "refused": code == 2, "code": code, "runtime": version.value}), flush=True)
sys.stdin.readline()
print(json.dumps({"freed": sorted({cudart.cudaFree(pointer) for pointer in blocks})}), flush=True)
"""


def torch(bench: Bench) -> Part:
    part = Part("4a. PyTorch's allocators")
    if not _runs(bench, [sys.executable, "-c", "import torch"]):
        part.why_not = f"torch is not installed for {sys.executable}"
        return part
    if not _runs(bench, [sys.executable, "-c", "import torch; torch.ones(4, device='cuda')"]):
        part.why_not = f"torch is installed for {sys.executable}, and cannot use this GPU even without the library"
        return part
    with observing(bench) as observer:
        for name, setting in ALLOCATORS.items():
            container = bench.container(f"torch-{name.split()[0]}", memory=bench.scale.limit)
            more = {"PYTORCH_CUDA_ALLOC_CONF": setting} if setting else {}
            after = _filled(bench, observer, part, f"PyTorch, {name}", container, [sys.executable, "-c", TORCH, str(bench.scale.block)], more)
            part.check(f"PyTorch, {name}: a product of matrices afterwards is right ({after.get('sum')})", after.get("sum") == after.get("expected", 0))
    return part


def runtime(bench: Bench) -> Part:
    part = Part("4b. The CUDA runtime")
    there = _runtimes()
    found = [library for library in there if _runs(bench, _runtime_program(library, MIB, 1))]
    part.notes += [f"{library}: not run: it does not work on this driver even without the library" for library in there if library not in found]
    if not there:
        part.why_not = (
            "no libcudart.so.12 or libcudart.so.13 on this machine (looked in the loader's list, LD_LIBRARY_PATH, /usr/local/cuda*, and beside this Python)"
        )
    elif not found:
        part.why_not = f"{', '.join(there)}: none works on this driver, even without the library"
    if not found:
        return part
    with observing(bench) as observer:
        for library in found:
            container = bench.container("runtime", memory=bench.scale.limit)
            after = _filled(bench, observer, part, library, container, _runtime_program(library, bench.scale.block, MOST), {})
            part.check(f"{library}: everything was freed well ({after.get('freed')})", after.get("freed") == [0])
    return part


def _filled(bench: Bench, observer: Observer, part: Part, name: str, container: Container, command: Sequence[str], more: dict[str, str]) -> dict[str, Any]:
    limit, before = bench.scale.limit, observer.look()["used"]
    os.environ.update(more)
    try:
        with container.running(command) as program:
            full = program.answer()
            used = observer.look()["used"] - before
            program.say()
            after = program.answer()
            program.end()
    except Failed as error:
        part.check(f"{name}: {error}", False)
        return {}
    finally:
        for variable in more:
            del os.environ[variable]
    part.rows.append({"program": name, **full, "in use": used, "by the library, at most": container.books().high_water_bytes})
    part.check(f"{name}: refused as out of memory at the limit", bool(full["refused"]) and full["count"] > 0)
    part.check(f"{name}: the device has at most the limit in use ({used} of {limit})", used <= limit)
    observer.settled(before)
    return after


def _runtime_program(library: str, block: int, most: int) -> list[str]:
    return [sys.executable, "-c", RUNTIME, library, str(block), str(most)]


def _runs(bench: Bench, command: Sequence[str]) -> bool:
    """Whether it gets to its end directly on the driver."""
    done = subprocess.run(command, env=bench.direct.environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=END_SECONDS)
    return done.returncode == 0


def _runtimes() -> list[str]:
    """Runtimes by file name where the loader knows them, by path where they lie in a usual place."""
    known = []
    for version in ("12", "13"):
        name = f"libcudart.so.{version}"
        ask = [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", name]
        folders = [Path(folder) / "nvidia" / wheel / "lib" for folder in sys.path for wheel in ("cuda_runtime", f"cu{version}")]
        folders += [path / "lib64" for path in sorted(Path("/usr/local").glob("cuda*"))]
        if subprocess.run(ask, capture_output=True, check=False, timeout=BEGIN_SECONDS).returncode == 0:
            known.append(name)
        else:
            known += [str(folder / name) for folder in folders if (folder / name).is_file()][:1]
    return known


def smi(bench: Bench) -> Part:
    part, program = Part("5b. What nvidia-smi shows in a container"), shutil.which("nvidia-smi")
    if program is None:
        part.why_not = "nvidia-smi is not on the PATH"
        return part
    container = bench.container("smi", memory=bench.scale.limit)
    ask = [program, f"--id={bench.uuid}", "--query-gpu=memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"]
    with filler(container, "cuMemAlloc_v2", bench.scale.block) as (filling, _):
        filling.say()
        filling.answer()
        inside = subprocess.run(ask, env=container.environment(), capture_output=True, text=True, check=False, timeout=BEGIN_SECONDS)
        outside = subprocess.run(ask, env=bench.direct.environment(), capture_output=True, text=True, check=False, timeout=BEGIN_SECONDS)
        charged = container.books().used_bytes
    said = [word.strip() for word in inside.stdout.split(",")]
    part.notes.append(f"inside: {inside.stdout.strip() or inside.stderr.strip()}; outside: {outside.stdout.strip()}; the library charges {json.dumps(charged)}")
    part.check(f"the total is the limit ({said[0]} MiB)", said[0] == str(bench.scale.limit // MIB))
    used = int(said[1]) if len(said) > 1 and said[1].isdigit() else -1
    part.check(f"what is used is what the library charges, to a MiB ({said[1:2]} MiB)", abs(used - charged / MIB) <= 1)
    return part
