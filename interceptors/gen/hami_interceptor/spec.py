# SPDX-License-Identifier: Apache-2.0
"""A driver API's table (`spec/<api>.toml`): read, checked as a whole, and handed out as frozen values.

One row per symbol. Wrappers, fake drivers, coverage and documentation are all made from these rows, so what is wrong with a
row is said here, with file, line and symbol, and every wrong row of a table is named at once.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from hami_interceptor import native
from hami_interceptor.errors import SpecError
from hami_interceptor.rows import Reader
from hami_interceptor.table import CLASSES, MUST_HOOK, Api, Export, Hook, Row

__all__ = ["CLASSES", "MUST_HOOK", "Api", "Export", "Hook", "Row", "load"]


def load(which: str | Path) -> Api:
    """The table of an API that this SDK carries, by name, or any table by its path; raises SpecError naming all that is wrong."""
    path = _path(which)
    try:
        text = path.read_text()
        document = tomllib.loads(text)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: is not TOML: {error}") from error
    return Reader(path, text).api(document)


def _path(which: str | Path) -> Path:
    if isinstance(which, Path):
        return which.resolve()
    if which.endswith(".toml"):
        return Path(which).resolve()
    path = native.root() / "spec" / f"{which}.toml"
    if not path.is_file():
        raise SpecError(f"there is no API called {which!r}; known: {', '.join(native.api_names()) or 'none'}; or give the path of a .toml file")
    return path
