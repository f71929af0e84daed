# SPDX-License-Identifier: Apache-2.0
"""Promises about deploy/: made files are what they are made from, the image's list is what the builders use, and documents speak of what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.render import CHART, MANIFESTS, crd, helm, wanted
from hami_framework.cli.main import COMMANDS, DAEMONS
from hami_framework.codec.inventories import CRD

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "deploy" / "images"
CONTENTS: dict[str, Any] = tomllib.loads((IMAGES / "contents.toml").read_text())
CONTAINERFILE = (IMAGES / "Containerfile").read_text()
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)


def test_the_charts_definition_is_the_programs_own() -> None:
    text = (CHART / "files" / "crd.yaml").read_text()
    assert yaml.safe_load(text) == CRD
    assert text == crd(), "run make manifests"


@pytest.mark.skipif(helm() is None, reason="there is no helm: put it on the PATH, or run `make lab`")
def test_rendering_again_changes_nothing() -> None:
    changed = [path.name for path, text in wanted(helm()).items() if path.read_text() != text]
    assert changed == [], "run make manifests"


@pytest.mark.parametrize("file", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_plain_manifests_begin_with_the_namespace_and_the_definition(file: Path) -> None:
    objects = list(yaml.safe_load_all(file.read_text()))
    assert [each["kind"] for each in objects[:2]] == ["Namespace", "CustomResourceDefinition"]
    assert "Helm" not in file.read_text()
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


def test_the_image_has_the_locked_versions_that_were_tested() -> None:
    runtime = PIN.findall((ROOT / CONTENTS["requirements"]).read_text())
    tested = set(PIN.findall((ROOT / "requirements" / "dev.txt").read_text()))
    assert len(runtime) > 20
    assert set(runtime) - tested == set(), "run make lock"


def test_every_locked_file_has_a_hash_and_no_address() -> None:
    text = (ROOT / CONTENTS["requirements"]).read_text()
    assert "://" not in text
    assert all("--hash=sha256:" in block for block in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE) if "==" in block)


def test_the_containerfile_makes_what_the_list_says() -> None:
    assert f"COPY {CONTENTS['requirements']} " in CONTAINERFILE
    assert f"USER {CONTENTS['user']}:" in CONTAINERFILE
    assert f'ENTRYPOINT ["{CONTENTS["entrypoint"][0]}"]' in CONTAINERFILE
    (environment,) = re.findall(r"^ENV (PYTHONDONT.*)$", CONTAINERFILE, re.MULTILINE)
    assert dict(pair.split("=") for pair in environment.split()) == CONTENTS["environment"]
    assert "--require-hashes" in CONTAINERFILE
    for stage in ("agent", "scheduler", "webhook"):
        assert re.search(rf"^FROM hami AS {stage}$", CONTAINERFILE, re.MULTILINE)


def test_the_list_names_every_package_of_ours_and_commands_that_exist() -> None:
    projects = [tomllib.loads(file.read_text())["project"]["name"] for file in (ROOT / "pyproject.toml", *sorted(ROOT.glob("vendors/*/pyproject.toml")))]
    assert sorted(CONTENTS["wheels"]) == sorted(projects)
    assert set(CONTENTS["programs"]) <= COMMANDS.keys() | DAEMONS.keys()


def test_no_image_is_named_with_a_registry_of_ours() -> None:
    bases = re.findall(r"^ARG BASE=(\S+)$", CONTAINERFILE, re.MULTILINE)
    assert bases == ["python:3.13-slim"]
    assert "/" not in yaml.safe_load((CHART / "values.yaml").read_text())["image"]["repository"]
