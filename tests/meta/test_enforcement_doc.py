# SPDX-License-Identifier: Apache-2.0
"""Forgetting fails: the threat model has a row for every known way round a limit, and every row names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from hami_ascend import enforce as ascend
from hami_cambricon import enforce as cambricon
from hami_hygon import enforce as hygon

from hami_framework import HARD, Isolation

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "enforcement.md").read_text()
COLUMNS = 5

THREATS = (
    *("env loss", "`su`", "cron", "missing preload library", "docker-in-docker", "static binary", "musl", "raw ioctl"),
    *("RTLD_DEEPBIND", "dlmopen", "dlvsym", "own ELF parsing", "cuGetExportTable", "scribbled state file", "pointing the environment elsewhere"),
    *(
        "`LD_PRELOAD` unset in children",
        "arrays",
        "graph nodes",
        "pools",
        "IPC and external imports",
        "Vulkan, GL, NVENC",
        "cuCtxSetLimit",
        "lazy module loading",
    ),
    *("contexts on secondary devices", "graphs", "cooperative", "device-side launch", "memcpy and memset kernels", "persistent kernels", "one huge kernel"),
    *("`unshare`", "`chroot`", "closing descriptors", "truncating `state.bin`", "killing the agent", "filling the slot table"),
)

FAULTS = ("unknown version", "above the device", "vanished", "static program", "musl or foreign", "another layout", "no write access")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = TEXT.split(f"## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


THREAT_ROWS = rows("Threat model")
FAULT_ROWS = rows("When something is wrong")


@cache
def declared(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"))


@pytest.mark.parametrize("row", [*THREAT_ROWS, *FAULT_ROWS], ids=lambda row: f"{row[0]} {row[1]}"[:60])
def test_a_row_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == COLUMNS
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", " ".join(row))
    assert named, "no test shows it"
    assert [f"{file}::{name}" for file, name in named if name not in declared(file)] == []


@pytest.mark.parametrize("threat", THREATS)
def test_each_known_bypass_has_a_row(threat: str) -> None:
    assert any(threat in row[1] for row in THREAT_ROWS)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_issue_has_a_row(fault: str) -> None:
    assert any(fault in row[0] for row in FAULT_ROWS)


def test_numbers_are_there_once_and_in_order() -> None:
    numbers = [row[0] for row in THREAT_ROWS]
    assert numbers == sorted(set(numbers))
    assert {number[0] for number in numbers} == set("12345678")


LEVELS = {
    "a whole device": HARD,
    "MIG instance": HARD,
    "vNPU template": ascend.VNPU,
    "sMLU": cambricon.SMLU,
    "`vdcu`": hygon.MASKED,
    "`vdcu-memory`": hygon.MEMORY_ONLY,
}


@pytest.mark.parametrize("granted", LEVELS)
def test_the_levels_are_those_of_the_packages(granted: str) -> None:
    (row,) = [row for row in rows("Three questions, three levels") if granted in row[0]]
    assert Isolation(memory=row[1], compute=row[2], fault=row[3]) == LEVELS[granted]  # type: ignore[arg-type]
