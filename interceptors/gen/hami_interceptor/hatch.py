# SPDX-License-Identifier: Apache-2.0
"""The packager's side: a hatch build hook that builds a project's interceptor into its wheel (`project` says what it reads).

With the portable compiler installed beside it the wheel loads on any glibc from 2.17 on and is tagged so; else it is tagged for
this kind of machine only. Without a compiler the build fails: a vendor's wheel without its interceptor would promise limits
that it cannot hold. `HAMI_INTERCEPTOR=skip` builds one all the same and says so.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.plugin import hookimpl

from hami_interceptor import compilers, project
from hami_interceptor.errors import BuildError, InterceptorError

SWITCH = "HAMI_INTERCEPTOR"
TARGET = "HAMI_INTERCEPTOR_TARGET"


class InterceptorHook(BuildHookInterface[Any]):
    """`[tool.hatch.build.hooks.hami-interceptor]`."""

    PLUGIN_NAME = project.HOOK

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is written: build the library, put it in, and tag the wheel."""
        if self.target_name != "wheel":
            return
        wish = project.configured(Path(self.root), self.config)
        if version == "editable":
            self.app.display_info(f"{wish.library} is not built for an editable installation: run `python -m hami_interceptor project {self.root}`")
        elif _skipped():
            self.app.display_warning(f"{SWITCH}=skip: this wheel carries no interceptor ({wish.library}) and cannot hold a limit by itself")
        else:
            self._build(wish, build_data)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """After the wheel is written: the library is in it, so its own copy goes."""
        scratch: tempfile.TemporaryDirectory[str] | None = getattr(self, "_scratch", None)
        if scratch is not None:
            scratch.cleanup()

    def _build(self, wish: project.Project, build_data: dict[str, Any]) -> None:
        target = os.environ.get(TARGET)
        asked = compilers.PORTABLE if compilers.portable_is_here() else None
        self._scratch = tempfile.TemporaryDirectory(prefix="hami-interceptor-")
        try:
            chosen = compilers.choose(asked, target)
            built = wish.build(Path(self._scratch.name) / Path(wish.library).name, asked, target)
        except InterceptorError as error:
            self._scratch.cleanup()
            raise BuildError(f"{wish.library} cannot be built into this wheel: {error}\n(set {SWITCH}=skip to build one without it)") from error
        build_data["force_include"][str(built)] = wish.library
        build_data["pure_python"] = False
        build_data["tag"] = project.wheel_tag(chosen)


def _skipped() -> bool:
    value = os.environ.get(SWITCH, "")
    if value not in ("", "skip"):
        raise BuildError(f"{SWITCH}={value!r} is unknown: leave it unset, or say skip to build a wheel without its interceptor")
    return value == "skip"


@hookimpl
def hatch_register_build_hook() -> type[InterceptorHook]:
    return InterceptorHook
