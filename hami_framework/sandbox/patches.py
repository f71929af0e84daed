# SPDX-License-Identifier: Apache-2.0
"""Patches as the API server applies them: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge.

Strategic merge is a merge patch that joins lists of objects by a key; the keys are those of the types the sandbox
deals with (`patchMergeKey` in k8s.io/api). `$patch: delete|replace`, `$deleteFromPrimitiveList/…`,
`$setElementOrder/…` and `$retainKeys` are understood as far as kubectl sends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hami_framework.sandbox.status import ApiRefusal

MERGE_KEYS: dict[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "conditions": "type",
    "addresses": "type",
    "taints": "key",
    "imagePullSecrets": "name",
    "ownerReferences": "uid",
    "schedulingGates": "name",
    "hostAliases": "ip",
}
"""Lists that are joined by a key; all others are replaced whole (`tolerations`, `containerStatuses`, …)."""

UNITED_LISTS = frozenset({"finalizers"})
"""Lists of plain values that are united."""


def apply(content_type: str, target: Any, patch: Any) -> Any:
    """The patched object; `target` is left alone. Raises `ApiRefusal` 415 for an unknown kind of patch, 400/422 for a bad one."""
    if content_type == "application/json-patch+json":
        return json_patch(target, patch)
    if content_type == "application/merge-patch+json":
        return merge_patch(target, patch)
    if content_type in ("application/strategic-merge-patch+json", "application/apply-patch+yaml"):
        return strategic_patch(target, patch)
    raise ApiRefusal(
        415, f"the body of the request was in an unknown format - accepted media types include: application/json-patch+json, … not {content_type!r}"
    )


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_patch(target: Any, patch: Any) -> Any:
    """Merge patch, with lists of objects joined by their key."""
    if not isinstance(patch, Mapping):
        return patch
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            result[field] = [item for item in result.get(field) or () if item not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, list):
            result[key] = _strategic_list(key, result.get(key) or [], value)
        else:
            result[key] = strategic_patch(result.get(key), value)
    return result


def _strategic_list(field: str, target: list[Any], patch: list[Any]) -> list[Any]:
    if field in UNITED_LISTS:
        return target + [item for item in patch if item not in target]
    merge_key = MERGE_KEYS.get(field)
    if merge_key is None or not all(isinstance(item, Mapping) for item in patch):
        return patch
    if any(item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if item.get("$patch") != "replace"]
    result = list(target)
    for item in patch:
        at = next((index for index, old in enumerate(result) if old.get(merge_key) == item.get(merge_key)), None)
        if item.get("$patch") == "delete":
            result = [old for old in result if old.get(merge_key) != item.get(merge_key)]
        elif at is None:
            result.append(strategic_patch({}, item))
        else:
            result[at] = strategic_patch(result[at], item)
    return result


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902. A failing `test` or a path that leads nowhere is 422, as the real server answers."""
    if not isinstance(operations, list):
        raise ApiRefusal(400, "a JSON patch is a list of operations")
    document = _clone(target)
    for number, operation in enumerate(operations):
        try:
            document = _operate(document, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            said = f"{operation.get('op')} {operation.get('path')}" if isinstance(operation, Mapping) else repr(operation)
            raise ApiRefusal(422, f"the server rejected our request due to an error in our request: patch operation {number} ({said}): {error}") from error
    return document


def _operate(document: Any, operation: Mapping[str, Any]) -> Any:
    name, path = operation["op"], _pointer(operation["path"])
    if name == "test":
        if _get(document, path) != operation["value"]:
            raise ValueError("test failed")
        return document
    if name in ("move", "copy"):
        source = _pointer(operation["from"])
        value = _clone(_get(document, source))
        return _add(_remove(document, source) if name == "move" else document, path, value)
    if name == "add":
        return _add(document, path, _clone(operation["value"]))
    if name == "replace":
        _get(document, path)
        return _add(_remove(document, path), path, _clone(operation["value"])) if path else operation["value"]
    if name == "remove":
        return _remove(document, path)
    raise ValueError(f"unknown operation {name!r}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is not a JSON pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _get(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[_index(part, len(document))] if isinstance(document, list) else document[part]
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    owner = _get(document, path[:-1])
    if isinstance(owner, list):
        owner.insert(len(owner) if path[-1] == "-" else _index(path[-1], len(owner) + 1), value)
    else:
        owner[path[-1]] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    owner = _get(document, path[:-1])
    del owner[_index(path[-1], len(owner)) if isinstance(owner, list) else path[-1]]
    return document


def _index(part: str, length: int) -> int:
    if not part.isdigit() or int(part) >= length:
        raise IndexError(f"no index {part} in a list of {length}")
    return int(part)


def _clone(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _clone(item) for key, item in value.items()}
    return [_clone(item) for item in value] if isinstance(value, list) else value
