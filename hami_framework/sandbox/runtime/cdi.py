# SPDX-License-Identifier: Apache-2.0
"""CDI specifications, read and judged as containerd's CDI library does (spec 1.1.0, tags.cncf.io/container-device-interface).

A file that is not valid is set aside with its reason and the others go on, as the library does; the device it should
have defined is then simply not there. Strict on purpose: unknown fields, duplicate keys, empty edits, a declared version
that is too low for the fields in use, and wrong names are all refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hami_framework.sandbox.runtime.rules import SpecError, check_spec

EXTENSIONS = (".json", ".yaml")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One valid file."""

    path: Path
    priority: int
    """Index of its directory: a later directory wins."""
    kind: str
    edits: Mapping[str, Any]
    """Top-level edits: applied once when any device of the file is requested."""
    devices: Mapping[str, Mapping[str, Any]]
    """Device name → its edits."""


@dataclass
class CdiCache:
    """The specs of some directories. Rescanned on every lookup, which is what a watching runtime amounts to."""

    directories: tuple[Path, ...]
    errors: dict[Path, str] = field(default_factory=dict)
    """Files set aside at the last scan, and why; conflicts are noted under both files."""
    _parsed: dict[Path, tuple[tuple[int, int, int], Spec | str]] = field(default_factory=dict)

    def resolve(self, names: Iterable[str]) -> list[tuple[Spec, str]]:
        """The spec and device name of every fully qualified name. Raises SpecError naming those that cannot be resolved."""
        wanted = list(dict.fromkeys(names))
        table = self._scan()
        missing = [name for name in wanted if name not in table]
        if missing:
            known = "".join(f" ({path.name}: {reason})" for path, reason in sorted(self.errors.items()))
            raise SpecError(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}{known}")
        return [(table[name], name.rpartition("=")[2]) for name in wanted]

    def _scan(self) -> dict[str, Spec]:
        self.errors = {}
        table: dict[str, Spec] = {}
        conflicts: set[str] = set()
        seen: dict[Path, tuple[tuple[int, int, int], Spec | str]] = {}
        for priority, path in self._files():
            outcome = self._load(priority, path, seen)
            if isinstance(outcome, str):
                self.errors[path] = outcome
                continue
            for device in outcome.devices:
                self._enter(f"{outcome.kind}={device}", outcome, table, conflicts)
        self._parsed = seen
        return {name: spec for name, spec in table.items() if name not in conflicts}

    def _enter(self, name: str, spec: Spec, table: dict[str, Spec], conflicts: set[str]) -> None:
        """A later directory wins; two files of one directory that define a device make it unresolvable."""
        other = table.get(name)
        if other is None or other.priority < spec.priority:
            table[name] = spec
            conflicts.discard(name)
            return
        conflicts.add(name)
        for path, opponent in ((spec.path, other.path), (other.path, spec.path)):
            self.errors[path] = f"conflicting device {name} (also in {opponent.name})"

    def _files(self) -> list[tuple[int, Path]]:
        return [
            (priority, path)
            for priority, directory in enumerate(self.directories)
            if directory.is_dir()
            for path in sorted(directory.iterdir())
            if path.suffix in EXTENSIONS
        ]

    def _load(self, priority: int, path: Path, seen: dict[Path, tuple[tuple[int, int, int], Spec | str]]) -> Spec | str:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._parsed.get(path)
            outcome = known[1] if known and known[0] == stamp else parse(path.read_text(encoding="utf-8"), path, priority)
        except FileNotFoundError:
            return "it vanished while it was read"
        seen[path] = (stamp, outcome)
        return outcome


def parse(text: str, path: Path, priority: int = 0) -> Spec | str:
    """The spec in `text`, or why it is none."""
    try:
        document = json.loads(text, object_pairs_hook=_unique) if path.suffix == ".json" else yaml.safe_load(text)
        check_spec(document)
    except (SpecError, ValueError, yaml.YAMLError) as error:
        return f"failed to load CDI Spec: {error}"
    devices = {device["name"]: device["containerEdits"] for device in document["devices"]}
    return Spec(path=path, priority=priority, kind=document["kind"], edits=document.get("containerEdits") or {}, devices=devices)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SpecError("a key stands twice in one object")
    return found
