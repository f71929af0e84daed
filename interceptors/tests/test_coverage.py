# SPDX-License-Identifier: Apache-2.0
"""The coverage table: what counts as classified, hooked and tested, and that a new driver version's symbols fail by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hami_interceptor import coverage, native, spec
from hami_interceptor.__main__ import main
from hami_interceptor.errors import SpecError
from hami_interceptor.table import Api

DATA = Path(__file__).parent / "data"
HEAD = (DATA / "spec" / "toy.toml").read_text().split("[exports]")[0] + '[exports]\n"1.0" = "toy-1.0.txt"\n[functions]\n'


def table(folder: Path, rows: str, exported: str) -> Api:
    (folder / "spec" / "exports").mkdir(parents=True)
    (folder / "spec" / "exports" / "toy-1.0.txt").write_text(exported)
    (folder / "spec" / "toy.toml").write_text(HEAD + rows)
    return spec.load(folder / "spec" / "toy.toml")


def with_tests(folder: Path, text: str) -> Path:
    (folder / "tests" / "tested").mkdir(parents=True)
    (folder / "tests" / "tested" / "toy.txt").write_text(text)
    return folder / "tests"


def test_the_toy_is_covered() -> None:
    rows = coverage.table([spec.load(DATA / "spec" / "toy.toml")])
    assert [(row.version, row.exported, row.classified, row.must_hook, row.hooked, row.complete) for row in rows] == [
        ("1.0", 14, 14, 10, 10, True),
        ("2.0", 18, 18, 15, 15, True),
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    api = table(
        tmp_path,
        'toyA = { class = "query", args = "int a", hook = "hand" }\n'
        'toyB = { class = "free" }\n'
        'toyC = { class = "alloc", hook = "none", note = "host memory" }\n'
        'toyD = { class = "denied", args = "void" }\n'
        'toyE = { class = "inert" }\n',
        "toyA\ntoyB\ntoyC\ntoyD\ntoyNew  # a new driver brought it\ntoyNewer\n",
    )
    (row,) = coverage.table([api], with_tests(tmp_path, "toyA toyDD\n"))
    assert (row.exported, row.classified, row.must_hook, row.hooked, row.tested) == (6, 4, 3, 2, 1)
    assert row.unclassified == ("toyNew", "toyNewer")
    assert row.unhooked == ("toyB",)
    assert row.untested == ("toyB", "toyD")
    assert not row.complete
    assert coverage.unlisted(api) == ("toyE",)


def test_a_note_explains_a_row_that_no_version_exports(tmp_path: Path) -> None:
    api = table(tmp_path, 'toyA = { class = "inert" }\ntoyB = { class = "inert", note = "only in the vendor\'s own build" }\n', "toyA\n")
    assert coverage.unlisted(api) == ()


def test_only_whole_words_of_the_tests_count(tmp_path: Path) -> None:
    api = table(tmp_path, 'toyA = { class = "denied", args = "void" }\ntoyA_v2 = { like = "toyA" }\n', "toyA\ntoyA_v2\n")
    (row,) = coverage.table([api], with_tests(tmp_path, "toyA_v2, toyA_v23\n"))
    assert row.untested == ("toyA",)


def test_without_tests_nothing_is_said_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = table(tmp_path, 'toyA = { class = "denied", args = "void" }\n', "toyA\n")
    monkeypatch.setattr(native, "tests", lambda: None)
    (row,) = coverage.table([api])
    assert row.tested is None
    assert coverage.as_lines([row])[1].split()[-1] == "-"


def test_the_commands_fail_and_name_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api = table(tmp_path, 'toyA = { class = "free" }\n', "toyA\ntoyNew\n")
    assert main(["coverage", str(api.path), "-o", "json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)[0]["unclassified"] == ["toyNew"]
    assert "toy 1.0: no class for toyNew" in said.err
    assert "toy 1.0: must be hooked and is not: toyA" in said.err
    assert main(["unclassified", str(api.path)]) == 1
    assert capsys.readouterr().out == 'toyNew = { class = "?" }  # spec/toy.toml\n'
    assert main(["coverage", str(DATA / "spec" / "toy.toml")]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["api", "version", "exported", "classified", "must_hook", "hooked", "tested"]


@pytest.mark.parametrize("name", native.api_names())
def test_every_exported_symbol_of_every_listed_version_is_classified(name: str) -> None:
    api = spec.load(name)
    assert {row.version: row.unclassified for row in coverage.table([api])} == {export.version: () for export in api.exports}


@pytest.mark.parametrize("name", native.api_names())
def test_every_row_that_must_be_hooked_is(name: str) -> None:
    assert {row.version: row.unhooked for row in coverage.table([spec.load(name)]) if row.unhooked} == {}


def test_a_list_of_tested_symbols_is_read(tmp_path: Path) -> None:
    tests = with_tests(tmp_path, "# driven by test_toy.py\ntoyA\n\ntoyB # and its twin\n")
    assert coverage.manifest("toy", tests) == ("toyA", "toyB")
    with pytest.raises(SpecError, match=r"tested/nope\.txt: there is no such list"):
        coverage.manifest("nope", tests)


def test_what_is_listed_as_tested_has_a_row_and_a_test_that_drives_it() -> None:
    tests = [text for path in DATA.parent.rglob("test_*.py") if path != Path(__file__) and "manifest" in (text := path.read_text())]
    for api in (path.stem for path in (DATA.parent / "tested").glob("*.txt")):
        rows = {row.symbol for row in spec.load(api).rows}
        assert [symbol for symbol in coverage.manifest(api) if symbol not in rows] == []
        assert any(f'manifest("{api}")' in text for text in tests), f"no test is parametrised with coverage.manifest({api!r})"
