# SPDX-License-Identifier: Apache-2.0
"""`lab.local/hami:dev`: the product as it stands in this checkout, in an image made of files that are on this machine.

Two layers: one that changes with the lock (Python, its standard library, what the product depends on, the shared libraries
of all of it), one with the product itself. Nothing else is in it, no shell either. What would differ from an image for
users (`deploy/Containerfile…`) is where Python comes from; the packages and the way they are started are the same.
"""

from __future__ import annotations

import importlib.metadata
import os
import py_compile
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from e2e.lab.archive import Entry, Image, Layer
from e2e.lab.build import ROOT
from e2e.lab.machine import LabError

NAME = "lab.local/hami:dev"
VENDORS = ("nvidia", "ascend", "cambricon", "hygon")
PREFIX = "opt/python"
"""Where Python lives in the image. It finds its own prefix from the place of its program, so it can be moved."""
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
LIBRARY = f"{PREFIX}/lib/{VERSION}"
PACKAGES = f"{LIBRARY}/site-packages"
ENTRY = "usr/local/bin/hami"
NONROOT = 65532

UNUSED_STDLIB = {"test", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
UNUSED_PACKAGES = re.compile(
    r"(^|/)(tests?|__pycache__|e2e_test)/|\.(pyi|c|h|a|pyx|pxd|md|rst|virtualenv)$|^kubernetes/aio/|^\.\./|\.dist-info/(direct_url|RECORD|licenses)"
)
"""`kubernetes/aio` is a second copy of the client, which nothing here imports; `../` are programs of the venv's bin."""


def image(scratch: Path) -> Image:
    """The image's files. `scratch`: where compiled Python is kept between builds. Raises LabError when the venv lacks something."""
    base = {**_python(), **_dependencies(), **_surroundings()}
    base |= _shared_libraries(base)
    own = {**_product(), ENTRY: Entry(contents=_entry(), mode=0o755)}
    layers = (base | compiled(base, scratch), own | compiled(own, scratch))
    return Image(
        NAME, layers, command=(f"/{ENTRY}",), environment=(("PATH", f"/usr/local/bin:/{PREFIX}/bin"), ("PYTHONDONTWRITEBYTECODE", "1"), ("LANG", "C.UTF-8"))
    )


def _entry() -> bytes:
    return f"#!/{PREFIX}/bin/{VERSION}\nfrom hami_framework.cli.main import main\n\nmain()\n".encode()


def _python() -> Layer:
    program = Path(os.path.realpath(sys.executable))
    stdlib = Path(sysconfig.get_path("stdlib"))
    files = {f"{PREFIX}/bin/{VERSION}": Entry(program, mode=0o755), f"{PREFIX}/bin/python3": Entry(link=VERSION), f"{PREFIX}/bin/python": Entry(link=VERSION)}
    for folder, names, found in os.walk(stdlib):
        at = Path(folder).relative_to(stdlib)
        names[:] = sorted(name for name in names if name != "__pycache__" and not (at == Path() and (name in UNUSED_STDLIB or name.startswith("config-"))))
        files |= {f"{LIBRARY}/{at / name}": Entry(Path(folder, name)) for name in found if name.endswith((".py", ".json", ".txt", ".so"))}
    dynamic = Path(sysconfig.get_config_var("DESTSHARED"))
    return files | {f"{LIBRARY}/lib-dynload/{file.name}": Entry(file) for file in dynamic.glob("*.so") if "_test" not in file.name}


def distributions() -> list[importlib.metadata.Distribution]:
    """What the product depends on, by the projects' own words and the venv's metadata. Raises LabError naming what is not installed."""
    todo = [text for file in _projects() for text in tomllib.loads(file.read_text())["project"]["dependencies"]]
    found: dict[str, importlib.metadata.Distribution] = {}
    while todo:
        requirement = Requirement(todo.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or name.startswith("hami-framework") or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise LabError(f"{requirement} is not in the venv: run `make venv`") from error
        todo += found[name].requires or []
    return [found[name] for name in sorted(found)]


def _projects() -> list[Path]:
    return [ROOT / "pyproject.toml", *(ROOT / "vendors" / vendor / "pyproject.toml" for vendor in VENDORS)]


def _dependencies() -> Layer:
    files = {}
    for distribution in distributions():
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if not UNUSED_PACKAGES.search(str(file)) and source.is_file():
                files[f"{PACKAGES}/{file}"] = Entry(source)
    return files


def _product() -> Layer:
    """The five packages as a wheel would install them: sources, data, interceptors, and the metadata that names the vendors."""
    packages = {"hami-framework": ROOT / "hami_framework", **{f"hami-framework-{vendor}": ROOT / "vendors" / vendor / f"hami_{vendor}" for vendor in VENDORS}}
    files: dict[str, Entry] = {}
    for name, folder in packages.items():
        for source in sorted(folder.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts and source.suffix != ".pyi":
                files[f"{PACKAGES}/{folder.name}/{source.relative_to(folder)}"] = Entry(source)
        about = Path(str(importlib.metadata.distribution(name).locate_file(f"{name.replace('-', '_')}-{importlib.metadata.version(name)}.dist-info")))
        files |= {f"{PACKAGES}/{about.name}/{part}": Entry(about / part) for part in ("METADATA", "entry_points.txt") if (about / part).exists()}
    missing = [vendor for vendor in VENDORS if f"{PACKAGES}/hami_{vendor}/lib/libhami_{vendor}.so" not in files]
    if missing:
        raise LabError(f"the interceptors of {', '.join(missing)} are not built: run `make native`")
    return files


def _surroundings() -> Layer:
    users = f"root:x:0:0:root:/:/nologin\nnonroot:x:{NONROOT}:{NONROOT}:nonroot:/:/nologin\n".encode()
    groups = f"root:x:0:\nnonroot:x:{NONROOT}:\n".encode()
    files = {
        "etc/passwd": Entry(contents=users),
        "etc/group": Entry(contents=groups),
        "etc/nsswitch.conf": Entry(contents=b"hosts: files dns\n"),
        "tmp": Entry(mode=0o1777),
    }
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    return files | ({"etc/ssl/certs/ca-certificates.crt": Entry(authorities)} if authorities.exists() else {})


def _shared_libraries(files: Layer) -> dict[str, Entry]:
    """The closure by ldd(1) of every program and library of the image, at the places where the loader looks."""
    ours = sorted({str(entry.source) for path, entry in files.items() if entry.source and (".so" in entry.source.name or path.endswith(f"bin/{VERSION}"))})
    # Vendors' libraries come from the node, and Python's own modules for things that are not here may stay without theirs.
    listed = subprocess.run(["ldd", *ours], capture_output=True, text=True, check=False).stdout
    found: dict[str, Entry] = {}
    bundled = {Path(path).name for path in files}
    for name, target in re.findall(r"^\t(\S+) (?:=> (\S+) )?\(0x", listed, re.MULTILINE):
        source = Path(target or name)
        if not source.is_absolute() or not source.exists() or source.name in bundled:
            continue
        # The loader is named by its full path in each program; the rest is found in the folders it searches by default.
        inside = str(source).lstrip("/") if source.name.startswith("ld-") else f"usr/lib/{source.name}"
        found[inside] = Entry(Path(os.path.realpath(source)), mode=0o755)
    return found


def compiled(files: Layer, scratch: Path) -> dict[str, Entry]:
    """Byte code beside each module, as installed packages have it: a read-only container cannot write its own. Levels 0 and 2 (the agent's)."""
    return {
        path: entry
        for source_path, entry in files.items()
        if source_path.endswith(".py") and entry.source
        for path, entry in _bytecode(source_path, entry.source, scratch)
    }


def _bytecode(path: str, source: Path, scratch: Path) -> Iterator[tuple[str, Entry]]:
    inside = Path(path)
    for level, mark in ((0, ""), (2, ".opt-2")):
        name = f"{inside.stem}.{sys.implementation.cache_tag}{mark}.pyc"
        cached = scratch / inside.parent / name
        if not cached.exists() or cached.stat().st_mtime_ns < source.stat().st_mtime_ns:
            cached.parent.mkdir(parents=True, exist_ok=True)
            try:
                py_compile.compile(
                    str(source), str(cached), f"/{path}", doraise=True, optimize=level, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
                )
            except py_compile.PyCompileError:
                return  # a package's template or a file for another version: nothing imports it
        yield str(inside.parent / "__pycache__" / name), Entry(cached)


def total_bytes(files: Iterable[Layer]) -> int:
    """How much an image's files take, unpacked."""
    return sum(entry.source.stat().st_size if entry.source else len(entry.contents or b"") for layer in files for entry in layer.values())
