# SPDX-License-Identifier: Apache-2.0
"""What a driver API's table says, as frozen values: an API, its rows, and the lists of what its driver's versions export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from hami_interceptor.declarations import Parameter
from hami_interceptor.errors import SpecError

Hook = Literal["alloc", "free", "launch", "hand", "denied", "none"]

CLASSES: Mapping[str, str] = {
    "alloc": "takes device memory",
    "free": "gives device memory back",
    "map": "maps device memory, or takes the mapping away",
    "launch": "puts work on the device",
    "graph": "makes, changes or destroys a graph of work",
    "ctx": "makes, selects or destroys a context",
    "module": "loads code",
    "query": "says how much there is, or who holds what",
    "resolver": "hands out other functions' addresses",
    "import": "exports memory to, or imports it from, another process or API",
    "host": "host memory only",
    "inert": "nothing to count",
    "denied": "answered with the API's refusal",
}
MUST_HOOK = frozenset({"alloc", "free", "map", "launch", "graph", "ctx", "query", "resolver", "import", "denied"})
"""Classes whose rows need a hook, unless a row says `hook = "none"` and, in a note, why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One symbol. `args` None: its signature is not stated, so it cannot be hooked."""

    symbol: str
    kind: str
    """Its class: a key of CLASSES."""
    hook: Hook
    result: str
    missing: str
    """C expression that the wrapper answers when the driver has no such function."""
    args: tuple[Parameter, ...] | None
    base: str
    """The row this one is `like`, else its own symbol: hand-written hooks and fakes are named after it."""
    how: str = ""
    """"linear": charged as the driver's own allocator takes it."""
    book: str = ""
    """Else the book that remembers it: a `HAMI_BOOK_…` in lower case."""
    size: str = ""
    actual: str = ""
    key: str = ""
    device: str = ""
    function: str = ""
    work: str = ""
    stream: str = ""
    since: int = 0
    until: int = 0
    fake: Literal["generated", "launch", "hand"] = "generated"
    note: str = ""

    @property
    def hooked(self) -> bool:
        return self.hook != "none"

    @property
    def excused(self) -> bool:
        """Its class asks for a hook and its note says why it has none."""
        return self.kind in MUST_HOOK and not self.hooked and bool(self.note)

    @property
    def must_hook(self) -> bool:
        return self.kind in MUST_HOOK and not self.excused

    @property
    def parameters(self) -> str:
        """Its parameter list as C; `void` for none."""
        return ", ".join(parameter.declaration for parameter in self.args or ()) or "void"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.args or ())


@dataclass(frozen=True, kw_only=True)
class Export:
    """The symbols that one version of the driver's library exports."""

    version: str
    path: Path

    @cached_property
    def symbols(self) -> frozenset[str]:
        """One symbol per line of the file, '#' begins a comment; raises SpecError when the file cannot be read."""
        try:
            lines = self.path.read_text().splitlines()
        except OSError as error:
            raise SpecError(f"{self.path}: the list of symbols exported by version {self.version} cannot be read: {error.strerror}") from error
        found = [line.split("#", 1)[0].strip() for line in lines]
        return frozenset(symbol for symbol in found if symbol)


@dataclass(frozen=True, kw_only=True)
class Api:
    """A whole table. Rows are sorted by symbol, byte by byte, as the C tables are."""

    path: Path
    name: str
    title: str
    library: str
    """Its SONAME, the version left out where each release of the driver has another."""
    fallbacks: tuple[str, ...]
    """SONAMEs by which it is loaded where there is no `library`: newest first."""
    prefix: str
    result: str
    header: str
    ok: str
    out_of_memory: str
    refused: str
    missing: str
    sources: tuple[str, ...]
    fake_sources: tuple[str, ...]
    exports: tuple[Export, ...]
    rows: tuple[Row, ...]

    @property
    def home(self) -> Path:
        """The folder that has `spec/`, `shim/` and `fakes/`."""
        return self.path.parent.parent

    @property
    def shim(self) -> Path:
        return self.home / "shim" / self.name

    @property
    def fakes(self) -> Path:
        return self.home / "fakes" / self.name

    @property
    def hooked(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.hooked)

    def row(self, symbol: str) -> Row:
        """The row of `symbol`; raises SpecError when there is none."""
        for row in self.rows:
            if row.symbol == symbol:
                return row
        raise SpecError(f"{self.path}: no row for {symbol}")
