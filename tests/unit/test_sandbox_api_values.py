# SPDX-License-Identifier: Apache-2.0
"""Quantities, patches and selectors of the sandbox's API server, against Kubernetes' own rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_framework.sandbox import patches, quantities
from hami_framework.sandbox.resources import CUSTOM_RESOURCE_DEFINITIONS, NODES, PODS
from hami_framework.sandbox.selectors import matches_labels, select
from hami_framework.sandbox.status import ApiRefusal

CANONICAL = [
    ("4000", "4k"),
    (4000, "4k"),
    ("4096", "4096"),
    ("4Ki", "4Ki"),
    ("3072Mi", "3Gi"),
    ("1.5Ki", "1536"),
    ("0.5", "500m"),
    ("500m", "500m"),
    ("1000m", "1"),
    ("0", "0"),
    ("0Gi", "0"),
    ("1e3", "1e3"),
    ("1500Mi", "1500Mi"),
    ("512", "512"),
    ("0.5Ki", "512"),
    ("1.5Gi", "1536Mi"),
    ("2000000", "2M"),
    ("2.5", "2500m"),
]


@pytest.mark.parametrize(("raw", "spelled"), CANONICAL, ids=[str(raw) for raw, _ in CANONICAL])
def test_quantities_come_back_as_the_server_spells_them(raw: str | int, spelled: str) -> None:
    assert quantities.canonical(raw) == spelled


@given(st.integers(0, 2**50), st.sampled_from(["", "k", "M", "Ki", "Mi", "m"]))
def test_rewriting_a_quantity_keeps_its_worth_and_is_done_once(number: int, suffix: str) -> None:
    raw = f"{number}{suffix}"
    try:
        spelled = quantities.canonical(raw)
    except ValueError:
        return
    assert quantities.amount(spelled) == quantities.amount(raw)
    assert quantities.canonical(spelled) == spelled


# RFC 7386, appendix A.
MERGES: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), MERGES)
def test_merge_patch_follows_the_examples_of_its_rfc(target: Any, patch: Any, result: Any) -> None:
    assert patches.merge_patch(target, patch) == result


# RFC 6902, appendix A.
JSON_PATCHES: list[tuple[Any, list[dict[str, Any]], Any]] = [
    ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"foo": "bar", "baz": "qux"}),
    ({"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
    ({"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    ({"baz": "qux", "foo": "bar"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo", "foo": "bar"}),
    (
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"thud": "fred"}},
    ),
    ({"foo": ["all", "grass", "cows", "eat"]}, [{"op": "move", "from": "/foo/1", "path": "/foo/3"}], {"foo": ["all", "cows", "eat", "grass"]}),
    ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["abc"]}], {"foo": ["bar", ["abc"]]}),
    ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    ({"a": {"x.io/y": 1}}, [{"op": "replace", "path": "/a/x.io~1y", "value": 2}], {"a": {"x.io/y": 2}}),
    ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
]


@pytest.mark.parametrize(("target", "operations", "result"), JSON_PATCHES)
def test_json_patch_follows_the_examples_of_its_rfc(target: Any, operations: list[dict[str, Any]], result: Any) -> None:
    assert patches.json_patch(target, operations) == result


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/baz", "value": "bar"}, {"op": "add", "path": "/a/b", "value": 1}, {"op": "remove", "path": "/nowhere"},
        {"op": "replace", "path": "/nowhere", "value": 1}, {"op": "remove", "path": "/list/5"}, {"op": "dance", "path": "/baz"}, {"path": "/baz"},
    ],
)  # fmt: skip
def test_a_json_patch_that_does_not_apply_is_unprocessable_and_changes_nothing(operation: dict[str, Any]) -> None:
    target = {"baz": "qux", "list": [1]}
    with pytest.raises(ApiRefusal) as refused:
        patches.json_patch(target, [{"op": "add", "path": "/new", "value": 1}, operation])
    assert refused.value.code == 422
    assert target == {"baz": "qux", "list": [1]}


def test_strategic_merge_joins_conditions_by_type_and_replaces_plain_lists() -> None:
    target = {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Initialized", "status": "True"}], "args": ["a", "b"]}
    patch = {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "$patch": "delete"}], "args": ["c"], "$setElementOrder/conditions": []}
    assert patches.strategic_patch(target, patch) == {"conditions": [{"type": "Ready", "status": "True"}], "args": ["c"]}


def test_an_unknown_kind_of_patch_is_an_unsupported_media_type() -> None:
    with pytest.raises(ApiRefusal) as refused:
        patches.apply("application/json", {}, {})
    assert refused.value.code == 415


POD = {"metadata": {"name": "a", "namespace": "d", "labels": {"app": "web", "tier": "front"}}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
SELECTIONS = [
    ("app=web", "", True),
    ("app==web,tier!=back", "", True),
    ("app=db", "", False),
    ("app in (web, db)", "", True),
    ("app notin (web)", "", False),
    ("gone notin (web)", "", True),
    ("app", "", True),
    ("!app", "", False),
    ("!gone", "", True),
    ("gone!=x", "", True),
    ("tier in (a,b),app", "", False),
    ("", "spec.nodeName=n1", True),
    ("", "spec.nodeName!=n1", False),
    ("", "status.phase=Running,metadata.namespace=d", True),
    ("", "metadata.name=b", False),
    ("", "spec.nodeName=", False),
    ("app=web", "spec.nodeName=n2", False),
]


@pytest.mark.parametrize(("labels", "fields", "chosen"), SELECTIONS)
def test_selectors_choose(labels: str, fields: str, chosen: bool) -> None:
    test = select(PODS, labels, fields)
    assert test is not None
    assert test(POD) is chosen


@pytest.mark.parametrize(
    ("kind", "labels", "fields"), [(PODS, "a=b=c", ""), (PODS, "", "spec.color=red"), (NODES, "", "spec.nodeName=x"), (PODS, "", "nonsense")]
)
def test_a_selector_nobody_can_answer_is_a_bad_request(kind: Any, labels: str, fields: str) -> None:
    with pytest.raises(ApiRefusal) as refused:
        select(kind, labels, fields)
    assert refused.value.code == 400


def test_no_selector_selects_everything() -> None:
    assert select(CUSTOM_RESOURCE_DEFINITIONS) is None
    assert matches_labels({}, {"a": "b"})
    assert not matches_labels({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]}, {"a": "b"})
