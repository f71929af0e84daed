# SPDX-License-Identifier: Apache-2.0
"""What the lab is built from is pinned in one file, and the modules in the tree say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.lab import modules

PARTS = modules.all_parts()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_wrapper_module_requires_exactly_what_the_versions_file_pins(part: modules.Part) -> None:
    assert modules.stale(part) == []
    direct = {line.split()[0] for line in (part.directory / "go.mod").read_text().splitlines() if len(line.split()) == 2 and line.startswith("\t")}
    single = {line.split()[1] for line in (part.directory / "go.mod").read_text().splitlines() if line.startswith("require ") and not line.endswith("(")}
    assert direct | single == set(part.requires)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_is_downloaded_is_checksummed(part: modules.Part) -> None:
    sums = (part.directory / "go.sum").read_text().splitlines()
    hashed = {tuple(line.split()[:2]) for line in sums}
    assert {(module, version) for module, version in part.requires.items() if not module.startswith("k8s.io/sample")} - hashed <= {
        (module, version) for module, version in part.requires.items() if (module, f"{version}/go.mod") in hashed
    }
    assert all("h1:" in line for line in sums)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_nothing_is_replaced_and_no_address_is_named(part: modules.Part) -> None:
    text = (part.directory / "go.mod").read_text() + (part.directory / "go.sum").read_text()
    assert "replace" not in text
    assert "://" not in text


def test_there_are_two_minor_versions_and_the_newest_is_the_default() -> None:
    pinned = modules.versions()
    assert len(pinned.kubernetes) == 2
    assert pinned.default == max(pinned.kubernetes, key=lambda minor: int(minor.partition(".")[2]))


def test_every_wrapper_module_in_the_tree_is_a_part() -> None:
    assert {folder.name for folder in modules.MODULES.iterdir() if folder.is_dir()} == {part.name for part in PARTS}


def test_machines_and_network_need_the_standard_library_alone() -> None:
    """They run before anything is installed, inside namespaces where the environment may not be visible."""
    for name in ("machine_init.py", "network.py"):
        text = (Path(modules.__file__).with_name(name)).read_text()
        assert "from e2e" not in text
        assert "cryptography" not in text
