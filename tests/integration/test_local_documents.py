# SPDX-License-Identifier: Apache-2.0
"""Every `hami …` that the documents tell people to write is understood by the command line, and the README's program gets what it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hami_framework.cli.main import DAEMONS
from hami_framework.cli.root import root

pytestmark = pytest.mark.timeout(180)

TREE = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in ("local", "sandbox", "roadmap", "agent", "enforcement", "write-a-vendor"))]
BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(hami [a-z][^`\n]*)`")
PLACEHOLDERS = {"FILE": "pyproject.toml", "nodes.yaml": "examples/demo/nodes.yaml", "PERCENT": "30", "AMOUNT": "1GiB", "…": ""}


def commands() -> Iterator[tuple[str, str]]:
    """Document and command line. Usage lines with words in capitals or dots are made into something that could be typed."""
    for name in DOCUMENTS:
        path = TREE / name
        if not path.exists():
            continue
        text = path.read_text()
        lines = [line.removeprefix("$ ") for block in BLOCK.findall(text) for line in block.splitlines()]
        for line in (*(line for line in lines if re.match(r"\.?[a-z/.]*\bhami ", line)), *INLINE.findall(text)):
            yield name, line.partition("  #")[0].partition(" > ")[0].rstrip(" &")


FOUND = list(dict.fromkeys(commands()))


def parsed(words: list[str]) -> click.Context:
    """The command's context: parsing it is what is tried, nothing runs. Raises UsageError."""
    context = click.Context(root, info_name="hami")
    group: click.Command = root
    while isinstance(group, click.Group):
        if not words:
            return context
        found = group.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"there is no command {words[0]!r}")
        group, words = found, words[1:]
    return group.make_context(group.name, words, parent=context) if words else context


@pytest.mark.parametrize(("document", "line"), FOUND, ids=[f"{document}: {line}" for document, line in FOUND])
def test_a_documented_command_can_be_typed(document: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TREE)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
    words = [word for word in words if word and not word.startswith("[") and not word.endswith("]") and word != "…"]
    if words[0] in DAEMONS:
        return
    parsed(words)


def test_the_documents_have_commands() -> None:
    assert {document for document, _ in FOUND} >= {"README.md", "docs/local.md", "docs/sandbox.md"}
    assert len(FOUND) > 25


def test_the_programs_of_the_readme_get_what_it_shows() -> None:
    text = (TREE / "README.md").read_text()
    shown = next(block for block in BLOCK.findall(text) if "allocate.py grow" in block).splitlines()
    words = shlex.split(shown[0].removeprefix("$ hami "))
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as state:
        command = [sys.executable, "-c", "from hami_framework.cli.main import main; main()", words[0], "--state-dir", state, *words[1:]]
        done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=150, check=False)
    if "libcuda.so.1" in done.stderr:
        pytest.fail("the fake CUDA driver was not built: is the interceptor SDK installed? `make venv` does it")
    lines = done.stdout.splitlines()
    assert (lines[:2], lines[-1], done.stderr.splitlines()[-1], done.returncode) == (shown[1:3], shown[-2], shown[-1], 1)
