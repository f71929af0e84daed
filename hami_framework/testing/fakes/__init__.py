# SPDX-License-Identifier: Apache-2.0
"""Builds a machine's fake libraries from the C sources its package ships, once per content.

Needs a C compiler (`cc`, or what `CC` names): binaries are never shipped. The fake *drivers* of a machine come from the
interceptor SDK (`hami_interceptor`), which knows their tables; without it a machine has its management libraries only.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Literal

from hami_framework.errors import ConfigError
from hami_framework.model import Machine

HEADER_DIRECTORY = Path(__file__).parent
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-pthread")
"""`HF_EXPORT` in a fake's source marks what the library exports; everything else stays inside."""

CARD_READER = HEADER_DIRECTORY / "hami_card.c"


def default_cache() -> Path:
    """Where built fakes are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hami" / "fakes"


def build_libraries(machine: Machine, cache: Path | None = None, drivers: bool | Literal["if-possible"] = "if-possible") -> Path:
    """The directory that holds the machine's fake libraries, built there if they are not yet.

    `drivers`: with the fake drivers too, or not; "if-possible": with them when the interceptor SDK is importable.
    Raises `ConfigError` when there is no compiler, a source does not compile (the message carries the compiler's words), or
    drivers are asked for and there is no SDK.
    """
    sdk = _sdk(required=drivers is True) if machine.drivers and drivers else None
    target = (cache or default_cache()) / _digest(machine, sdk)
    if not target.is_dir():
        scratch = target.with_name(f"{target.name}.{os.getpid()}")
        scratch.mkdir(parents=True)
        for library, source in machine.libraries.items():
            _compile(Path(source), scratch / library)
        for library, api in machine.drivers.items() if sdk is not None else ():
            _driver(api, scratch / library)
        _publish(scratch, target)
    return target


def build_card_reader(cache: Path | None = None) -> Path:
    """`libhami_card.so`, which `testing.card` reads cards with; built if it is not yet."""
    content = hashlib.sha256(" ".join(FLAGS).encode() + CARD_READER.read_bytes())
    for header in sorted(HEADER_DIRECTORY.glob("*.h")):
        content.update(header.read_bytes())
    target = (cache or default_cache()) / f"card-{content.hexdigest()[:16]}"
    if not target.is_dir():
        scratch = target.with_name(f"{target.name}.{os.getpid()}")
        scratch.mkdir(parents=True)
        _compile(CARD_READER, scratch / "libhami_card.so")
        _publish(scratch, target)
    return target / "libhami_card.so"


def _digest(machine: Machine, sdk: ModuleType | None) -> str:
    content = hashlib.sha256()
    for library, source in sorted(machine.libraries.items()):
        content.update(library.encode() + b"\0" + Path(source).read_bytes())
    for header in sorted({*HEADER_DIRECTORY.glob("*.h"), *(h for s in machine.sources for h in Path(s).parent.glob("*.h"))}):
        content.update(header.read_bytes())
    content.update(" ".join(FLAGS).encode())
    if sdk is not None:
        for library, api in sorted(machine.drivers.items()):
            content.update(f"{library}\0{api}\0".encode())
        for source_file in _sdk_sources(sdk):
            content.update(source_file.name.encode() + b"\0" + source_file.read_bytes())
    return content.hexdigest()[:16]


def _sdk(*, required: bool) -> ModuleType | None:
    """The interceptor SDK's builder, if it is installed."""
    try:
        return importlib.import_module("hami_interceptor.build")
    except ModuleNotFoundError as error:
        if required:
            raise ConfigError(f"fake drivers are built by the interceptor SDK, which is not installed ({error}): pip install hami-interceptor-sdk") from error
        return None


def _sdk_sources(sdk: ModuleType) -> list[Path]:
    """Everything that a fake driver is made from."""
    root = importlib.import_module("hami_interceptor.native").root()
    patterns = ("spec/*.toml", "spec/exports/*.txt", "fakes/*/*.[ch]", "shim/*/*.h", "core/*.h", "core/*.map")
    generator = sorted(Path(str(sdk.__file__)).parent.glob("*.py"))
    return [*(path for pattern in patterns for path in sorted(root.glob(pattern))), *generator]


def _driver(api: str, library: Path) -> None:
    sdk, spec = importlib.import_module("hami_interceptor.build"), importlib.import_module("hami_interceptor.spec")
    errors = importlib.import_module("hami_interceptor.errors")
    try:
        sdk.fake_driver(spec.load(api), library, include=[HEADER_DIRECTORY], variant="testing")
    except errors.InterceptorError as error:
        raise ConfigError(f"the fake driver {library.name} ({api}) cannot be built: {error}") from error


def _compile(source: Path, library: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ConfigError(f"no C compiler found to build the fake {library.name}: install gcc, or name one in CC")
    command = [compiler, *FLAGS, f"-I{HEADER_DIRECTORY}", f"-Wl,-soname,{library.name}", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"the fake {library.name} does not compile ({source}):\n{done.stderr.strip()}")


def _publish(scratch: Path, target: Path) -> None:
    """Rename into place; whoever came second throws its copy away."""
    try:
        scratch.rename(target)
    except OSError:
        shutil.rmtree(scratch)
