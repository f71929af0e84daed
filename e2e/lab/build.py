# SPDX-License-Identifier: Apache-2.0
"""Builds the lab's programs into the checkout's cache. What is built already and unchanged is not built again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from e2e.lab import modules
from e2e.lab.machine import LabError
from e2e.lab.modules import Part, Program

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "lab"
BIN = CACHE / "bin"
LOGS = CACHE / "logs"

_ENVIRONMENT = {"GOTOOLCHAIN": "local", "GOTELEMETRY": "off", "GOWORK": "off"}


def programs(minor: str) -> Path:
    """The folder with the five programs of this version of Kubernetes."""
    return BIN / minor


def common() -> Path:
    """The folder with everything else."""
    return BIN / "common"


def needed(minors: Iterable[str]) -> list[Part]:
    """The parts for these versions of Kubernetes. Raises LabError for one that versions.toml lacks."""
    pinned = modules.versions()
    unknown = [minor for minor in minors if minor not in pinned.kubernetes]
    if unknown:
        raise LabError(f"Kubernetes {', '.join(unknown)} is not in e2e/lab/versions.toml, which has {', '.join(pinned.kubernetes)}")
    return [*modules.common(pinned.parts), *(modules.kubernetes(minor, pinned.kubernetes[minor], pinned.staging) for minor in minors)]


def build(minors: Iterable[str], *, update: bool = False) -> None:
    """Build what is missing or has changed, one part after the other, telling on stderr. `update`: complete go.mod and go.sum (pins are then new)."""
    parts = needed(list(minors))
    missing = [part for part in parts if update or not _built(part)]
    if not missing:
        return
    check_tools(missing)
    for number, part in enumerate(missing, 1):
        stale = modules.stale(part)
        if stale and not update:
            raise LabError(f"e2e/lab/modules/{part.name}/go.mod is not what versions.toml says ({stale[0]}): run python -m e2e.lab modules")
        began = time.monotonic()
        print(f"[{number}/{len(missing)}] building {part.name} ({', '.join(program.file for program in part.programs)}) …", file=sys.stderr, flush=True)
        for together in _batches(part):
            _go_build(part, together, update=update)
        _stamp_file(part).write_text(_digest(part))
        print(f"[{number}/{len(missing)}] {part.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def check_tools(parts: Iterable[Part]) -> None:
    """Raises LabError naming what has to be installed first."""
    wanted = modules.versions().go
    if shutil.which("go") is None:
        raise LabError(f"the lab is built from Go modules: install Go {wanted} or newer")
    version = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, env={**os.environ, **_ENVIRONMENT}, check=True).stdout.strip()
    if _numbers(version.removeprefix("go")) < _numbers(wanted):
        raise LabError(f"the lab needs Go {wanted} or newer; this is {version.removeprefix('go')}")
    if any(program.cgo for part in parts for program in part.programs) and distribution_runc() is None:
        if shutil.which("gcc") is None:
            raise LabError("runc is built with C: install gcc (or the distribution's package runc)")
        if shutil.which("pkg-config") is None or subprocess.run(["pkg-config", "--exists", "libseccomp"]).returncode != 0:
            raise LabError("runc needs libseccomp's headers and pkg-config: install libseccomp-dev and pkg-config (or the distribution's package runc)")


def distribution_runc() -> str | None:
    """The machine's own runc, taken when libseccomp's headers are missing."""
    headers = shutil.which("pkg-config") and subprocess.run(["pkg-config", "--exists", "libseccomp"]).returncode == 0
    return None if headers else shutil.which("runc")


def _batches(part: Part) -> list[list[Program]]:
    """Programs that are built alike go into one `go build`: it compiles what they share once."""
    batches: dict[tuple[str, str, bool, str], list[Program]] = {}
    for program in part.programs:
        alone = "" if program.file == program.package.rpartition("/")[2] else program.file
        batches.setdefault((program.tags, program.ldflags, program.cgo, alone), []).append(program)
    return list(batches.values())


def _go_build(part: Part, together: list[Program], *, update: bool) -> None:
    folder = BIN / part.folder
    (folder / "cni").mkdir(parents=True, exist_ok=True)
    first = together[0]
    if first.cgo and (found := distribution_runc()) is not None:
        shutil.copy2(found, folder / first.file)
        return
    same_name = all(program.file == program.package.rpartition("/")[2] for program in together)
    output = f"{folder}/" if same_name else str(folder / first.file)
    command = [
        "go",
        "build",
        "-trimpath",
        "-buildvcs=false",
        f"-mod={'mod' if update else 'readonly'}",
        "-tags",
        first.tags,
        "-ldflags",
        first.ldflags,
        "-o",
        output,
    ]
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"build-{part.name}.log"
    with log.open("ab") as out:
        done = subprocess.run(
            [*command, *(program.package for program in together)],
            cwd=part.directory, env={**os.environ, **_ENVIRONMENT, "CGO_ENABLED": str(int(first.cgo))}, stdout=out, stderr=out,
        )  # fmt: skip
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise LabError(f"building {part.name} failed (all of it: {log.relative_to(ROOT)}):\n{tail}")


def _digest(part: Part) -> str:
    """Changes when what is built would: the wrapper's files, the flags, and whose runc it is."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        file = part.directory / name
        digest.update(file.read_bytes() if file.exists() else b"")
    digest.update(json.dumps([vars(program) for program in part.programs]).encode())
    return digest.hexdigest()


def _stamp_file(part: Part) -> Path:
    return BIN / part.folder / f".{part.name}"


def _built(part: Part) -> bool:
    stamp = _stamp_file(part)
    files = all((BIN / part.folder / program.file).exists() for program in part.programs)
    return files and stamp.exists() and stamp.read_text() == _digest(part)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split("-")[0].split("."))
