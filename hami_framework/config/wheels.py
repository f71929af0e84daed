# SPDX-License-Identifier: Apache-2.0
"""`python -m hami_framework.config.wheels FROM TO`: unpack the wheels of one directory into another, for vendors' packages that are not in the image.

Offline, without pip and without a shell (the image has neither). A wheel is a ZIP file whose root is what belongs on Python's
path, with a list of its files and their digests (packaging.python.org, "Binary distribution format" 1.0). What this does not do:
look for dependencies (put their wheels beside), run anything, install scripts.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hami_framework.errors import ConfigError

LARGEST_BYTES = 512 * 1024 * 1024
"""Of one wheel, unpacked; the volume has no more."""


def install(source: Path, target: Path) -> list[str]:
    """Unpack every wheel; answers their names and versions. Raises ConfigError naming the wheel; that one is then not unpacked."""
    wheels = sorted(source.glob("*.whl"))
    if not wheels:
        raise ConfigError(f"there is no *.whl file in {source}: put the vendors' wheels there, or leave plugins.wheelsVolume out")
    return [_unpack(wheel, target) for wheel in wheels]


def _unpack(wheel: Path, target: Path) -> str:
    try:
        with zipfile.ZipFile(wheel) as archive:
            about, files = _checked(wheel, archive)
            for name, place in files:
                file = target / place
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConfigError(f"{wheel.name} cannot be unpacked: {error}") from error
    return about


def _checked(wheel: Path, archive: zipfile.ZipFile) -> tuple[str, list[tuple[str, PurePosixPath]]]:
    """What the wheel is, and its files with their places; every digest is checked before anything is written."""
    infos = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD") and name.count("/") == 1]
    if len(infos) != 1:
        raise ConfigError(f"{wheel.name} is no wheel: it has {len(infos)} lists of files (*.dist-info/RECORD)")
    about = infos[0].removesuffix(".dist-info/RECORD")
    if not wheel.name.startswith(f"{about}-"):
        raise ConfigError(f"{wheel.name} says that it is {about}: a wheel may not be renamed")
    if sum(info.file_size for info in archive.infolist()) > LARGEST_BYTES:
        raise ConfigError(f"{wheel.name} is larger than {LARGEST_BYTES} bytes unpacked")
    digests = {row[0]: row[1] for row in csv.reader(io.StringIO(archive.read(infos[0]).decode())) if row}
    files = []
    for name in archive.namelist():
        if name.endswith("/"):
            continue
        if name != infos[0] and _digest(archive.read(name), digests.get(name, "")) != digests.get(name):
            raise ConfigError(f"{wheel.name}: {name} is not what the wheel's list says")
        files += [(name, place) for place in _places(wheel, name, about)]
    return about.replace("-", " "), files


def _digest(data: bytes, like: str) -> str | None:
    """The digest of `data` as RECORD writes it, by the algorithm that `like` names; None for one that a wheel may not use."""
    algorithm = like.partition("=")[0]
    if algorithm not in ("sha256", "sha384", "sha512"):
        return None
    return f"{algorithm}={base64.urlsafe_b64encode(hashlib.new(algorithm, data).digest()).decode().rstrip('=')}"


def _places(wheel: Path, name: str, about: str) -> Iterator[PurePosixPath]:
    """Where a file belongs; nowhere for scripts and the like."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{wheel.name}: {name} points out of the wheel")
    if path.parts[0] != f"{about}.data":
        yield path
    elif path.parts[1] in ("purelib", "platlib"):
        yield PurePosixPath(*path.parts[2:])


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line that names the wheel."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 2:
        print("usage: python -m hami_framework.config.wheels FROM TO", file=sys.stderr)
        return 2
    os.umask(0o022)
    try:
        for about in install(Path(given[0]), Path(given[1])):
            print(f"unpacked {about}")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
