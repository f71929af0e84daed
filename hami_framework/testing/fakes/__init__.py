# SPDX-License-Identifier: Apache-2.0
"""Builds a machine's fake libraries from the C sources its package ships, once per content.

Needs a C compiler (`cc`, or what `CC` names): binaries are never shipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from hami_framework.errors import ConfigError
from hami_framework.model import Machine

HEADER_DIRECTORY = Path(__file__).parent
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-pthread")
"""`HF_EXPORT` in a fake's source marks what the library exports; everything else stays inside."""


def default_cache() -> Path:
    """Where built fakes are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hami" / "fakes"


def build_libraries(machine: Machine, cache: Path | None = None) -> Path:
    """The directory that holds the machine's fake libraries, built there if they are not yet.

    Raises `ConfigError` when there is no compiler or a source does not compile; the message carries the compiler's words.
    """
    target = (cache or default_cache()) / _digest(machine)
    if not target.is_dir():
        scratch = target.with_name(f"{target.name}.{os.getpid()}")
        scratch.mkdir(parents=True)
        for library, source in machine.libraries.items():
            _compile(Path(source), scratch / library)
        _publish(scratch, target)
    return target


def _digest(machine: Machine) -> str:
    content = hashlib.sha256()
    for library, source in sorted(machine.libraries.items()):
        content.update(library.encode() + b"\0" + Path(source).read_bytes())
    for header in sorted({*HEADER_DIRECTORY.glob("*.h"), *(h for s in machine.sources for h in Path(s).parent.glob("*.h"))}):
        content.update(header.read_bytes())
    content.update(" ".join(FLAGS).encode())
    return content.hexdigest()[:16]


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
