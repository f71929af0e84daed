# SPDX-License-Identifier: Apache-2.0
"""The fake libraries under AddressSanitizer and UndefinedBehaviorSanitizer: discovery, health and usage on every machine.

A fake that reads past a caller's buffer would hide exactly the binding bugs that it is there to show.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hami_framework.model import Machine
from hami_framework.plugins import load_registry
from hami_framework.testing.fakes import FLAGS, HEADER_DIRECTORY
from hami_framework.testing.stage import Node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
MACHINES = load_registry().machines()

PROGRAM = """
import sys
from hami_framework.model import Host
from hami_framework.plugins import find_sources, load
vendor, root = sys.argv[1:]
plugin = load(find_sources([vendor])[0][0])
host = Host(node="sanitized", root=root)
for _ in range(2):
    devices = tuple(plugin.call("hami_discover", host=host))
    plugin.call("hami_health", host=host, devices=devices)
    tuple(plugin.call("hami_usage", host=host, devices=devices) or ())
print(len(devices))
"""


def build(machine: Machine, directory: Path) -> Path:
    """The machine's fakes, instrumented."""
    directory.mkdir()
    for library, source in machine.libraries.items():
        command = ["gcc", *FLAGS, *SANITIZE, f"-I{HEADER_DIRECTORY}", f"-Wl,-soname,{library}", "-o", str(directory / library), source, "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    return directory


@pytest.mark.parametrize("name", sorted(name for name, (_, machine) in MACHINES.items() if machine.libraries))
def test_a_machine_is_read_without_a_finding(name: str, tmp_path: Path) -> None:
    vendor, machine = MACHINES[name]
    node = Node(machine, tmp_path)
    libraries = build(machine, tmp_path / "sanitized")
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {key: value.format(state=node.state, libdir=libraries) for key, value in machine.environment.items()}
    # Python itself leaks at exit on purpose, so leaks are not looked for.
    environment |= {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, vendor, str(node.root)], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) > 0
