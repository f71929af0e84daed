# SPDX-License-Identifier: Apache-2.0
"""The reader of a driver's table: what a row may say, what each wrong row is told, and how C parameters are taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami_interceptor import native, spec
from hami_interceptor.declarations import DeclarationError, parameters
from hami_interceptor.errors import SpecError

HEAD = """
[api]
name = "toy"
title = "Toy"
library = "libtoy.so.1"
prefix = "toy"
result = "toyResult"
header = "toy_api.h"
ok = "OK"
out_of_memory = "OOM"
refused = "NO"
missing = "GONE"
"""
ALLOC = 'toyAlloc = { class = "alloc", args = "toyPointer *out, size_t bytes", hook = "alloc", how = "linear", size = "bytes", key = "*out" }'


def load(folder: Path, text: str) -> spec.Api:
    path = folder / "spec" / "toy.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return spec.load(path)


def of_rows(folder: Path, *rows: str) -> spec.Api:
    return load(folder, HEAD + "[functions]\n" + "\n".join(rows) + "\n")


def test_a_row(tmp_path: Path) -> None:
    row = of_rows(tmp_path, ALLOC).row("toyAlloc")
    assert (row.kind, row.hook, row.how, row.size, row.key, row.base) == ("alloc", "alloc", "linear", "bytes", "*out", "toyAlloc")
    assert (row.result, row.missing, row.names, row.parameters) == ("toyResult", "GONE", ("out", "bytes"), "toyPointer *out, size_t bytes")
    assert row.hooked
    assert row.must_hook


def test_a_twin_takes_everything_and_may_say_otherwise(tmp_path: Path) -> None:
    api = of_rows(
        tmp_path,
        ALLOC,
        'toyAlloc_b = { like = "toyAlloc", since = 2000 }',
        'toyAlloc_c = { like = "toyAlloc_b", size = "bytes + 1", book = "array" }',
        'toyAlloc_d = { like = "toyAlloc", hook = "none", note = "gone before our time" }',
    )
    assert [(row.symbol, row.base, row.size, row.since, row.how, row.book) for row in api.rows] == [
        ("toyAlloc", "toyAlloc", "bytes", 0, "linear", ""),
        ("toyAlloc_b", "toyAlloc", "bytes", 2000, "linear", ""),
        ("toyAlloc_c", "toyAlloc", "bytes + 1", 2000, "", "array"),
        ("toyAlloc_d", "toyAlloc", "", 0, "", ""),
    ]
    assert api.row("toyAlloc_d").excused


def test_rows_are_in_the_order_of_the_c_tables(tmp_path: Path) -> None:
    names = ["toy_b", "toyB", "toya", "toy1", "toy_B"]
    api = of_rows(tmp_path, *(f'{name} = {{ class = "inert" }}' for name in names))
    assert [row.symbol for row in api.rows] == sorted(names, key=lambda name: name.encode())


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        pytest.param('toyX = { class = "inert", clas = "x" }', "unknown key 'clas'", id="unknown key"),
        pytest.param('toyX = { class = "memory" }', "unknown class 'memory'; one of: alloc, free", id="unknown class"),
        pytest.param('toyX = { note = "?" }', "needs a class", id="no class"),
        pytest.param('toyX = "inert"', 'must be a table, such as { class = "inert" }', id="no table"),
        pytest.param("toyX = { class = 3 }", "class must be a text", id="class is a number"),
        pytest.param('toyX = { class = "query", hook = "hand" }', 'hook = "hand" needs args', id="hooked without args"),
        pytest.param('toyX = { class = "inert", fake = "hand" }', 'fake = "hand" needs args', id="hand fake without args"),
        pytest.param('toyX = { class = "inert", args = "int a", fake = "none" }', "unknown fake 'none'", id="unknown fake"),
        pytest.param('toyX = { class = "inert", args = "int a", fake = "launch" }', "there is no such hook here", id="a launch without its hook"),
        pytest.param('toyX = { like = "toyY" }', "is like 'toyY', which has no row", id="like nothing"),
        pytest.param('toyX = { like = "toyX" }', "is like 'toyX', which is like 'toyX'", id="like itself"),
        pytest.param('toyX = { like = "toyAlloc", class = "inert" }', "take `like` out", id="like with a class"),
        pytest.param('toyX = { class = "query", args = "int, int b", hook = "hand" }', "'int' has no name", id="parameter without a name"),
        pytest.param('toyX = { class = "query", args = "int a, ...", hook = "hand" }', "variadic", id="variadic"),
        pytest.param('other = { class = "inert" }', "does not begin with this API's prefix 'toy'", id="another API's"),
        pytest.param('"toy-x" = { class = "inert" }', "is not a C name", id="not a name"),
        pytest.param('toyX = { class = "alloc", args = "size_t n", hook = "alloc", how = "linear", size = "n" }', 'hook = "alloc" needs key', id="no key"),
        pytest.param('toyX = { class = "alloc", args = "size_t n", hook = "alloc", size = "n", key = "n" }', "needs either how", id="neither how nor book"),
        pytest.param('toyX = { class = "free", args = "size_t n", hook = "free", book = "novel", key = "n" }', "unknown book 'novel'", id="unknown book"),
        pytest.param('toyX = { class = "free", args = "size_t n", hook = "free", how = "round", key = "n" }', "unknown how 'round'", id="unknown how"),
        pytest.param('toyX = { class = "launch", args = "int f", hook = "launch" }', 'hook = "launch" needs function', id="launch without a function"),
        pytest.param('toyX = { class = "query", args = "int f", hook = "hand", size = "f" }', 'size means nothing to hook = "hand"', id="a key for nothing"),
        pytest.param('toyX = { class = "query", args = "int f", hook = "magic" }', "unknown hook 'magic'", id="unknown hook"),
        pytest.param('toyX = { class = "query", args = "int f", hook = "denied" }', "go together", id="denied without its class"),
        pytest.param('toyX = { class = "alloc", hook = "none" }', "say in `note` why", id="not hooked and no word why"),
        pytest.param('toyX = { class = "query", args = "int f", hook = "hand", result = "char *" }', "say in `missing`", id="another result"),
        pytest.param('toyX = { class = "denied", args = "int f", result = "char *" }', "which has no refusal", id="no refusal"),
        pytest.param('toyX = { class = "inert", since = "12.0" }', "since must be a driver version as a positive number", id="version as text"),
    ],
)
def test_a_wrong_row_is_told_where_and_what(tmp_path: Path, row: str, wanted: str) -> None:
    with pytest.raises(SpecError) as caught:
        of_rows(tmp_path, ALLOC, row)
    line = (HEAD + "[functions]\n" + ALLOC).count("\n") + 2
    symbol = row.split(" =")[0].strip('"')
    assert f"toy.toml:{line}: {symbol}: " in str(caught.value)
    assert wanted in str(caught.value)


def test_every_wrong_row_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        of_rows(tmp_path, 'toyA = { class = "?" }', ALLOC, 'toyB = { like = "toyC" }')
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["toyA", "toyB"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("[functions]\n", "there is no [api] section", id="no api"),
        pytest.param(HEAD.replace('prefix = "toy"\n', ""), "needs prefix", id="no prefix"),
        pytest.param(HEAD + 'colour = "red"\n', "unknown key in [api]", id="unknown key"),
        pytest.param(HEAD + 'sources = "a.c"\n', "must be a list of file names", id="sources is a text"),
        pytest.param(HEAD, "there are no rows", id="no rows"),
        pytest.param(HEAD + '[function]\ntoyX = { class = "inert" }\n', "unknown section [function]", id="unknown section"),
        pytest.param(HEAD.replace('name = "toy"', 'name = "to-y"') + '[functions]\ntoyX = { class = "inert" }\n', "part of C names", id="name"),
        pytest.param(HEAD + '[exports]\n"1" = 3\n[functions]\ntoyX = { class = "inert" }\n', "must name, for each driver version, a file", id="exports"),
        pytest.param("[api", "is not TOML", id="not TOML"),
    ],
)
def test_a_wrong_table(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(SpecError, match=r"toy\.toml") as caught:
        load(tmp_path, text)
    assert wanted in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        spec.load(tmp_path / "none.toml")
    with pytest.raises(SpecError, match="there is no API called 'nope'; known: "):
        spec.load("nope")
    api = load(tmp_path, HEAD + '[exports]\n"1" = "toy-1.txt"\n[functions]\ntoyX = { class = "inert" }\n')
    with pytest.raises(SpecError, match=r"toy-1\.txt: the list of symbols exported by version 1 cannot be read"):
        _ = api.exports[0].symbols


@pytest.mark.parametrize("name", native.api_names())
def test_the_tables_of_this_sdk_are_right(name: str) -> None:
    api = spec.load(name)
    assert api.name == name
    assert api.rows


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param("", (), id="nothing"),
        pytest.param("void", (), id="void"),
        pytest.param("int a", ("a",), id="one"),
        pytest.param("const char *name, unsigned long long n", ("name", "n"), id="two"),
        pytest.param("void **out", ("out",), id="pointer to pointer"),
        pytest.param("char *const *names", ("names",), id="const pointer"),
        pytest.param("unsigned char id[16]", ("id",), id="array"),
        pytest.param("int table[2][3], int n", ("table", "n"), id="array of arrays"),
        pytest.param("void (*callback)(int, void *), void *data", ("callback", "data"), id="callback"),
        pytest.param("struct handle h", ("h",), id="struct"),
        pytest.param("toyPointer*p", ("p",), id="no space"),
    ],
)
def test_parameters(text: str, names: tuple[str, ...]) -> None:
    assert tuple(parameter.name for parameter in parameters(text)) == names


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("int a,, int b", "empty parameter", id="comma"),
        pytest.param("unsigned long", "has no name", id="words of a type"),
        pytest.param("size_t", "has no name", id="a type alone"),
        pytest.param("struct handle", "has no name", id="a struct alone"),
        pytest.param("void *", "has no name", id="a pointer alone"),
        pytest.param("int a, int a", "two parameters are called 'a'", id="twice"),
        pytest.param("int real_", "ends with '_'", id="ours"),
        pytest.param("int a[3", "not closed", id="bracket"),
        pytest.param("int a)", "never opened", id="bracket too many"),
    ],
)
def test_parameters_that_are_refused(text: str, wanted: str) -> None:
    with pytest.raises(DeclarationError, match=wanted.replace("(", r"\(")):
        parameters(text)
