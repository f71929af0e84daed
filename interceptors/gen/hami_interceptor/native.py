# SPDX-License-Identifier: Apache-2.0
"""Where the C lies: beside this package in a checkout, inside it when the wheel is installed."""

from __future__ import annotations

from pathlib import Path

from hami_interceptor.errors import InterceptorError

PACKAGED = "sources"
"""The folder of the wheel that holds `core/`, `spec/`, `shim/` and `fakes/`."""


def root() -> Path:
    """The folder that has `core/`, `spec/`, `shim/` and `fakes/`."""
    here = Path(__file__).resolve().parent
    for candidate in (here / PACKAGED, here.parents[1]):
        if (candidate / "core" / "hami_core.h").is_file():
            return candidate
    raise InterceptorError(
        f"hami_interceptor in {here} has no C sources beside it: install hami-interceptor-sdk from its wheel, or use a checkout's interceptors/gen"
    )


def core() -> Path:
    """The folder of the core: its headers are what a front end includes."""
    return root() / "core"


def tests() -> Path | None:
    """The tests' folder of a checkout; an installed SDK has none."""
    folder = root() / "tests"
    return folder if folder.is_dir() else None


def api_names() -> tuple[str, ...]:
    """The APIs that have a table here, by name."""
    return tuple(sorted(path.stem for path in (root() / "spec").glob("*.toml")))
