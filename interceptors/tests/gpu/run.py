# SPDX-License-Identifier: Apache-2.0
"""`make test-gpu`: the library on a real NVIDIA GPU, and a report of what was found.

Needs Python >= 3.11, a C compiler, this tree and NVIDIA's driver; no package, no network, no root. Exit status: 0 it ran and all
that was checked held; 1 something did not hold; 2 wrong usage; 77 it did not run, and the one line that it prints says why.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gen"))

import gpu_latency
import gpu_memory
import gpu_programs
import gpu_share
from gpu_bench import SCALES, Bench
from gpu_container import HERE, ROOT, Failed, Place
from gpu_report import NotRun, Part, Report

from hami_interceptor import build, compilers, errors, spec

PARTS: dict[str, Callable[[Bench], Part]] = {
    "memory": gpu_memory.byte_limit,
    "latency": gpu_latency.latency,
    "share": gpu_share.share,
    "torch": gpu_programs.torch,
    "runtime": gpu_programs.runtime,
    "ends": gpu_memory.ends,
    "smi": gpu_programs.smi,
}
PRODUCTION = Path("/run/hami/policy")
DID_NOT_RUN = 77


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _arguments(arguments)
    for name in ("gpu-report.md", "gpu-report.json"):
        (chosen.output / name).unlink(missing_ok=True)  # an earlier run's word must not pass for this one's
    try:
        bench, machine = _prepared(chosen.output / "gpu", chosen.scale, chosen.library)
    except NotRun as why:
        line = f"make test-gpu did not run: {why}"
        page = Report({}, [], line).write(chosen.output)
        print(f"{line} ({os.path.relpath(page)} says so, too)")
        return DID_NOT_RUN
    parts: list[Part] = []
    for name in chosen.part or PARTS:
        parts.append(_run(name, PARTS[name], bench))
        report = Report(machine, parts)
        page = report.write(chosen.output)  # what is known is there even when a later part takes all the time that was given
    print(f"{'All that was checked held' if report.held else 'NOT ALL HELD'}: {os.path.relpath(page)}")
    return 0 if report.held else 1


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="normal", help="how much is done of everything (default: normal, about ten minutes)")
    parser.add_argument("--part", choices=PARTS, action="append", help="run this part only; may be repeated (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "build", metavar="DIR", help="where the report goes (default: build)")
    parser.add_argument("--library", type=Path, metavar="FILE", help="the library to test (default: it is built from the tree)")
    return parser.parse_args(arguments)


# -- what must be there ---------------------------------------------------------------------------------------------


def _prepared(scratch: Path, scale: str, library: Path | None) -> tuple[Bench, dict[str, Any]]:
    """Raises NotRun when this machine cannot run it."""
    _driver_loads()
    if PRODUCTION.exists():
        raise NotRun(f"this is a container under limits of its own ({PRODUCTION} is there): run it on the node, or in a container without the library")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    probe = _probe(scratch / "gpu_probe")
    bench = Bench(scratch=scratch, library=library or scratch, probe=probe, uuid="", capacity=0, scale=SCALES[scale])
    try:
        found = bench.once(Place(), "identity")
    except Failed as error:
        raise NotRun(f"no usable NVIDIA GPU on this machine ({error})") from error
    tested = library.resolve() if library else _library(scratch / "libhami_nvidia.so")
    bench = Bench(scratch=scratch, library=tested, probe=probe, uuid=found["uuid"], capacity=found["total"], scale=SCALES[scale])
    return bench, _machine(found, scale, tested)


def _driver_loads() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NotRun(f"no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded): {error}") from error


def _probe(output: Path) -> Path:
    try:
        sources = [str(HERE / name) for name in ("gpu_probe.c", "gpu_compute.c")]
        compilers.choose().run([*build.FLAGS, "-O2", f"-iquote{HERE}", *sources, "-o", str(output), "-ldl"], "the measuring program")
    except errors.InterceptorError as error:
        raise NotRun(f"what it needs cannot be built: {error}") from error
    return output


def _library(output: Path) -> Path:
    try:
        return build.shared_library([spec.load("cuda"), spec.load("nvml")], output)
    except errors.InterceptorError as error:
        raise NotRun(f"the library cannot be built: {error}") from error


def _machine(found: dict[str, Any], scale: str, library: Path) -> dict[str, Any]:
    fake = "HAMI_FAKE_NVIDIA" in os.environ
    version = Path("/proc/driver/nvidia/version")
    kernel = version.read_text().splitlines()[0] if version.is_file() else "not told (/proc/driver/nvidia/version is not there)"
    return {
        "device": found["name"] + (" (A FAKE DRIVER: this tried the test, not a GPU)" if fake else ""),
        "uuid": found["uuid"],
        "bytes": found["total"],
        "CUDA of the driver": f"{found['cuda'] // 1000}.{found['cuda'] % 1000 // 10}",
        "driver": kernel,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, {' '.join(platform.libc_ver())}",
        "Python": platform.python_version(),
        "library": library.name,
        "scale": scale,
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


# -- running it -----------------------------------------------------------------------------------------------------


def _run(name: str, run: Callable[[Bench], Part], bench: Bench) -> Part:
    """A part that breaks off has not held; the others run all the same."""
    start = time.monotonic()
    print(f"{name} …", flush=True)
    try:
        part = run(bench)
    except Exception as error:
        part = Part(f"{name}: broken off")
        part.check(f"{type(error).__name__}: {error}", False)
    part.notes.append(f"it took {time.monotonic() - start:.0f} s")
    print(f"{name}: {part.verdict}", flush=True)
    return part


if __name__ == "__main__":
    sys.exit(main())
