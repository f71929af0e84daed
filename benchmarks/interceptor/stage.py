# SPDX-License-Identifier: Apache-2.0
"""The stage that each measurement plays on: programs built once, a policy, and the same program run direct and hooked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hami_framework.enforcement import policy
from hami_framework.enforcement.container import prepare
from hami_interceptor import build, spec

HERE = Path(__file__).parent
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror")
NULL_UUID = "GPU-11111111-2222-3333-4444-555555555555"
"""What null_driver.c reports."""


class Stage:
    """Programs and libraries in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.library = build.shared_library([spec.load("cuda"), spec.load("nvml")], directory / "libhami_nvidia.so")
        self.micro = self._program("micro")
        self.tenant = self._program("tenant")
        null = directory / "null"
        null.mkdir(exist_ok=True)
        self._compile(HERE / "null_driver.c", null / "libcuda.so.1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1")
        self.null_driver = {"LD_LIBRARY_PATH": str(null)}

    def _program(self, name: str) -> Path:
        return self._compile(HERE / f"{name}.c", self.directory / name)

    def _compile(self, source: Path, target: Path, *options: str) -> Path:
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, *options, "-o", str(target), str(source), "-ldl"], check=True)
        return target

    def container(self, name: str, *devices: policy.DevicePolicy) -> Path:
        """A container directory with this policy, as the agent makes it."""
        directory = self.directory / "containers" / name
        prepare(directory, policy.Policy(container=name, devices=devices), (str(self.library),))
        return directory

    def hooked(self, container: Path, environment: dict[str, str]) -> dict[str, str]:
        """The environment of a program of that container."""
        return os.environ | environment | {"LD_PRELOAD": str(self.library), "HAMI_DEVELOPMENT_POLICY": str(container), "HAMI_GRANT": container.name}

    def direct(self, environment: dict[str, str]) -> dict[str, str]:
        """The environment of the same program on the driver alone."""
        return os.environ | environment | {"HAMI_GRANT": "direct"}


def milli(percent: int | None) -> int | None:
    """A percentage as policies have it."""
    return None if percent is None else percent * 1000


def numbers(line: str) -> tuple[float, ...]:
    """The figures of one line of a benchmark program."""
    return tuple(float(word) for word in line.split())


def run(command: Sequence[str], environment: dict[str, str]) -> tuple[float, ...]:
    """One program to its end; the figures it printed last. Its words on stderr are shown when it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return numbers(done.stdout.splitlines()[-1])


@contextmanager
def crowd(command: Sequence[str], environment: dict[str, str], size: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`size` of the same program, all ready and waiting at the barrier; they go when the caller writes to their stdin."""
    processes = [
        subprocess.Popen([*command, "0"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(size)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.read(1) != b"r":
                raise RuntimeError(f"{' '.join(command)} did not become ready")
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def go(process: subprocess.Popen[bytes]) -> None:
    """Let one process of a crowd pass its barrier."""
    assert process.stdin is not None
    process.stdin.write(b"g")
    process.stdin.flush()


def figures(process: subprocess.Popen[bytes]) -> tuple[float, ...]:
    """What a process of a crowd measured."""
    assert process.stdout is not None
    return numbers(process.stdout.readline().decode())
