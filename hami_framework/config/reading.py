# SPDX-License-Identifier: Apache-2.0
"""Reading YAML that people wrote: whatever is wrong with it becomes one line that names the file, the place, and what is allowed.

Used for settings, node files and manifests alike, so that a slip of the pen is answered in the same words everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from hami_framework.errors import ConfigError


def read_documents(path: Path, what: str) -> list[Any]:
    """Every document of a YAML (or JSON) file. Raises `ConfigError`, beginning with `what` ("the node file") and the path."""
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} {path} is not YAML: {_place(error)}") from error


def read_document(path: Path, what: str) -> Any:
    """The only document of a file; None when it is empty. Raises `ConfigError` as `read_documents`, and when there are several."""
    documents = read_documents(path, what)
    if len(documents) > 1:
        raise ConfigError(f"{what} {path} has {len(documents)} documents; write one, without ---")
    return documents[0] if documents else None


def faults(error: ValidationError, model: type[BaseModel]) -> str:
    """What pydantic found wrong, in one line: each place, what is wrong there, and the keys that exist where one is unknown."""
    found = error.errors()
    real = [fault for fault in found if not _follows(fault["loc"], [other["loc"] for other in found])]
    return "; ".join(f"{'.'.join(str(part) for part in fault['loc']) or 'the file'}: {_words(fault, model)}" for fault in real)


def _place(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" + (f" ({error.context})" if error.context else "")


def _follows(place: tuple[int | str, ...], places: list[tuple[int | str, ...]]) -> bool:
    """True for a complaint about the whole (a list is too short) that only comes of complaints about its parts."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _words(fault: Any, model: type[BaseModel]) -> str:
    place = fault["loc"]
    if fault["type"] == "extra_forbidden":
        known = list(_keys(model, place[:-1]))
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        return f"there is no such key{f': did you mean {close[0]!r}?' if close else ''} Known: {', '.join(known)}"
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"write keys with values here, of {', '.join(_keys(model, place))}"
    said = str(fault["msg"]).removeprefix("Value error, ")
    return said if fault["type"] == "missing" else f"{said[:1].lower()}{said[1:]}"


def _keys(model: type[BaseModel], place: tuple[int | str, ...]) -> Iterator[str]:
    """The keys that may stand at this place, as they are written in the file."""
    for part in place:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part in fields and (inner := _model_in(fields[str(part)].annotation)) is not None:
            model = inner
    yield from (field.alias or name for name, field in model.model_fields.items())


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation speaks of: itself, or the items of `tuple[Model, ...]`, `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, UnionType):
        return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)
    return None
