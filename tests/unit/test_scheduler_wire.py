# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's JSON, key by key, against k8s.io/kube-scheduler/extender/v1."""

from __future__ import annotations

import json

import msgspec
import pytest

from hami_framework.scheduler.wire import (
    BindingArgs,
    BindingResult,
    Candidates,
    ExtenderArgs,
    FilterResult,
    HostPriority,
    MetaPod,
    MetaVictims,
    PreemptionArgs,
    PreemptionResult,
)


def args(**fields: object) -> ExtenderArgs:
    return msgspec.json.decode(json.dumps({"Pod": {"metadata": {}}, **fields}), type=ExtenderArgs)


@pytest.mark.parametrize(
    ("answer", "keys"),
    [
        (FilterResult(), ["Error", "FailedAndUnresolvableNodes", "FailedNodes", "NodeNames", "Nodes"]),
        (HostPriority(host="n", score=3), ["Host", "Score"]),
        (BindingResult(), ["Error"]),
        (PreemptionResult(meta_victims={}), ["NodeNameToMetaVictims"]),
        (MetaVictims(pods=[]), ["NumPDBViolations", "Pods"]),
        (MetaPod(uid="u"), ["UID"]),
    ],
    ids=["filter", "prioritize", "bind", "preempt", "victims", "victim"],
)
def test_keys_of_answers(answer: object, keys: list[str]) -> None:
    assert sorted(json.loads(msgspec.json.encode(answer))) == keys


def test_binding_arguments() -> None:
    read = msgspec.json.decode(b'{"PodName":"p","PodNamespace":"d","PodUID":"u","Node":"n","Later":1}', type=BindingArgs)
    assert (read.pod_name, read.pod_namespace, read.pod_uid, read.node) == ("p", "d", "u", "n")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"NodeNames": ["a", "b"]}, ["a", "b"]),
        ({"NodeNames": ["a"], "Nodes": None}, ["a"]),
        ({"Nodes": {"items": [{"metadata": {"name": "a"}}]}, "NodeNames": None}, ["a"]),
        ({"Nodes": {"metadata": {}, "items": None}}, []),
        ({"Nodes": None, "NodeNames": None}, []),
        ({"NodeNames": []}, []),
        ({}, []),
    ],
    ids=["names", "names, null nodes", "nodes", "nodes without items", "both null", "empty", "neither"],
)
def test_candidates_in_every_form(fields: dict[str, object], names: list[str]) -> None:
    assert list(Candidates(args(**fields)).names) == names


def test_names_are_passed_through_byte_for_byte() -> None:
    whole = Candidates(args(NodeNames=["a", "b"])).all_pass()
    assert json.loads(msgspec.json.encode(whole))["NodeNames"] == ["a", "b"]


def test_a_decoded_list_is_not_spoilt_by_its_user() -> None:
    first = Candidates(args(NodeNames=["x", "y"]))
    list(first.names).clear()
    assert list(Candidates(args(NodeNames=["x", "y"])).names) == ["x", "y"]


def test_victims_in_both_forms_are_the_same() -> None:
    full = {"Pod": {}, "NodeNameToVictims": {"n": {"Pods": [{"metadata": {"uid": "u"}}], "NumPDBViolations": 2}}}
    meta = {"Pod": {}, "NodeNameToMetaVictims": {"n": {"Pods": [{"UID": "u"}], "NumPDBViolations": 2}}}
    read = [msgspec.json.decode(json.dumps(form), type=PreemptionArgs).candidates() for form in (full, meta)]
    assert read[0] == read[1] == {"n": MetaVictims(pods=[MetaPod(uid="u")], violations=2)}
