# SPDX-License-Identifier: Apache-2.0
"""How much of each driver version is classified, hooked and tested: one line per API and version, and what is missing by name.

*exported*: symbols that the version's list names. *classified*: those with a row. *must_hook*: classified ones whose class asks
for a hook (an excused row, `hook = "none"` with a note, does not). *hooked*: those of must_hook that have one. *tested*: those
of must_hook that the tests' text names, as a whole word, in a table of calls or in a `tests/tested/<api>.txt` that a test is
parametrised with; unknown (None) where there are no tests, as in an installed SDK.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from hami_interceptor import native, spec
from hami_interceptor.errors import SpecError
from hami_interceptor.table import Api

TEST_FILES = (".py", ".c", ".h", ".txt", ".toml")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One API in one version of its driver."""

    api: str
    version: str
    exported: int
    classified: int
    must_hook: int
    hooked: int
    tested: int | None
    unclassified: tuple[str, ...]
    """Exported symbols without a row: the check fails."""
    unhooked: tuple[str, ...]
    """Rows whose class asks for a hook, without one and without a note that says why: the check fails."""
    untested: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.unclassified and not self.unhooked


def table(apis: Iterable[Api] | None = None, tests: Path | None = None) -> list[Row]:
    """Every version of these APIs, else of every API that this SDK carries; raises SpecError for a table or list that cannot be read."""
    chosen = apis if apis is not None else [spec.load(name) for name in native.api_names()]
    words = _words(tests or native.tests())
    return [_row(api, export.version, export.symbols, words) for api in chosen for export in api.exports]


def unlisted(api: Api) -> tuple[str, ...]:
    """Rows without a note whose symbol no listed version exports: a name mistyped, or a list that is not complete."""
    listed = frozenset().union(*(export.symbols for export in api.exports))
    return tuple(row.symbol for row in api.rows if row.symbol not in listed and not row.note) if api.exports else ()


def manifest(api: str, tests: Path | None = None) -> tuple[str, ...]:
    """The symbols of `tests/tested/<api>.txt`, to parametrise a test with: what stands there counts as tested since that test drives each.

    One symbol per line, '#' begins a comment. Raises SpecError when there is no such file.
    """
    folder = tests or native.tests()
    if folder is None:
        raise SpecError("an installed SDK has no tests, and so no list of tested symbols: use a checkout")
    path = folder / "tested" / f"{api}.txt"
    if not path.is_file():
        raise SpecError(f"{path}: there is no such list; a test that drives symbols names them there, one per line")
    found = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return tuple(symbol for symbol in found if symbol)


def as_json(row: Row) -> dict[str, object]:
    """The row for `-o json`."""
    return asdict(row)


def as_lines(rows: Sequence[Row]) -> list[str]:
    """The rows as a table of text."""
    heads = ("api", "version", "exported", "classified", "must_hook", "hooked", "tested")
    cells = [tuple("-" if (value := getattr(row, head)) is None else str(value) for head in heads) for row in rows]
    widths = [max(len(line[column]) for line in (heads, *cells)) for column in range(len(heads))]
    return [
        "  ".join(text.ljust(width) if column < 2 else text.rjust(width) for column, (text, width) in enumerate(zip(line, widths, strict=True)))
        for line in (heads, *cells)
    ]


def _row(api: Api, version: str, exported: frozenset[str], words: frozenset[str] | None) -> Row:
    rows = [row for row in api.rows if row.symbol in exported]
    must = [row for row in rows if row.must_hook]
    untested = () if words is None else tuple(row.symbol for row in must if row.symbol not in words)
    return Row(
        api=api.name,
        version=version,
        exported=len(exported),
        classified=len(rows),
        must_hook=len(must),
        hooked=sum(row.hooked for row in must),
        tested=None if words is None else len(must) - len(untested),
        unclassified=tuple(sorted(exported - {row.symbol for row in rows})),
        unhooked=tuple(row.symbol for row in must if not row.hooked),
        untested=untested,
    )


@cache
def _words(tests: Path | None) -> frozenset[str] | None:
    if tests is None:
        return None
    files = sorted(path for path in tests.rglob("*") if path.suffix in TEST_FILES and path.is_file() and "data" not in path.relative_to(tests).parts)
    return frozenset(word for path in files for word in re.findall(r"\w+", path.read_text()))
