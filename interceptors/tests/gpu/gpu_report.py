# SPDX-License-Identifier: Apache-2.0
"""What was found: parts that ran or did not, the checks in them, their figures; as JSON and as a page to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20


class NotRun(Exception):
    """Something that the test needs is not on this machine; the message says what."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold, and whether it did."""

    text: str
    held: bool


@dataclass
class Part:
    """One of the test's parts. It ran unless `why_not` says otherwise; it held when all its checks did."""

    name: str
    checks: list[Check] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Figures: a table, whose columns are the keys."""
    notes: list[str] = field(default_factory=list)
    why_not: str | None = None

    def check(self, text: str, held: bool) -> None:
        self.checks.append(Check(text, held))

    @property
    def ran(self) -> bool:
        return self.why_not is None

    @property
    def held(self) -> bool:
        return all(check.held for check in self.checks)

    @property
    def verdict(self) -> str:
        if self.why_not is not None:
            return f"not run: {self.why_not}"
        failed = sum(not check.held for check in self.checks)
        return f"run; {failed} of {len(self.checks)} checks did not hold" if failed else f"run; all {len(self.checks)} checks held"


@dataclass(frozen=True)
class Report:
    """All of it."""

    machine: dict[str, Any]
    """The device and its driver; empty when nothing ran."""
    parts: Sequence[Part]
    why_not: str | None = None

    @property
    def held(self) -> bool:
        return self.why_not is None and any(part.ran for part in self.parts) and all(part.held for part in self.parts)

    def write(self, folder: Path) -> Path:
        """`gpu-report.md` and `gpu-report.json` there; the first one's path."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = [{**asdict(part), "ran": part.ran, "held": part.held if part.ran else None} for part in self.parts]
        whole = {"ran": self.why_not is None, "held": self.held, "why_not": self.why_not, "machine": self.machine, "parts": parts}
        (folder / "gpu-report.json").write_text(json.dumps(whole, indent=1) + "\n")
        page = folder / "gpu-report.md"
        page.write_text("\n".join(self._lines()) + "\n")
        return page

    def _lines(self) -> list[str]:
        if self.why_not is not None:
            return ["# The GPU test: NOT RUN", "", self.why_not]
        lines = ["# The GPU test", "", *(f"- {name}: {value}" for name, value in self.machine.items()), "", "| part | |", "|---|---|"]
        lines += [f"| {part.name} | {part.verdict} |" for part in self.parts]
        for part in self.parts:
            lines += ["", f"## {part.name}", "", part.verdict, *(f"- {note}" for note in part.notes)]
            lines += ["", *(f"- **did not hold**: {check.text}" for check in part.checks if not check.held)]
            held = [f"- {check.text}" for check in part.checks if check.held]
            lines += ["<details><summary>what held</summary>", "", *held, "", "</details>"] if held else []
            lines += ["", *_table(part.rows)] if part.rows else []
        return lines


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(_shown(row.get(column)) for column in columns)} |" for row in rows]


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
