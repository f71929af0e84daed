# SPDX-License-Identifier: Apache-2.0
"""Arguments that make no sense reach the driver, whose own error the program gets: no hook looks through a pointer that is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_rig import FAKE_INCLUDES, Container, offsets, record

from hami_interceptor import spec
from hami_interceptor.declarations import Parameter

PROGRAM = Path(__file__).parent / "cuda" / "absurd_program.py"
LIBRARIES = {"cuda": "libcuda.so.1", "nvml": "libnvidia-ml.so.1"}
HANDLES = {
    "CUcontext", "CUgreenCtx", "CUfunction", "CUarray", "CUmipmappedArray", "CUstream", "CUevent", "CUgraph", "CUgraphExec", "CUmemoryPool", "CUexternalMemory",
    "nvmlDevice_t",
}  # fmt: skip
OURS = {"cuda": {2, 800}, "nvml": {4}}
"""What a hook may answer before the driver is asked."""


def kind(parameter: Parameter) -> str:
    words = parameter.declaration.removesuffix(parameter.name).split()
    if "CUipcMemHandle" in words and "*" not in parameter.declaration:
        return "handle"
    if "*" in parameter.declaration:
        return "pointer"
    return "nothing" if HANDLES & set(words) else "number"  # a handle that is none makes any driver crash


@pytest.fixture(scope="module", params=LIBRARIES)
def answers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, interceptor: Callable[..., Path], fake_driver: Callable[..., Path]
) -> tuple[str, dict[str, list[int | str]]]:
    api, folder = str(request.param), tmp_path_factory.mktemp("absurd")
    drivers = {"cuda": fake_driver("cuda", FAKE_INCLUDES), "nvml": fake_driver("nvml")}
    container = Container(folder / "container", interceptor("cuda", "nvml", variant="testing"), list(drivers.values()), (record(0, charge_imports=True),))
    calls = [(row.symbol, [kind(parameter) for parameter in row.args or ()]) for row in spec.load(api).rows if row.hooked]
    (folder / "offsets.json").write_text(json.dumps(offsets(drivers[api])))
    (folder / "calls.json").write_text(json.dumps(calls))
    command = [sys.executable, str(PROGRAM), LIBRARIES[api], str(folder / "offsets.json"), str(folder / "calls.json")]
    done = subprocess.run(command, env=container.environment(), capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    return api, dict(json.loads(done.stdout))


def test_no_hook_ends_the_program(answers: tuple[str, dict[str, list[int | str]]]) -> None:
    assert {call: said for call, said in answers[1].items() if isinstance(said[0], str)} == {}


def test_the_program_gets_the_drivers_own_error(answers: tuple[str, dict[str, list[int | str]]]) -> None:
    api, found = answers
    assert {call: said for call, said in found.items() if said[0] != said[1] and said[0] not in OURS[api]} == {}
