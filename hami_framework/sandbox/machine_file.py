# SPDX-License-Identifier: Apache-2.0
"""The text file that a fake library plays: `key = value` lines in sections. Writing to it is how a device fails.

The file is replaced by a rename, so that the fake never reads half of it. Everything not named in a change stays as it
stands, comments included.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hami_framework.errors import ConfigError

_SECTION = re.compile(r"\s*\[\s*(?P<name>[^\]]+?)\s*\]")
_KEY = re.compile(r"\s*(?P<key>[^#;=\s]+)\s*=\s*(?P<value>[^#]*?)\s*(#.*)?$")


class MachineFile:
    """One machine of one node."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sections(self) -> dict[str, dict[str, str]]:
        """Section name → its keys."""
        found: dict[str, dict[str, str]] = {}
        current: dict[str, str] = {}
        for line in self.path.read_text().splitlines():
            if section := _SECTION.match(line):
                current = found.setdefault(section["name"], {})
            elif pair := _KEY.match(line):
                current[pair["key"]] = pair["value"]
        return found

    def find(self, identities: Iterable[str], index: int) -> str | None:
        """The section of a device: named after one of its identities, or the only one that holds it, or `device <index>`."""
        sections = self.sections()
        for identity in identities:
            if identity in sections:
                return identity
            holders = [name for name, keys in sections.items() if identity.casefold() in (value.casefold() for value in keys.values())]
            if len(holders) == 1:
                return holders[0]
        numbered = f"device {index}"
        return numbered if numbered in sections else None

    def set(self, section: str, changes: Mapping[str, str]) -> None:
        """Write keys of a section. Raises `ConfigError` when there is no such section."""
        lines = self.path.read_text().splitlines()
        headers = {found["name"]: at for at, line in enumerate(lines) if (found := _SECTION.match(line))}
        if section not in headers:
            raise ConfigError(f"{self.path} has no section [{section}]; it has {', '.join(headers) or 'none'}")
        start = headers[section] + 1
        end = min((at for at in headers.values() if at >= start), default=len(lines))
        body = lines[start:end]
        for key, value in changes.items():
            at = next((at for at, line in enumerate(body) if (pair := _KEY.match(line)) and pair["key"] == key), None)
            if at is None:
                body.insert(0, f"{key} = {value}")
            else:
                body[at] = f"{key} = {value}"
        scratch = self.path.with_suffix(".new")
        scratch.write_text("\n".join([*lines[:start], *body, *lines[end:]]) + "\n")
        os.replace(scratch, self.path)
