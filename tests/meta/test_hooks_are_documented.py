# SPDX-License-Identifier: Apache-2.0
"""Forgetting fails: every hook is documented with its arguments, has a budget that the two texts agree on, and is tested."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from hami_framework import hookspecs
from hami_framework.plugins import HOOKS
from hami_framework.worker.protocol import ARGUMENTS, BUDGET_SECONDS, RESULTS

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "hooks.md").read_text()


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_the_reference_names_each_hook_with_its_arguments(hook: str) -> None:
    assert f"## `{hook}({', '.join(HOOKS[hook])})`" in REFERENCE


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_the_specification_says_process_answer_and_what_none_means(hook: str) -> None:
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert "Process:" in text
    assert "Answer:" in text
    assert hook == "hami_release" or "None" in text
    assert re.search(r"Gathered|owning vendor only", text)
    for argument in HOOKS[hook]:
        assert f"`{argument}`" in text, f"{hook} does not say what {argument} is"


@pytest.mark.parametrize("hook", sorted(BUDGET_SECONDS))
def test_budgets_in_words_and_in_force_are_the_same(hook: str) -> None:
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert f"budget {BUDGET_SECONDS[hook]:.0f} s" in text
    section = REFERENCE.split(f"## `{hook}(")[1].split("\n## ")[0]
    assert f"Budget {BUDGET_SECONDS[hook]:.0f} s" in section


def test_the_worker_protocol_knows_the_hooks_as_the_specification_has_them() -> None:
    for hook, arguments in ARGUMENTS.items():
        assert tuple(arguments) == HOOKS[hook]
    assert ARGUMENTS.keys() == RESULTS.keys() == BUDGET_SECONDS.keys()


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_each_hook_has_a_test(hook: str) -> None:
    tests = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("vendors/*/tests/*.py"), ROOT / "hami_framework" / "testing" / "contract.py"]
    plugins = [*ROOT.glob("tests/data/plugins/*.py")]
    assert any(hook in path.read_text() for path in (*tests, *plugins) if path != Path(__file__))
