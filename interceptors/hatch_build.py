# SPDX-License-Identifier: Apache-2.0
"""Puts the C beside the Python in the SDK's own wheel. An editable installation finds it in the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("core", "spec", "shim", "fakes")


class Sources(BuildHookInterface[Any]):
    """The project's custom hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel" and version == "standard":
            for folder in FOLDERS:
                build_data["force_include"][str(Path(self.root) / folder)] = f"hami_interceptor/sources/{folder}"
