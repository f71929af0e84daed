# SPDX-License-Identifier: Apache-2.0
"""`make test-gpu` itself, on the fake driver: what it says where there is no GPU, what its report holds, and that it can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda_program_paths import PATHS
from cuda_rig import CAPACITY_MIB, CONTEXT, FAKE_INCLUDES, MIB, UUIDS

from hami_framework.testing import fakes
from hami_interceptor import compilers, native

TREE = native.root().parent
RUN = TREE / "interceptors" / "tests" / "gpu" / "run.py"
NVML = TREE / "vendors" / "nvidia" / "hami_nvidia" / "fakes" / "nvml.c"
DEVICE = f"[device 0]\nname = NVIDIA fake\nuuid = {UUIDS[0]}\npci = 0000:07:00.0\nmemory_mib = {CAPACITY_MIB}\ncontext_mib = {CONTEXT // MIB}\n"

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def drivers(built: Path, fake_driver: Callable[..., Path]) -> str:
    """Where the fake CUDA and NVML lie."""
    nvml = built / "gpu" / "libnvidia-ml.so.1"
    nvml.parent.mkdir(exist_ok=True)
    compilers.choose().run([*fakes.FLAGS, f"-I{fakes.HEADER_DIRECTORY}", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(nvml), str(NVML), "-ldl"], "fake NVML")
    return f"{fake_driver('cuda', FAKE_INCLUDES).parent}:{nvml.parent}"


@pytest.fixture
def run(tmp_path: Path, drivers: str) -> Run:
    """Runs it on a machine with one fake GPU, with nothing but the standard library (-S): exit status, report, and what it printed."""
    machine = tmp_path / "machine.ini"
    machine.write_text(f"[machine]\ncuda = 13050\n\n{DEVICE}")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text("raise ImportError('a torch of this machine would take the fake driver for a GPU')\n")

    def start(*arguments: object, machine_file: Path = machine, libraries: str = drivers) -> tuple[int, dict[str, Any], str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "NVIDIA_", "HAMI_", "LD_", "PYTHON"))}
        environment |= {"HAMI_FAKE_NVIDIA": str(machine_file), "LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(tmp_path / "modules")}
        command = [sys.executable, "-S", str(RUN), "--scale", "quick", "--output", str(tmp_path / "build"), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=110)
        assert not done.stderr, done.stderr
        return done.returncode, json.loads((tmp_path / "build" / "gpu-report.json").read_text()), done.stdout

    return start


@pytest.fixture
def no_driver(tmp_path: Path) -> str:
    """A folder that the loader asks first, and whose libcuda.so.1 is none: so that this can be tried where a GPU is, too."""
    folder = tmp_path / "none"
    folder.mkdir()
    (folder / "libcuda.so.1").write_text("")
    return str(folder)


def parts(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {part["name"].split(":")[0].split(",")[0]: part for part in report["parts"]}


def test_the_limit_holds_by_a_bystanders_word_and_the_report_says_how_it_was_measured(run: Run, tmp_path: Path) -> None:
    status, report, said = run("--part", "memory", "--part", "ends", "--part", "torch")
    assert (status, report["ran"], report["held"]) == (0, True, True), (tmp_path / "build" / "gpu-report.md").read_text()
    memory, torch, ends = parts(report)["1. Byte limit"], parts(report)["4a. PyTorch's allocators"], parts(report)["5. Processes that end"]
    assert [row["path"] for row in memory["rows"]] == list(PATHS)
    assert all(0 < row["in use"] <= 1024 * MIB and row["NVML"] == row["in use"] for row in memory["rows"])
    assert f"a context takes {CONTEXT} bytes directly, {CONTEXT} with the library, and the library charges {CONTEXT}" in memory["notes"]
    assert ends["rows"][0]["contexts"] == ends["rows"][0]["slots"] == 4
    assert (torch["ran"], torch["held"]) == (False, None)
    assert torch["why_not"].startswith("torch is not installed for ")
    page = (tmp_path / "build" / "gpu-report.md").read_text()
    assert "A FAKE DRIVER" in page
    assert "not run: torch is not installed" in page
    assert "All that was checked held" in said


def test_latency_and_shares_are_measured_beside_the_driver_alone(run: Run) -> None:
    status, report, _ = run("--part", "latency", "--part", "share")
    latency, share = parts(report)["2. Latency"], parts(report)["3. Share of the device's time"]
    assert latency["held"]
    assert {row["place"] for row in latency["rows"] if row["call"] == "launch"} == {"direct", "library, no compute limit", "library, compute limit 100 %"}
    assert {(row["call"], row["bytes"], row["processes"]) for row in latency["rows"]} == {
        ("launch", None, 1), ("launch", None, 2), ("alloc", 512, 1), ("free", 512, 1), ("alloc", MIB, 1), ("free", MIB, 1), ("alloc", MIB, 2), ("free", MIB, 2)
    }  # fmt: skip
    assert all(0 < row["p50"] <= row["p99"] <= row["max"] for row in latency["rows"])
    rows = {(row["what"], row["limit"]): row for row in share["rows"]}
    assert set(rows) == {("long", 0.5), ("two at once", 0.3), ("two at once", 0.7), ("alone at 30 %, lent everything", 1.0), ("500 ms on, 500 ms off", 0.3)}
    assert 0.2 < rows["long", 0.5]["share"] < 0.8  # a busy machine blurs both sides of the fraction
    assert rows["long", 0.5]["held back, s"] > 0
    assert status == (0 if report["held"] else 1)


def test_a_library_that_holds_nothing_back_fails_the_test(run: Run, tmp_path: Path) -> None:
    idle = tmp_path / "libidle.so"
    (tmp_path / "idle.c").write_text("int hami_idle;\n")
    compilers.choose().run(["-shared", "-fPIC", str(tmp_path / "idle.c"), "-o", str(idle)], "a library that does nothing")
    status, report, said = run("--part", "memory", "--library", idle)
    assert (status, report["ran"], report["held"]) == (1, True, False)
    failed = [check["text"] for check in report["parts"][0]["checks"] if not check["held"]]
    assert all(any(text.startswith(f"{path}: the device has at most the limit in use") for text in failed) for path in PATHS)
    assert "NOT ALL HELD" in said


def test_without_a_driver_it_says_that_it_did_not_run(run: Run, tmp_path: Path, no_driver: str) -> None:
    status, report, said = run(libraries=no_driver)
    assert status == 77
    assert said.startswith("make test-gpu did not run: no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded): ")
    assert said.count("\n") == 1
    assert (report["ran"], report["held"], report["parts"]) == (False, False, [])
    assert (tmp_path / "build" / "gpu-report.md").read_text().startswith("# The GPU test: NOT RUN\n")


def test_with_a_driver_and_no_device_it_says_that_it_did_not_run(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty.ini"
    empty.write_text("[machine]\ncuda = 13050\n")
    status, report, said = run(machine_file=empty)
    assert (status, report["ran"]) == (77, False)
    assert said.startswith("make test-gpu did not run: no usable NVIDIA GPU on this machine")


def test_make_passes_where_it_did_not_run_and_shows_why(tmp_path: Path, no_driver: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "MAKE", "MFLAGS"))} | {"LD_LIBRARY_PATH": no_driver}
    command = ["make", "--no-print-directory", "test-gpu", f"PYTHON={sys.executable}", f"GPU=--output {tmp_path / 'build'}"]
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("make test-gpu did not run: no NVIDIA driver on this machine")
