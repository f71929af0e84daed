# SPDX-License-Identifier: Apache-2.0
"""`python -m hami_interceptor`: the tables, what is made from them, and how much of each driver they cover.

Exit status: 0 done, 1 a check failed or something cannot be built, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hami_interceptor import build, compilers, coverage, generate, layout, native, project, spec
from hami_interceptor.errors import InterceptorError
from hami_interceptor.table import Api

API_HELP = "the name of an API of this SDK (%(metavar)s = one of: {names}), or the path of a table of your own, ending in .toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; what goes wrong is one message on stderr."""
    try:
        chosen = _parser().parse_args(arguments)
        return int(chosen.run(chosen))
    except (InterceptorError, layout.LayoutError) as error:
        print(f"hami_interceptor: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hami_interceptor", description="Interceptors from a table: build them, build fake drivers, see what is covered."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("layout", help="write the shared files' layout for C and Python, from core/layout.toml")
    one.add_argument("--check", action="store_true", help="write nothing; fail when a file is not what the table says")
    one.set_defaults(run=_layout)

    one = commands.add_parser("build", help="build the shared object that stands before one or more driver APIs")
    _apis(one, "+")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the shared object; its file name is its soname")
    _building(one)
    one.set_defaults(run=_build)

    one = commands.add_parser("fake", help="build a driver library that is not there, from the same table")
    _apis(one, None)
    one.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the library, usually under the real driver's file name")
    one.add_argument(
        "-I", "--include", type=Path, action="append", default=[], metavar="DIR", help="a folder of headers that the fake's C needs; may be repeated"
    )
    _building(one)
    one.set_defaults(run=_fake)

    one = commands.add_parser(
        "project", help="build the library that a project's pyproject.toml asks for, in its place in the tree (editable installations need it)"
    )
    one.add_argument("directory", nargs="+", type=Path, metavar="DIR", help="a folder with a pyproject.toml that has [tool.hatch.build.hooks.hami-interceptor]")
    one.set_defaults(run=_project)

    one = commands.add_parser("core", help="build the core alone, as a static library")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the archive, usually libhami_core.a")
    _building(one)
    one.set_defaults(run=_core)

    one = commands.add_parser("root", help="print the folder that has core/ (with the headers), spec/, shim/ and fakes/")
    one.set_defaults(run=_root)

    one = commands.add_parser("generate", help="write the generated C of one API into a folder, to be read")
    _apis(one, None)
    one.add_argument("-d", "--directory", type=Path, required=True, metavar="DIR")
    one.set_defaults(run=_generate)

    one = commands.add_parser(
        "coverage", help="per API and driver version: exported, classified, must_hook, hooked, tested; fails while a symbol has no class or no hook"
    )
    _apis(one, "*")
    one.add_argument("-o", "--output", choices=("table", "json"), default="table")
    one.set_defaults(run=_coverage)

    one = commands.add_parser("unclassified", help="name the exported symbols that have no row, ready to be pasted into the table; fails when there is one")
    _apis(one, "*")
    one.set_defaults(run=_unclassified)
    return parser


def _apis(parser: argparse.ArgumentParser, count: str | None) -> None:
    names = ", ".join(native.api_names()) or "none yet"
    text = API_HELP.format(names=names) + ("; all of them when none is named" if count == "*" else "")
    parser.add_argument("api", nargs=count, metavar="API", help=text)


def _building(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variant", default="release", metavar="NAME", help=f"one of {', '.join(build.VARIANTS)}, or several joined with '+' (default: release)"
    )
    parser.add_argument(
        "--compiler",
        metavar="COMMAND",
        help=f"a C compiler, or {compilers.PORTABLE!r} for the pinned ziglang package (default: CC, cc, gcc, {compilers.PORTABLE})",
    )
    parser.add_argument(
        "--target", metavar="MACHINE", help=f"build for one of {', '.join(compilers.TARGETS)} (needs the portable compiler when it is not this machine)"
    )


def _loaded(chosen: argparse.Namespace) -> list[Api]:
    return [spec.load(name) for name in chosen.api or native.api_names()]


def _layout(chosen: argparse.Namespace) -> int:
    read = layout.read(native.core() / "layout.toml")
    wanted = {native.core() / "hami_layout.h": layout.c_header(read)}
    package = native.root().parent / "hami_framework" / "enforcement"
    if package.is_dir():
        wanted[package / "layout.py"] = layout.python_module(read)
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if chosen.check:
            print(f"{path}: is not what core/layout.toml says: run `python -m hami_interceptor layout`", file=sys.stderr)
        else:
            path.write_text(wanted[path])
            print(path)
    return int(chosen.check and bool(stale))


def _build(chosen: argparse.Namespace) -> int:
    print(build.shared_library(_loaded(chosen), chosen.output, chosen.variant, chosen.compiler, chosen.target))
    return 0


def _fake(chosen: argparse.Namespace) -> int:
    print(build.fake_driver(spec.load(chosen.api), chosen.output, chosen.include, chosen.variant, chosen.compiler, chosen.target))
    return 0


def _core(chosen: argparse.Namespace) -> int:
    print(build.core_archive(chosen.output, chosen.variant, chosen.compiler, chosen.target))
    return 0


def _root(_: argparse.Namespace) -> int:
    print(native.root())
    return 0


def _project(chosen: argparse.Namespace) -> int:
    for directory in chosen.directory:
        print(project.read(directory).build())
    return 0


def _generate(chosen: argparse.Namespace) -> int:
    api = spec.load(chosen.api)
    chosen.directory.mkdir(parents=True, exist_ok=True)
    for name, text in generate.everything(api).items():
        (chosen.directory / name).write_text(text)
        print(chosen.directory / name)
    return 0


def _coverage(chosen: argparse.Namespace) -> int:
    apis = _loaded(chosen)
    rows = coverage.table(apis)
    if chosen.output == "json":
        print(json.dumps([coverage.as_json(row) for row in rows], indent=2))
    else:
        print("\n".join(coverage.as_lines(rows)))
    for row in rows:
        _complain(f"{row.api} {row.version}: no class for", row.unclassified)
        _complain(f"{row.api} {row.version}: must be hooked and is not:", row.unhooked)
    for api in apis:
        _complain(f"{api.name}: rows that no listed version exports (add a note that says why, or take them out):", coverage.unlisted(api))
    return int(not all(row.complete for row in rows))


def _complain(what: str, symbols: Sequence[str]) -> None:
    if symbols:
        print(f"{what} {', '.join(symbols)}", file=sys.stderr)


def _unclassified(chosen: argparse.Namespace) -> int:
    missing = {(row.api, symbol) for row in coverage.table(_loaded(chosen)) for symbol in row.unclassified}
    for api, symbol in sorted(missing):
        print(f'{symbol} = {{ class = "?" }}  # spec/{api}.toml')
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
