# SPDX-License-Identifier: Apache-2.0
"""From a parsed table to checked rows: every rule that a row must keep, each with the words that tell its author what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hami_interceptor.declarations import DeclarationError, Parameter, parameters
from hami_interceptor.errors import SpecError
from hami_interceptor.table import CLASSES, MUST_HOOK, Api, Export, Hook, Row

HOOKS = ("alloc", "free", "launch", "hand", "denied", "none")
BOOKS = ("pointer", "array", "handle", "mapping", "pool", "context", "graph", "chunk", "other")

API_TEXTS = ("name", "title", "library", "prefix", "result", "header", "ok", "out_of_memory", "refused", "missing")
API_LISTS = ("sources", "fake_sources", "fallbacks")

TEXTS = ("like", "class", "args", "result", "hook", "how", "book", "size", "actual", "key", "device", "function", "work", "stream", "missing", "fake", "note")
NUMBERS = ("since", "until")

WANTED: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    # hook → keys it needs, keys it may have
    "alloc": (frozenset({"size", "key"}), frozenset({"how", "book", "actual", "device"})),
    "free": (frozenset({"key"}), frozenset({"how", "book"})),
    "launch": (frozenset({"function", "work", "stream"}), frozenset({"device"})),
    "hand": (frozenset(), frozenset()),
    "denied": (frozenset(), frozenset()),
    "none": (frozenset(), frozenset()),
}
OF_A_BODY = frozenset({"how", "book", "size", "actual", "key", "device", "function", "work", "stream"})

_SYMBOL = re.compile(r"[A-Za-z_]\w*")


class Reader:
    """Reads one document and gathers everything that is wrong with it."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._problems: list[str] = []

    def api(self, document: Mapping[str, Any]) -> Api:
        """The table; raises one SpecError with every problem in it, a line each."""
        for section in document.keys() - {"api", "exports", "functions"}:
            self._problem(section, f"unknown section [{section}]: there are [api], [exports] and [functions]")
        head = self._head(document.get("api"))
        functions = document.get("functions", {})
        rows = self._rows(functions if isinstance(functions, dict) else {}, head)
        exports = self._exports(document.get("exports", {}))
        if self._problems:
            raise SpecError("\n".join(self._problems))
        texts = {key: cast(str, head[key]) for key in API_TEXTS}
        sources, fakes, fallbacks = (tuple(head.get(key, ())) for key in API_LISTS)
        return Api(path=self._path, **texts, sources=sources, fake_sources=fakes, fallbacks=fallbacks, exports=exports, rows=rows)

    def _problem(self, symbol: str, what: str) -> None:
        self._problems.append(f"{self._path}:{self._line(symbol)}: {symbol}: {what}")

    def _line(self, symbol: str) -> int:
        matched = re.search(rf'^\s*\[?"?{re.escape(symbol)}"?\s*[=\]]', self._text, re.MULTILINE)
        return self._text.count("\n", 0, matched.end()) + 1 if matched else 1

    # -- [api] and [exports] -----------------------------------------------------------------------------------

    def _head(self, head: object) -> Mapping[str, Any]:
        if not isinstance(head, dict):
            raise SpecError(f"{self._path}: there is no [api] section: it needs {', '.join(API_TEXTS)}")
        for key in head.keys() - {*API_TEXTS, *API_LISTS}:
            self._problem(key, f"unknown key in [api]; known: {', '.join((*API_TEXTS, *API_LISTS))}")
        for key in API_TEXTS:
            if not isinstance(head.get(key), str) or not head[key]:
                self._problem("api", f"needs {key} = a text that is not empty")
        for key in API_LISTS:
            if not isinstance(head.get(key, []), list) or not all(isinstance(item, str) for item in head.get(key, [])):
                self._problem(key, "must be a list of file names")
        if self._problems:
            raise SpecError("\n".join(self._problems))
        if not _SYMBOL.fullmatch(head["name"]):
            self._problem("name", f"{head['name']!r} is part of C names: letters, digits and '_' only")
        return head

    def _exports(self, exports: object) -> tuple[Export, ...]:
        if not isinstance(exports, dict) or not all(isinstance(file, str) for file in exports.values()):
            self._problem("exports", "must name, for each driver version, a file in spec/exports/")
            return ()
        return tuple(Export(version=version, path=self._path.parent / "exports" / file) for version, file in exports.items())

    # -- [functions] -------------------------------------------------------------------------------------------

    def _rows(self, functions: Mapping[str, Any], head: Mapping[str, Any]) -> tuple[Row, ...]:
        if not functions:
            self._problem("functions", "there are no rows")
        rows = []
        for symbol in sorted(functions):
            before = len(self._problems)
            row = self._row(symbol, functions, head)
            if row is not None and len(self._problems) == before:
                rows.append(row)
        return tuple(rows)

    def _row(self, symbol: str, functions: Mapping[str, Any], head: Mapping[str, Any]) -> Row | None:
        if not _SYMBOL.fullmatch(symbol):
            self._problem(symbol, "is not a C name")
            return None
        if not symbol.startswith(head["prefix"]):
            self._problem(symbol, f"does not begin with this API's prefix {head['prefix']!r}: put the row in its own API's table")
            return None
        if not self._shape(symbol, functions[symbol]):
            return None
        base, row = self._resolved(symbol, functions)
        if row is None:
            return None
        hook = self._hook(symbol, row)
        args = self._args(symbol, row, hook)
        self._body(symbol, row, hook, head)
        if hook is None:
            return None
        return Row(
            symbol=symbol,
            kind=row["class"],
            hook=hook,
            result=row.get("result", head["result"]),
            missing=row.get("missing", head["missing"]),
            args=args,
            base=base,
            fake=row.get("fake", "generated"),
            since=row.get("since", 0),
            until=row.get("until", 0),
            note=row.get("note", ""),
            **{key: row.get(key, "") for key in OF_A_BODY},
        )

    def _shape(self, symbol: str, row: object) -> bool:
        before = len(self._problems)
        if not isinstance(row, dict):
            self._problem(symbol, 'must be a table, such as { class = "inert" }')
            return False
        for key in sorted(row.keys() - {*TEXTS, *NUMBERS}):
            self._problem(symbol, f"unknown key {key!r}; known: {', '.join((*TEXTS, *NUMBERS))}")
        for key in row.keys() & set(TEXTS):
            if not isinstance(row[key], str):
                self._problem(symbol, f"{key} must be a text")
        for key in row.keys() & set(NUMBERS):
            if not isinstance(row[key], int) or isinstance(row[key], bool) or row[key] <= 0:
                self._problem(symbol, f"{key} must be a driver version as a positive number, such as 11020")
        return len(self._problems) == before

    def _resolved(self, symbol: str, functions: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
        """The row with everything it takes from the row it is like, and that row's symbol."""
        row: dict[str, Any] = dict(functions[symbol])
        base, seen = symbol, {symbol}
        while "like" in row:
            base = row.pop("like")
            other = functions.get(base)
            if not isinstance(other, dict):
                self._problem(symbol, f"is like {base!r}, which has no row: add the row or name another")
                return base, None
            if base in seen:
                self._problem(symbol, f"is like {base!r}, which is like {symbol!r}: one of them must state its own class")
                return base, None
            seen.add(base)
            if "class" in row or (other.get("hook") == "hand" and row.keys() & {"args", "result", "hook"}):
                self._problem(symbol, f"is like {base!r}: class, and a hand-written hook's signature, come from there; take them out, or take `like` out")
                return base, None
            row = {**_inherited(other, row), **row}
        return base, row

    def _hook(self, symbol: str, row: Mapping[str, Any]) -> Hook | None:
        kind = row.get("class")
        if kind not in CLASSES:
            self._problem(symbol, f"{'needs a class' if kind is None else f'unknown class {kind!r}'}; one of: {', '.join(CLASSES)}")
            return None
        hook = row.get("hook", "denied" if kind == "denied" else "none")
        if hook not in HOOKS:
            self._problem(symbol, f"unknown hook {hook!r}; one of: {', '.join(HOOKS)}")
            return None
        if (hook == "denied") != (kind == "denied"):
            self._problem(symbol, 'class "denied" and hook "denied" go together')
            return None
        if row.get("hook") == "none" and kind in MUST_HOOK and not row.get("note"):
            self._problem(symbol, f'class {kind!r} asks for a hook: name one, or say in `note` why hook = "none" is right')
            return None
        return cast(Hook, hook)

    def _args(self, symbol: str, row: Mapping[str, Any], hook: Hook | None) -> tuple[Parameter, ...] | None:
        if "args" not in row:
            if hook not in (None, "none"):
                self._problem(symbol, f'hook = "{hook}" needs args: the C parameters with their names, "void" for none')
            if row.get("fake") == "hand":
                self._problem(symbol, 'fake = "hand" needs args: the C parameters with their names, "void" for none')
            return None
        try:
            return parameters(row["args"])
        except DeclarationError as error:
            self._problem(symbol, f"args: {error}")
            return None

    def _body(self, symbol: str, row: Mapping[str, Any], hook: Hook | None, head: Mapping[str, Any]) -> None:
        if hook is None:
            return
        needed, allowed = WANTED[hook]
        for key in sorted(needed - row.keys()):
            self._problem(symbol, f'hook = "{hook}" needs {key} = a C expression of the parameters')
        for key in sorted((row.keys() & OF_A_BODY) - needed - allowed):
            self._problem(symbol, f'{key} means nothing to hook = "{hook}": take it out')
        if hook in ("alloc", "free") and ("how" in row) == ("book" in row):
            self._problem(symbol, f'hook = "{hook}" needs either how = "linear" or book = one of {", ".join(BOOKS)}')
        if row.get("how", "linear") != "linear":
            self._problem(symbol, f'unknown how {row["how"]!r}: there is "linear"')
        if row.get("book", "other") not in BOOKS:
            self._problem(symbol, f"unknown book {row['book']!r}; one of: {', '.join(BOOKS)}")
        if row.get("fake", "hand") not in ("hand", "launch"):
            self._problem(symbol, f'unknown fake {row["fake"]!r}: there are "hand" and "launch"; leave it out for the generated answer')
        if row.get("fake") == "launch" and hook != "launch":
            self._problem(symbol, 'fake = "launch" puts work on the stream that hook = "launch" names: there is no such hook here')
        self._answer(symbol, row, hook, head)

    def _answer(self, symbol: str, row: Mapping[str, Any], hook: Hook, head: Mapping[str, Any]) -> None:
        result = row.get("result", head["result"])
        if hook == "none" or result == head["result"]:
            return
        if hook != "hand":
            self._problem(symbol, f'returns {result!r}, which has no refusal: only hook = "hand" can stand before it')
        elif result != "void" and "missing" not in row:
            self._problem(symbol, f"returns {result!r}: say in `missing` what to answer when the driver has no such function")


def _inherited(other: Mapping[str, Any], row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a twin takes over: not the other's body when it names a hook of its own, not the other's way of charging when it has one."""
    dropped = (OF_A_BODY if "hook" in row else frozenset()) | (frozenset({"how", "book"}) if row.keys() & {"how", "book"} else frozenset())
    return {key: value for key, value in other.items() if key not in dropped}
