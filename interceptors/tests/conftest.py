# SPDX-License-Identifier: Apache-2.0
"""What the tests of the interceptors share: the core built once per variant, and a small way to compile and run C."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from hami_interceptor import build, compilers, native, spec
from hami_interceptor.table import Api

DATA = Path(__file__).parent / "data"

Archive = Callable[[str], Path]
Shared = Callable[..., Path]


class Compile(Protocol):
    """`compile_c("name", "int main(void) {…}" or Path, …)`: the program, or with `shared` the shared object, that it makes."""

    def __call__(
        self,
        name: str,
        *sources: str | Path,
        variant: str = "testing",
        include: Sequence[Path] = (),
        link: Sequence[str | Path] = (),
        flags: Sequence[str] = (),
        shared: bool = False,
        core: bool = False,
    ) -> Path: ...


class RunC(Protocol):
    """`run_c(program, "argument", env={…})`: its finished process; fails the test when the exit status is not `status`."""

    def __call__(
        self, program: Path, *arguments: str, env: Mapping[str, str] | None = None, status: int = 0, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This session's folder for what its tests build."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="session")
def core(built: Path) -> Archive:
    """`core("asan")`: libhami_core.a of that variant ("release", "testing", "asan", "ubsan", "tsan", or several joined with '+')."""
    return lambda variant: build.core_archive(built / "core" / variant / "libhami_core.a", variant)


@pytest.fixture(scope="session")
def interceptor(built: Path) -> Shared:
    """`interceptor("cuda", "nvml", variant="testing")`: the shared object that stands before these APIs."""

    def make(*apis: str | Path | Api, variant: str = "release") -> Path:
        tables = [api if isinstance(api, Api) else spec.load(api) for api in apis]
        return build.shared_library(tables, built / "interceptor" / variant / f"libhami_{'_'.join(table.name for table in tables)}.so", variant)

    return make


@pytest.fixture(scope="session")
def fake_driver(built: Path) -> Shared:
    """`fake_driver("cuda", include=[…])`: the fake driver of an API, in a folder of its own, under the real one's file name."""

    def make(api: str | Path | Api, include: Sequence[Path] = (), variant: str = "release") -> Path:
        table = api if isinstance(api, Api) else spec.load(api)
        return build.fake_driver(table, built / "driver" / variant / table.name / table.library, include, variant)

    return make


@pytest.fixture
def compile_c(tmp_path: Path, core: Archive) -> Compile:
    """Compiles C, given as files or as text, with the house's warnings; `core` links libhami_core.a of the same variant."""

    def make(
        name: str,
        *sources: str | Path,
        variant: str = "testing",
        include: Sequence[Path] = (),
        link: Sequence[str | Path] = (),
        flags: Sequence[str] = (),
        shared: bool = False,
        core: bool = False,
        archive: Archive = core,
    ) -> Path:
        files = [source if isinstance(source, Path) else _written(tmp_path / f"{name}-{number}.c", source) for number, source in enumerate(sources)]
        output = tmp_path / name
        includes = [f"-iquote{folder}" for folder in (*include, native.core())]
        libraries = ["-Wl,--whole-archive", str(archive(variant)), "-Wl,--no-whole-archive"] if core else []
        own = [*build.FLAGS, *build.variant_flags(variant), *flags, *(["-shared"] if shared else [])]
        compilers.choose().run([*own, *includes, *map(str, files), "-o", str(output), *libraries, *map(str, link), "-ldl", "-lrt"], name)
        return output

    return make


@pytest.fixture
def run_c() -> RunC:
    """Runs a program that a test compiled."""

    def run(program: Path, *arguments: str, env: Mapping[str, str] | None = None, status: int = 0, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}, timeout=timeout)
        assert done.returncode == status, f"{program.name} {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
