# SPDX-License-Identifier: Apache-2.0
"""Builds shared objects, fake drivers and the core's archive, once per content.

What a result depends on (sources, generated text, flags, compiler) names it in the cache, so a second build is a copy. Nothing
is ever built into the tree unless the caller names a place there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hami_interceptor import compilers, generate, native
from hami_interceptor.compilers import Compiler
from hami_interceptor.errors import BuildError
from hami_interceptor.table import Api

FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-pthread")
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "release": ("-O2", "-g0"),
    "testing": ("-O1", "-g", "-DHAMI_TESTING"),
    "asan": ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address"),
    "ubsan": ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
    "tsan": ("-O1", "-g", "-fsanitize=thread"),
}
LINK = ("-shared", "-Wl,-z,nodelete", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,--no-undefined", "-Wl,--as-needed", "-pthread", "-ldl", "-lrt", "-lm")
"""`nodelete`: a program may dlclose us while our hooks are on some thread's stack."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One object file: a source that lies somewhere or a generated text, and what it may include."""

    name: str
    text: bytes
    path: Path | None
    """None: generated."""
    include: tuple[Path, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    """Generated headers, by file name."""

    def digest(self, flags: Sequence[str], compiler: Compiler) -> str:
        """Everything the object depends on. Headers count by whole folders: one that is not included costs a build, never a wrong one."""
        content = hashlib.sha256(self.name.encode() + b"\0" + self.text)
        for path in (path for folder in self.include for path in sorted(folder.glob("*.h"))):
            content.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
        for name, text in sorted(self.headers.items()):
            content.update(f"\0{name}\0{text}".encode())
        content.update("\0".join((*flags, compiler.identity())).encode())
        return content.hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One thing to build: its objects, and how they become one file."""

    name: str
    units: tuple[Unit, ...]
    flags: tuple[str, ...]
    compiler: Compiler


def variant_flags(variant: str) -> tuple[str, ...]:
    """The flags of a variant, or of several joined with '+' ("asan+testing")."""
    parts = variant.split("+")
    unknown = [part for part in parts if part not in VARIANTS]
    if unknown:
        raise BuildError(f"unknown variant {unknown[0]!r}; one of: {', '.join(VARIANTS)}, or several joined with '+'")
    return tuple(dict.fromkeys(flag for part in parts for flag in VARIANTS[part]))


def default_cache() -> Path:
    """Where built things are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hami" / "interceptors"


def shared_library(apis: Sequence[Api], output: Path, variant: str = "release", compiler: str | None = None, target: str | None = None) -> Path:
    """The interceptor of one vendor: core, shims and wrappers of `apis` in one shared object, `output`'s name its soname."""
    if not apis:
        raise BuildError(f"{output.name}: no API named: a shared object stands before at least one driver library")
    own = tuple(unit for api in apis for unit in _front_end(api))
    listed = Unit(name="libraries.c", text=generate.libraries(apis).encode(), path=None, include=(native.core(),))
    plan = Plan(name=output.name, units=(*_core(), *own, listed), flags=variant_flags(variant), compiler=compilers.choose(compiler, target))
    return _built(plan, output, _linked)


def fake_driver(api: Api, output: Path, include: Sequence[Path] = (), variant: str = "release", compiler: str | None = None, target: str | None = None) -> Path:
    """A driver library that is not there: the generated half and the hand-written one; `output`'s name is its soname."""
    folders, headers = (native.core(), api.shim, api.fakes, *_common(api), *include), {f"{api.name}_fake.h": generate.fake_header(api)}
    units = [Unit(name=f"{api.name}_fake.c", text=generate.fake(api).encode(), path=None, include=folders, headers=headers)]
    units += [_unit(_source(api, api.fakes, name), folders, headers) for name in api.fake_sources]
    plan = Plan(name=output.name, units=tuple(units), flags=variant_flags(variant), compiler=compilers.choose(compiler, target))
    return _built(plan, output, _linked)


def core_archive(output: Path, variant: str = "release", compiler: str | None = None, target: str | None = None) -> Path:
    """The core alone, as a static library: for its own tests, and for shared objects that are linked by other means."""
    plan = Plan(name=output.name, units=_core(), flags=variant_flags(variant), compiler=compilers.choose(compiler, target))
    return _built(plan, output, _archived)


def _core() -> tuple[Unit, ...]:
    core = native.core()
    return tuple(_unit(path, (core,)) for path in sorted((*core.glob("*.c"), *core.glob("*.S"))))


def _front_end(api: Api) -> Iterator[Unit]:
    folders, headers = (native.core(), api.shim, *_common(api)), {f"{api.name}_hooks.h": generate.hooks_header(api)}
    yield Unit(name=f"{api.name}_hooks.c", text=generate.wrappers(api).encode(), path=None, include=folders, headers=headers)
    yield from (_unit(_source(api, api.shim, name), folders, headers) for name in api.sources)


def _common(api: Api) -> tuple[Path, ...]:
    """Headers that several front ends, or several fakes, share."""
    return tuple(folder for name in ("shim", "fakes") if (folder := api.home / name / "common").is_dir())


def _unit(path: Path, include: tuple[Path, ...], headers: Mapping[str, str] | None = None) -> Unit:
    return Unit(name=path.name, text=path.read_bytes(), path=path, include=include, headers=headers or {})


def _source(api: Api, folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise BuildError(f"{api.path}: names the source {name!r}, and there is no {path}")
    return path


# -- running it -------------------------------------------------------------------------------------------------


def _built(plan: Plan, output: Path, finish: Callable[[Plan, Path, Sequence[Path]], Path]) -> Path:
    flags, cache = (*FLAGS, *plan.flags), default_cache()
    digests = [unit.digest(flags, plan.compiler) for unit in plan.units]
    whole = hashlib.sha256("\0".join((plan.name, finish.__name__, *LINK, *_version_script(), *digests)).encode()).hexdigest()[:24]
    cached = cache / whole / plan.name
    if not cached.is_file():
        (cache / "objects").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as scratch:
            objects = [_object(plan, unit, cache / "objects" / f"{digest}.o", Path(scratch)) for unit, digest in zip(plan.units, digests, strict=True)]
            result = finish(plan, Path(scratch), objects)
            cached.parent.mkdir(exist_ok=True)
            result.replace(cached)  # by rename: two builds at once leave one whole file
    return _placed(cached, output)


def _object(plan: Plan, unit: Unit, cached: Path, scratch: Path) -> Path:
    if cached.is_file():
        return cached
    source = unit.path or scratch / unit.name
    for name, text in {**unit.headers, **({} if unit.path else {unit.name: unit.text.decode()})}.items():
        (scratch / name).write_text(text)
    fresh = scratch / f"{cached.name}"
    includes = [f"-iquote{folder}" for folder in (scratch, *unit.include)]
    plan.compiler.run([*FLAGS, *plan.flags, *includes, "-c", str(source), "-o", str(fresh)], f"{plan.name}: {source}")
    fresh.replace(cached)
    return cached


def _version_script() -> tuple[str, ...]:
    script = native.core() / "exports.map"
    return (str(script), script.read_text()) if script.is_file() else ()


def _linked(plan: Plan, scratch: Path, objects: Sequence[Path]) -> Path:
    linked = scratch / plan.name
    script = [f"-Wl,--version-script={path}" for path in _version_script()[:1]]
    plan.compiler.run([*plan.flags, *map(str, objects), "-o", str(linked), *LINK, f"-Wl,-soname,{plan.name}", *script], plan.name)
    return linked


def _archived(plan: Plan, scratch: Path, objects: Sequence[Path]) -> Path:
    archive = scratch / plan.name
    plan.compiler.archiver().run(["rcs", str(archive), *map(str, objects)], plan.name)
    return archive


def _placed(cached: Path, output: Path) -> Path:
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copyfile(cached, fresh)
    fresh.chmod(0o755)
    fresh.replace(output)
    return output
