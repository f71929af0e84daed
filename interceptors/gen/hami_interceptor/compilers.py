# SPDX-License-Identifier: Apache-2.0
"""Which C compiler, for which machine, and how it is run.

The *portable* compiler is the pinned `ziglang` package: it links against the symbol versions of an old glibc, so that a library
built anywhere loads everywhere, and it builds for other machines. Without it the host's own compiler is used.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from hami_interceptor.errors import BuildError

PORTABLE = "portable"
"""What to give as `compiler` to ask for the pinned portable compiler."""

OLDEST_GLIBC = "2.17"
TARGETS = ("x86_64-linux-gnu", "aarch64-linux-gnu")


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A command to which compiler arguments are appended."""

    command: tuple[str, ...]
    portable: bool
    target: str

    @property
    def name(self) -> str:
        return " ".join(self.command)

    def run(self, arguments: Sequence[str], what: str) -> None:
        """Raises BuildError, with the compiler's words, when it fails."""
        try:
            done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"{what}: the compiler {self.command[0]!r} cannot be run: {error.strerror}; install gcc, or name another in CC") from error
        if done.returncode != 0:
            raise BuildError(f"{what} does not compile (with {self.name}):\n{(done.stderr or done.stdout).strip()}")

    def archiver(self) -> Compiler:
        """The `ar` that goes with it."""
        command = (*self.command[: self.command.index("cc")], "ar") if self.portable else (os.environ.get("AR") or "ar",)
        return Compiler(command=command, portable=self.portable, target=self.target)

    def identity(self) -> str:
        """Which compiler, which version: part of what a cached result depends on."""
        return _identity(self.command)


@cache
def _identity(command: tuple[str, ...]) -> str:
    version = [sys.executable, "-m", "ziglang", "version"] if "ziglang" in command else [*command, "--version"]
    try:
        done = subprocess.run(version, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"the compiler {command[0]!r} cannot be run: {error.strerror}; install gcc, or name another in CC") from error
    return " ".join(command) + "\n" + done.stdout.split("\n", 1)[0]


def portable_is_here() -> bool:
    """Whether the pinned portable compiler is installed beside this Python."""
    return importlib.util.find_spec("ziglang") is not None


def host_target() -> str:
    """This machine, as the portable compiler calls it; raises BuildError for one that the core was not written for."""
    target = f"{platform.machine()}-linux-gnu"
    if target not in TARGETS:
        raise BuildError(f"the interceptors are for {' and '.join(TARGETS)}; this machine is {platform.machine()}: name a target")
    return target


def choose(compiler: str | None = None, target: str | None = None) -> Compiler:
    """The compiler to use: the one named (a command, or "portable"), else CC, cc, gcc, else the portable one.

    Only the portable compiler builds for another machine than this one. Raises BuildError when there is none that can.
    """
    wanted = target or host_target()
    if wanted not in TARGETS:
        raise BuildError(f"unknown target {wanted!r}; one of: {', '.join(TARGETS)}")
    foreign = wanted != host_target()
    if compiler == PORTABLE or (compiler is None and foreign):
        return _portable(wanted, f"to build for {wanted}" if foreign else "as asked")
    named = compiler or os.environ.get("CC")
    found = shutil.which("cc") or shutil.which("gcc")
    if named or found:
        return Compiler(command=tuple(shlex.split(named)) if named else (str(found),), portable=False, target=wanted)
    if portable_is_here():
        return _portable(wanted, "since there is no other")
    raise BuildError("no C compiler found: install gcc, name one in CC, or `pip install ziglang`")


def _portable(target: str, why: str) -> Compiler:
    if not portable_is_here():
        raise BuildError(f"the portable compiler is needed {why} and is not installed: `pip install ziglang`")
    command = (sys.executable, "-m", "ziglang", "cc", "-target", f"{target}.{OLDEST_GLIBC}")
    return Compiler(command=command, portable=True, target=target)
