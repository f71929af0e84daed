# SPDX-License-Identifier: Apache-2.0
"""How answers are printed: a table for people, JSON or YAML for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

Row = Mapping[str, object]


def output_option(function: F) -> F:
    """Adds `-o json|yaml|wide`."""
    return click.option("-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table", help="How to print the answer.")(function)


def show(rows: Iterable[Row], columns: Sequence[str], output: str, *, wide: Sequence[str] = (), nothing: str = "nothing found") -> None:
    """Print rows. `columns` and `wide` name keys of a row; JSON and YAML carry all of them."""
    rows = list(rows)
    if output == "json":
        click.echo(json.dumps(rows, indent=2, default=str))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(json.loads(json.dumps(rows, default=str)), sort_keys=False), nl=False)
    elif not rows:
        click.echo(nothing, err=True)
    else:
        click.echo(table(rows, [*columns, *(wide if output == "wide" else ())]))


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Plain aligned text, as kubectl prints it: no lines, two spaces between columns, pipes well."""
    cells = [[column.replace("_", " ").upper() for column in columns], *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)
