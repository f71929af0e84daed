# SPDX-License-Identifier: Apache-2.0
"""Promises about the tree itself: licence lines, generated files, documents whose snippets are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hami_framework.codec.pods import read_pod
from hami_framework.plugins import load_registry

ROOT = Path(__file__).parents[2]
TRACKED = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
]
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
SOURCES = [path for path in TRACKED if path.suffix in {".py", ".c", ".h", ".proto"} and not path.name.endswith(GENERATED) and path.exists()]
DOCUMENTS = [path for path in TRACKED if path.suffix == ".md" and path.exists()]


@pytest.mark.parametrize("path", [path for path in SOURCES if "data" not in path.parts], ids=lambda path: str(path.relative_to(ROOT)))
def test_source_files_say_their_licence(path: Path) -> None:
    assert any("SPDX-License-Identifier: Apache-2.0" in line for line in path.read_text().splitlines()[:3])


def test_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    protos = sorted(path.relative_to(ROOT) for path in (ROOT / "hami_framework" / "kubelet_api").glob("*.proto"))
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
        *map(str, protos),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    made = sorted((tmp_path / "hami_framework" / "kubelet_api").iterdir())
    assert len(made) == 3 * len(protos)
    for path in made:
        assert path.read_text() == (ROOT / "hami_framework" / "kubelet_api" / path.name).read_text(), f"{path.name}: run make generate"


def snippets(language: str) -> list[object]:
    found = []
    for document in DOCUMENTS:
        blocks = re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        found += [pytest.param(block, id=f"{document.relative_to(ROOT)}-{number}") for number, block in enumerate(blocks)]
    return found


@pytest.mark.parametrize("block", snippets("python"))
def test_python_snippets_run(block: str) -> None:
    exec(compile(block, "snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("block", snippets("yaml"))
def test_yaml_snippets_are_pods_we_can_read(block: str) -> None:
    catalog = load_registry().catalog()
    for document in yaml.safe_load_all(block):
        if document.get("kind") == "Pod":
            document["metadata"].setdefault("uid", "u")
            document["metadata"].setdefault("namespace", "default")
            assert not read_pod(document, catalog).empty


def test_no_link_in_the_documents_is_dead() -> None:
    dead = [
        f"{document.relative_to(ROOT)} -> {target}"
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not dead


def test_no_vendor_is_named_in_the_core() -> None:
    """Knowledge of a vendor belongs in its package; examples in docstrings and comments may name one."""
    import ast

    names = re.compile(r"nvidia|ascend|huawei|cambricon|hygon|\bmlu\b|\bdcu\b", re.IGNORECASE)
    found = []
    for path in (ROOT / "hami_framework").rglob("*.py"):
        if path.name.endswith(GENERATED):
            continue
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
        for node in ast.walk(tree):
            words = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings else getattr(node, "id", None)
            if isinstance(words, str) and names.search(words):
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}: {words[:60]}")
    assert not found
