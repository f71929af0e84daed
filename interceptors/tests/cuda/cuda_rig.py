# SPDX-License-Identifier: Apache-2.0
"""What the tests of the CUDA and NVML front ends share: a machine, a container's policy on it, and programs run in that container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hami_framework.enforcement import layout
from hami_framework.enforcement.control import Control
from hami_framework.enforcement.policy import DevicePolicy, Policy, write
from hami_framework.testing import fakes
from hami_framework.testing.card import Card
from hami_interceptor import compilers, native

PROGRAM = Path(__file__).parent / "cuda_program.py"
MIB = 1 << 20
CONTEXT = 300 * MIB
LIMIT = 1024 * MIB
CAPACITY_MIB = 8192
UUIDS = tuple(f"GPU-{number}1111111-2222-3333-4444-55555555555{number}" for number in range(4))
PCI = tuple(f"0000:{7 + number:02x}:00.0" for number in range(4))
ROWS_PROGRAM = Path(__file__).parent / "cuda_rows_program.py"
NVML = native.root().parent / "vendors" / "nvidia" / "hami_nvidia" / "fakes" / "nvml.c"
FAKE_INCLUDES = (fakes.HEADER_DIRECTORY,)


def record(number: int = 0, **changes: Any) -> DevicePolicy:
    """The policy's record of the machine's device `number`."""
    values: dict[str, Any] = {
        "vendor": "nvidia",
        "identities": (("uuid", UUIDS[number]), ("pci", PCI[number])),
        "memory_bytes": LIMIT,
        "capacity_bytes": CAPACITY_MIB * MIB,
        "context_bytes": CONTEXT,
        **changes,
    }
    return DevicePolicy(**values)


Seen = dict[str, dict[str, Any]]
"""By symbol, what was seen "with" its hook and "without" it."""


class Container:
    """A container on a machine of `devices` GPUs."""

    def __init__(
        self,
        folder: Path,
        preload: Path,
        libraries: Sequence[Path],
        records: Sequence[DevicePolicy],
        *,
        devices: int = 2,
        advisory: bool = False,
        memory_mib: int = CAPACITY_MIB,
        program: Path = PROGRAM,
    ) -> None:
        self.memory_mib, self.program = memory_mib, program
        self.folder, self.preload, self.libraries = folder, preload, libraries
        (folder / "policy").mkdir(parents=True)
        (folder / "state").mkdir()
        self.state_path = folder / "state" / "state.bin"
        self.state_path.write_bytes(bytes(layout.StateFile()))
        self.control = Control.create(folder / "policy" / "control.bin", 1)
        write(folder / "policy", Policy(container="uid/main", devices=tuple(records), advisory=advisory))
        self.machine = folder / "machine.ini"
        self.machine.write_text("[machine]\ncuda = 13050\n\n" + "\n".join(self._device(number) for number in range(devices)))
        self.card = Card(self.machine, folder / "cards")

    def _device(self, number: int) -> str:
        memory = f"memory_mib = {self.memory_mib}\ncontext_mib = {CONTEXT // MIB}\n"
        return f"[device {number}]\nname = NVIDIA fake\nuuid = {UUIDS[number]}\npci = {PCI[number]}\n{memory}"

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "HAMI_", "LD_"))},
            "LD_PRELOAD": str(self.preload),
            "LD_LIBRARY_PATH": ":".join(str(library.parent) for library in self.libraries),
            "HAMI_DEVELOPMENT_POLICY": str(self.folder),
            "HAMI_FAKE_NVIDIA": str(self.machine),
            "HAMI_GRANT": "uid/main",
            **more,
        }

    def run(self, scenario: str, *arguments: object, timeout: float = 100, **environment: str) -> dict[str, Any]:
        """Runs one scenario to its end."""
        command = [sys.executable, str(self.program), scenario, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment(**environment), capture_output=True, text=True, check=False, timeout=timeout)
        assert done.returncode == 0, f"{scenario} {arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return dict(json.loads(done.stdout))

    @contextmanager
    def running(self, scenario: str, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A scenario that goes on until its stdin is closed; it has ended, one way or another, when the block is left."""
        command = [sys.executable, str(self.program), scenario, *map(str, arguments)]
        with subprocess.Popen(command, env=self.environment(**environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def drive(self, table: str, driver: Path, *denied: str) -> Seen:
        """What the rows of a table show in this container, each with and without its hook."""
        places = self.folder / "offsets.json"
        places.write_text(json.dumps(offsets(driver)))
        command = [sys.executable, str(ROWS_PROGRAM), table, driver.name, str(places), str(self.state_path), *denied]
        done = subprocess.run(command, env=self.environment(HAMI_FAKE_FAULTS=""), capture_output=True, text=True, check=False, timeout=110)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return dict(json.loads(done.stdout))

    def state(self) -> layout.StateFile:
        return layout.StateFile.from_buffer_copy(self.state_path.read_bytes())

    def high_water(self, number: int = 0) -> int:
        """The most physical memory that this container ever held: the oracle."""
        containers = self.card.devices[number].containers
        return containers["uid/main"].high_water if "uid/main" in containers else 0


def offsets(library: Path) -> dict[str, int]:
    """Where in the file each function lies: with the address it was loaded at, a way around all hooks."""
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return {name: int(address, 16) for address, _, name in (line.split() for line in listed.splitlines())}


def fake_nvml(folder: Path) -> Path:
    """The fake management library of the NVIDIA package, in a folder of its own."""
    library = folder / "libnvidia-ml.so.1"
    folder.mkdir()
    compilers.choose().run([*fakes.FLAGS, f"-I{fakes.HEADER_DIRECTORY}", f"-Wl,-soname,{library.name}", "-o", str(library), str(NVML), "-ldl"], "fake NVML")
    return library


MakeContainer = Callable[..., Container]
