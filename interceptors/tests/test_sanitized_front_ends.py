# SPDX-License-Identifier: Apache-2.0
"""The front ends for HIP, CANN's runtime and CNDrv, and their fakes, with the compiler's sanitizer for undefined behaviour: whole cases, not a word from it.

The address sanitizer cannot watch a program before which we are preloaded: its runtime calls dlsym, which is ours, before the
string functions that it replaces work. The core is under it in its own tests.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from preloaded import Running, starting
from rigs import ASCEND, CNDRV, HIP, Front, Libraries

CASES = [
    (HIP, ("fill", "small", "hipFree")),
    (HIP, ("fill", "hipMallocAsync", "hipFreeAsync")),
    (HIP, ("mapping",)),
    (HIP, ("shared", "ipc")),
    (HIP, ("shared", "external")),
    (HIP, ("graph", "hipGraphAddNode", "hipGraphInstantiate", "hipGraphLaunch")),
    (HIP, ("forgotten",)),
    (HIP, ("reset", "hipDeviceReset")),
    (HIP, ("queries",)),
    (ASCEND, ("fill", "small", "rtFree")),
    (ASCEND, ("pool",)),
    (ASCEND, ("mapping", "rtMapMem", "rtUnmapMem", "rtFreePhysical")),
    (ASCEND, ("reset", "rtSetDevice", "rtDeviceReset")),
    (CNDRV, ("fill", "small", "cnFree")),
    (CNDRV, ("pool",)),
    (CNDRV, ("shared", "shareable")),
    (CNDRV, ("destroyed",)),
]


def to_the_end(running: Running) -> str:
    """Lets the program go on until it ends, and answers what it wrote on stderr."""
    assert running.process.stdin is not None
    out, err = running.process.communicate("\n" * 20, timeout=100)
    assert running.process.returncode == 0, err
    assert all(json.loads(line) for line in out.splitlines())
    return err


@pytest.mark.slow
@pytest.mark.parametrize(("front", "case"), CASES, ids=lambda value: value.api if isinstance(value, Front) else "-".join(value))
def test_nothing_that_the_sanitizer_complains_about(
    tmp_path: Path, interceptor: Libraries, fake_driver: Libraries, front: Front, case: tuple[str, ...]
) -> None:
    rig = front.rig(tmp_path, interceptor, fake_driver, variant="ubsan", fake="ubsan")
    with starting(rig) as start:
        said = to_the_end(start(*case))
    assert "runtime error" not in said
