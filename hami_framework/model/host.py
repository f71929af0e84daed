# SPDX-License-Identifier: Apache-2.0
"""The node as a vendor's hooks see it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hami_framework.model.base import Value


class Host(Value, frozen=True, kw_only=True):
    """Where a vendor's node hooks find things. Everything that could differ on another machine comes through here."""

    node: str
    root: str = "/"
    """Prefix of host paths the hooks *read* (`/sys`, `/dev`); the sandbox gives each node a tree of its own."""
    state_directory: str = "/var/lib/hami"
    settings: dict[str, object] = msgspec.field(default_factory=dict)
    """The vendor's own section of the settings, already validated by its settings model if it has one."""

    def path(self, absolute: str) -> Path:
        """`absolute` as it is reached from this process."""
        return Path(self.root) / absolute.lstrip("/")
