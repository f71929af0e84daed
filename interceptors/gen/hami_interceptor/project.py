# SPDX-License-Identifier: Apache-2.0
"""A vendor's project that ships an interceptor: what its pyproject.toml asks for, and building it.

[tool.hatch.build.hooks.hami-interceptor]
apis = ["cuda", "nvml"]          # names of this SDK's tables, or paths of the project's own (ending in .toml)
library = "hami_nvidia/lib/libhami_nvidia.so"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hami_interceptor import build, compilers, spec
from hami_interceptor.errors import SpecError
from hami_interceptor.table import Api

HOOK = "hami-interceptor"


@dataclass(frozen=True, kw_only=True)
class Project:
    """One pyproject.toml's wish. `library` is both the place in the tree and the place in the wheel."""

    root: Path
    apis: tuple[str, ...]
    library: str

    def tables(self) -> list[Api]:
        """Its tables, read and checked."""
        return [spec.load((self.root / name) if name.endswith(".toml") else name) for name in self.apis]

    def build(self, output: Path | None = None, compiler: str | None = None, target: str | None = None) -> Path:
        """The release library, at `output` or in its place in the tree."""
        return build.shared_library(self.tables(), output or self.root / self.library, compiler=compiler, target=target)


def read(root: Path) -> Project:
    """The wish of the project in `root`; raises SpecError when it has none, or one that cannot be read."""
    path = root / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: is not TOML: {error}") from error
    section: object = document
    for key in ("tool", "hatch", "build", "hooks", HOOK):
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise SpecError(f"{path}: has no [tool.hatch.build.hooks.{HOOK}]: it says which apis, and where the library goes")
    return configured(root, section)


def configured(root: Path, section: Mapping[str, object]) -> Project:
    """The wish in one section; raises SpecError for a key that is unknown, missing or of another type."""
    where = f"{root / 'pyproject.toml'}: [tool.hatch.build.hooks.{HOOK}]"
    unknown = section.keys() - {"apis", "library", "dependencies", "require-runtime-dependencies", "enable-by-default"}
    if unknown:
        raise SpecError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: apis, library")
    apis, library = section.get("apis"), section.get("library")
    if not isinstance(apis, list) or not apis or not all(isinstance(api, str) for api in apis):
        raise SpecError(f'{where}: needs apis = a list of names or of .toml files, such as ["cuda", "nvml"]')
    if not isinstance(library, str) or not library.endswith(".so") or PurePosixPath(library).is_absolute() or ".." in PurePosixPath(library).parts:
        raise SpecError(f'{where}: needs library = where the shared object goes inside the package, such as "hami_acme/lib/libhami_acme.so"')
    return Project(root=root, apis=tuple(apis), library=library)


def wheel_tag(compiler: compilers.Compiler) -> str:
    """What a wheel with a library built by this compiler may be installed on."""
    machine = compiler.target.split("-")[0]
    glibc = compilers.OLDEST_GLIBC.replace(".", "_")
    return f"py3-none-manylinux_{glibc}_{machine}" if compiler.portable else f"py3-none-linux_{machine}"
