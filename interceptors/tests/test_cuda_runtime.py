# SPDX-License-Identifier: Apache-2.0
"""A real CUDA runtime on top of the fake driver, with our hooks between them.

A real runtime checks that the driver is NVIDIA's own, and does not begin to work on any other; the fake does not pretend to be
(docs/decisions/0008). What can be shown here is its way through our resolvers and private tables up to that point, with the same
answers as without us. That its allocations are held needs a real driver: `make test-gpu`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import FAKE_INCLUDES, Container, record

WHERE = (("nvidia.cuda_runtime", "lib/libcudart.so.12"), ("nvidia.cu13", "lib/libcudart.so.13"))


def runtimes() -> list[Path]:
    """HAMI_TEST_CUDART (a list of paths, as in PATH), and what the environment's packages have."""
    found = [Path(path) for path in os.environ.get("HAMI_TEST_CUDART", "").split(os.pathsep) if path]
    for package, file in WHERE:
        try:
            module = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        if module is not None:
            found += [path for folder in module.submodule_search_locations or () if (path := Path(folder) / file).is_file()]
    return found


START = """
import ctypes, json, sys
cudart, count = ctypes.CDLL(sys.argv[1]), ctypes.c_int(-1)
codes = [cudart.cudaGetDeviceCount(ctypes.byref(count)), cudart.cudaFree(None)]
cudart.cudaGetErrorName.restype = ctypes.c_char_p
asked = ctypes.CDLL("libcuda.so.1").cuda_fake_calls
asked.restype = ctypes.c_ulong
print(json.dumps([[cudart.cudaGetErrorName(code).decode() for code in codes], [asked(b"cuGetProcAddress_v2"), asked(b"cuGetExportTable")]]))
"""


def started(container: Container, library: Path, preload: str) -> list[list[str | int]]:
    """How it answers its first calls, and how often it asked the driver's resolver and for its private tables."""
    command = [sys.executable, "-c", START, str(library)]
    done = subprocess.run(command, env=container.environment(LD_PRELOAD=preload), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stderr}"
    return list(json.loads(done.stdout))


@pytest.mark.skipif(not runtimes(), reason="no CUDA runtime: name libcudart.so.12 or .13 in HAMI_TEST_CUDART, or install the nvidia-cuda-runtime package")
@pytest.mark.parametrize("library", runtimes(), ids=lambda path: path.name)
def test_a_real_runtime_starts_through_our_resolvers_as_it_does_without_us(
    tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path], library: Path
) -> None:
    container = Container(tmp_path / "container", interceptor("cuda", "nvml", variant="testing"), [fake_driver("cuda", FAKE_INCLUDES)], (record(0), record(1)))
    answers = {preload: started(container, library, preload) for preload in ("", str(container.preload))}
    assert answers[str(container.preload)] == answers[""]
    assert min(int(asked) for asked in answers[""][1]) > 0
    assert container.high_water() == 0
