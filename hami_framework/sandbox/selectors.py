# SPDX-License-Identifier: Apache-2.0
"""Label and field selectors, as strings in a query: `app=web,tier in (a,b),!legacy` and `spec.nodeName=n1,status.phase!=Running`.

Field selectors work on the fields the real server indexes; any other is refused with 400, as it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hami_framework.sandbox.resources import Kind
from hami_framework.sandbox.status import ApiRefusal

Test = Callable[[Mapping[str, Any]], bool]

_SET = re.compile(r"(?P<key>[^\s=!,()]+)\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUALITY = re.compile(r"(?P<key>[^\s=!,()]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^\s=!,()]*)")
_PRESENCE = re.compile(r"(?P<not>!?)\s*(?P<key>[^\s=!,()]+)")
_COMMAS = re.compile(r",(?![^()]*\))")

FIELDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "pods"): ("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "status.phase", "status.podIP"),
    ("", "nodes"): ("spec.unschedulable",),
    ("", "namespaces"): ("status.phase",),
    ("", "events"): (
        *(f"involvedObject.{field}" for field in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")),
        *("reason", "reportingComponent", "source", "type"),
    ),
    ("batch", "jobs"): ("status.successful",),
}
"""Selectable fields beside `metadata.name` and `metadata.namespace` (pkg/apis/*/v1/conversion.go of Kubernetes)."""


def select(kind: Kind, labels: str = "", fields: str = "") -> Test | None:
    """One test for both selectors; None selects everything. Raises `ApiRefusal` 400 on a selector that cannot be read."""
    tests = [_label_test(part) for part in _parts(labels)] + [_field_test(kind, part) for part in _parts(fields)]
    if not tests:
        return None
    return lambda obj: all(test(obj) for test in tests)


def matches_labels(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A `LabelSelector` object (`matchLabels`, `matchExpressions`) against labels; an empty selector matches all."""
    exact = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in exact.items()) and all(
        matches_expression(expression, labels) for expression in selector.get("matchExpressions") or ()
    )


def matches_expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """One `{key, operator, values}`, with the operators of label selectors and of node affinity."""
    value, values, operator = labels.get(expression["key"]), expression.get("values") or [], expression["operator"]
    if operator in ("Gt", "Lt"):
        if value is None or not value.lstrip("-").isdigit():
            return False
        return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])
    answers = {"In": value in values, "NotIn": value not in values, "Exists": value is not None, "DoesNotExist": value is None}
    if operator not in answers:
        raise ApiRefusal(400, f'"{operator}" is not a valid label selector operator')
    return answers[operator]


def _parts(selector: str) -> list[str]:
    return [part.strip() for part in _COMMAS.split(selector) if part.strip()]


def _labels(obj: Mapping[str, Any]) -> Mapping[str, str]:
    return obj.get("metadata", {}).get("labels") or {}


def _label_test(part: str) -> Test:
    if found := _SET.fullmatch(part):
        expression = {
            "key": found["key"],
            "operator": {"in": "In", "notin": "NotIn"}[found["operator"]],
            "values": [value.strip() for value in found["values"].split(",")],
        }
        return lambda obj: matches_expression(expression, _labels(obj))
    if found := _EQUALITY.fullmatch(part):
        key, value, wanted = found["key"], found["value"], found["operator"] != "!="
        return lambda obj: (_labels(obj).get(key) == value) is wanted
    if found := _PRESENCE.fullmatch(part):
        key, present = found["key"], not found["not"]
        return lambda obj: (key in _labels(obj)) is present
    raise ApiRefusal(400, f"unable to parse requirement: {part!r} is not a label selector")


def _field_test(kind: Kind, part: str) -> Test:
    found = _EQUALITY.fullmatch(part)
    if found is None:
        raise ApiRefusal(400, f"invalid field selector: {part!r} (write field=value or field!=value)")
    field, value, wanted = found["key"], found["value"], found["operator"] != "!="
    if field not in ("metadata.name", "metadata.namespace", *FIELDS.get(kind.storage, ())):
        raise ApiRefusal(400, f"field label not supported: {field}")
    path = field.split(".")
    return lambda obj: (_field(obj, path) == value) is wanted


def _field(obj: Mapping[str, Any], path: list[str]) -> str:
    value: Any = obj
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
