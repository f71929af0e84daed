# SPDX-License-Identifier: Apache-2.0
"""How the command ends: an answer of "no", a slip of the user's, and a fault of our own are told apart, and none is a traceback."""

from __future__ import annotations

import sys

import click
import pytest

from hami_framework.cli import main as entry
from hami_framework.cli.root import root
from hami_framework.errors import ConfigError

ENDS = [
    pytest.param(None, 0, "", id="well"),
    pytest.param(click.exceptions.Exit(1), 1, "", id="an answer of no"),
    pytest.param(ConfigError("write this instead"), 1, "hami: write this instead\n", id="our own words"),
    pytest.param(click.BadParameter("no such colour"), 2, "no such colour\n", id="a wrong option"),
    pytest.param(click.Abort(), 130, "", id="Ctrl-C"),
    pytest.param(KeyError("spec"), 70, "hami: a fault in hami itself, not in what you wrote: KeyError: 'spec'\n", id="a fault of ours"),
]


@pytest.mark.parametrize(("raised", "status", "said"), ENDS)
def test_how_it_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception | None, status: int, said: str) -> None:
    @click.command()
    def played() -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr(sys, "argv", ["hami", "version"])
    monkeypatch.setattr(root, "get_command", lambda context, name: played)
    monkeypatch.delenv(entry.TRACE, raising=False)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == status
    assert said in capsys.readouterr().err


def test_a_fault_of_ours_is_shown_whole_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(context: click.Context, name: str) -> click.Command:
        raise KeyError("spec")

    monkeypatch.setattr(sys, "argv", ["hami", "version"])
    monkeypatch.setattr(root, "get_command", faulty)
    monkeypatch.setenv(entry.TRACE, "1")
    with pytest.raises(KeyError):
        entry.main()
