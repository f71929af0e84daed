# SPDX-License-Identifier: Apache-2.0
"""The example interceptor before the example driver: the limit holds, the query shows the slice, every symbol is covered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hami_framework.enforcement.container import prepare
from hami_framework.enforcement.policy import DevicePolicy, Policy
from hami_interceptor import build, coverage, spec

ACME = spec.load(Path(__file__).parents[1] / "spec" / "acme.toml")
MIB = 1 << 20
PROGRAM = """
import ctypes
driver = ctypes.CDLL("libacme.so.1")
def malloc(mib):
    out = ctypes.c_uint64()
    return driver.acmeMalloc(ctypes.byref(out), ctypes.c_size_t(mib << 20)), out
first, pointer = malloc(60)
free, total = ctypes.c_size_t(), ctypes.c_size_t()
driver.acmeMemory(ctypes.byref(free), ctypes.byref(total))
print(first, malloc(60)[0], free.value >> 20, total.value >> 20, driver.acmeFree(pointer), malloc(60)[0], driver.acmeLaunch(None, 1, None))
"""


def test_the_limit_holds(tmp_path: Path) -> None:
    library = build.shared_library([ACME], tmp_path / "libhami_acme.so")
    build.fake_driver(ACME, tmp_path / "driver" / "libacme.so.1")
    prepare(
        tmp_path / "container",
        Policy(container="example/acme", devices=(DevicePolicy(vendor="acme", identities=(("uuid", "ACME-0000-0001"),), memory_bytes=100 * MIB),)),
        [library],
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(tmp_path / "driver"),
        "HAMI_DEVELOPMENT_POLICY": str(tmp_path / "container"),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["0", "2", "40", "100", "0", "0", "0"], done.stderr


def test_every_symbol_is_covered() -> None:
    (row,) = coverage.table([ACME], Path(__file__).parent)
    assert (row.exported, row.classified, row.must_hook, row.hooked, row.unclassified) == (6, 6, 5, 5, ())
