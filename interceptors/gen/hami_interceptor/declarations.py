# SPDX-License-Identifier: Apache-2.0
"""A C parameter list, as a row of a table gives it, taken apart: what a wrapper must know is each parameter's name.

Not a C parser: it splits at the outer commas and finds the declared name. Whatever it cannot be sure about is refused, with
the way out, since the compiler sees the text again and checks the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TYPE_WORDS = frozenset(
    {"void", "char", "short", "int", "long", "float", "double", "signed", "unsigned", "const", "volatile", "struct", "union", "enum", "_Bool", "bool"}
)

_FUNCTION_POINTER = re.compile(r"\(\s*\*\s*(?:const\s+)?(\w+)\s*\)\s*\(")
_LAST_NAME = re.compile(r"(?P<before>.*?)\b(?P<name>[A-Za-z_]\w*)\s*(?:\[[^\]]*\]\s*)*$", re.DOTALL)


class DeclarationError(ValueError):
    """Says what is wrong with one parameter and what to write instead."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter: its name, and its whole declaration as written."""

    name: str
    declaration: str


def parameters(text: str) -> tuple[Parameter, ...]:
    """The parameters of `text`; `void` and nothing at all are no parameters."""
    if text.strip() in ("", "void"):
        return ()
    found = tuple(_parameter(part.strip()) for part in _split(text))
    names = [parameter.name for parameter in found]
    for name in names:
        if names.count(name) > 1:
            raise DeclarationError(f"two parameters are called {name!r}")
    return found


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            raise DeclarationError(f"a bracket is closed that was never opened: {text!r}")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    if depth:
        raise DeclarationError(f"a bracket is not closed: {text!r}")
    return [*parts, text[start:]]


def _parameter(text: str) -> Parameter:
    if not text:
        raise DeclarationError("an empty parameter: is there a comma too many?")
    if text == "...":
        raise DeclarationError('a variadic function cannot be passed on: leave args out and say hook = "none" with a note')
    name = _declared_name(text)
    if name.endswith("_"):
        raise DeclarationError(f"{name!r} ends with '_', as the wrappers' own names do: call it something else")
    return Parameter(name=name, declaration=text)


def _declared_name(text: str) -> str:
    pointer = _FUNCTION_POINTER.search(text)
    if pointer is not None:
        return pointer[1]
    matched = _LAST_NAME.fullmatch(text)
    before = matched["before"].strip() if matched else ""
    if matched is None or matched["name"] in TYPE_WORDS or before in ("", "const", "volatile", "struct", "union", "enum"):
        raise DeclarationError(f"{text!r} has no name: write type and name, such as 'size_t bytes'")
    return matched["name"]
