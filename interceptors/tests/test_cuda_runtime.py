# SPDX-License-Identifier: Apache-2.0
"""A real CUDA runtime on top of the fake driver, with our hooks between them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import CONTEXT, FAKE_INCLUDES, LIMIT, MIB, PROGRAM, Container, record

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


@pytest.mark.skipif(not runtimes(), reason="no CUDA runtime: name libcudart.so.12 or .13 in HAMI_TEST_CUDART, or install the nvidia-cuda-runtime package")
@pytest.mark.parametrize("library", runtimes(), ids=lambda path: path.name)
def test_a_real_runtime_is_held_to_the_limit(tmp_path: Path, interceptor: Callable[..., Path], fake_driver: Callable[..., Path], library: Path) -> None:
    container = Container(tmp_path / "container", interceptor("cuda", "nvml", variant="testing"), [fake_driver("cuda", FAKE_INCLUDES)], (record(0), record(1)))
    without = subprocess.run(
        [sys.executable, str(PROGRAM), "runtime", str(library)], env=container.environment(LD_PRELOAD=""), capture_output=True, check=False
    )
    if without.returncode != 0:
        pytest.skip(f"{library.name} does not start on the fake driver even without us: it calls into private export tables, which the fake has empty")
    said = container.run("runtime", library)
    assert (said["code"], said["start"]) == (0, [LIMIT - CONTEXT, LIMIT])
    assert (said["refused"], said["count"], said["freed"]) == (2, (LIMIT - CONTEXT) // (32 * MIB), [0])
    assert said["end"] == said["start"]
    assert container.high_water() <= LIMIT
