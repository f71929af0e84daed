# SPDX-License-Identifier: Apache-2.0
"""The verbs of the sandbox's API server: what a scheduler, an agent or a person relies on, without HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from hami_framework.sandbox.operations import Operations
from hami_framework.sandbox.resources import CUSTOM_RESOURCE_DEFINITIONS, DEPLOYMENTS, NAMESPACES, NODES, PODS, PRIORITY_CLASSES, Kind
from hami_framework.sandbox.selectors import select
from hami_framework.sandbox.status import ApiRefusal
from hami_framework.sandbox.storage import Store

Json = dict[str, Any]
MERGE = "application/merge-patch+json"


def pod(name: str = "a", limits: Json | None = None, **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "resources": {"limits": limits or {}}}], **spec}}


def binding(node: str, **metadata: Any) -> Json:
    return {"metadata": metadata, "target": {"kind": "Node", "name": node}}


@pytest.fixture
def operations() -> Operations:
    return Operations()


def test_a_new_pod_gets_what_a_scheduler_looks_at(operations: Operations) -> None:
    made, warnings = operations.create(PODS, "default", pod(limits={"x.com/gpu": 2, "x.com/mem": "4000", "cpu": "1"}))
    assert warnings == []
    assert made["metadata"]["uid"]
    assert made["metadata"]["creationTimestamp"].endswith("Z")
    assert made["status"]["phase"] == "Pending"
    assert (made["spec"]["restartPolicy"], made["spec"]["schedulerName"], made["spec"]["priority"]) == ("Always", "default-scheduler", 0)
    assert made["spec"]["containers"][0]["resources"]["requests"] == {"x.com/gpu": "2", "x.com/mem": "4k", "cpu": "1"}


BAD_PODS = [
    ("no container", {"metadata": {"name": "a"}, "spec": {"containers": []}}),
    ("no spec", {"metadata": {"name": "a"}}),
    ("no name", {"metadata": {}, "spec": pod()["spec"]}),
    ("bad name", pod("Not_A_Name")),
    ("fraction of an extended resource", pod(limits={"x.com/gpu": "500m"})),
    ("no quantity", pod(limits={"x.com/gpu": "many"})),
    ("negative", pod(limits={"x.com/gpu": -1})),
    ("request without limit", {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"x.com/gpu": 1}}}]}}),
    (
        "request unlike limit",
        {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"x.com/g": 1}, "limits": {"x.com/g": 2}}}]}},
    ),
    ("same container twice", {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}, {"name": "c"}]}}),
]


@pytest.mark.parametrize("body", [body for _, body in BAD_PODS], ids=[name for name, _ in BAD_PODS])
def test_a_wrong_pod_is_invalid(operations: Operations, body: Json) -> None:
    with pytest.raises(ApiRefusal) as refused:
        operations.create(PODS, "default", body)
    assert refused.value.code == 422
    assert operations.store.list(PODS) == []


def test_refusals_at_creation_have_the_servers_codes(operations: Operations) -> None:
    operations.create(PODS, "default", pod())
    cases: list[tuple[int, Kind, str, Json]] = [
        (409, PODS, "default", pod()),
        (404, PODS, "nowhere", pod("b")),
        (400, PODS, "default", {**pod("b"), "kind": "Node"}),
        (400, PODS, "default", {"metadata": {"name": "b", "resourceVersion": "7"}, "spec": pod()["spec"]}),
        (400, PODS, "default", {"metadata": {"name": "b", "namespace": "kube-system"}, "spec": pod()["spec"]}),
        (403, PODS, "default", pod("b", priorityClassName="gold")),
        (422, DEPLOYMENTS, "default", {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}}}),
        (422, NODES, "", {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "lots"}}}),
    ]
    for code, kind, namespace, body in cases:
        with pytest.raises(ApiRefusal) as refused:
            operations.create(kind, namespace, body)
        assert refused.value.code == code, body


def test_generated_names_differ(operations: Operations) -> None:
    body = {"metadata": {"generateName": "run-"}, "spec": pod()["spec"]}
    names = {operations.create(PODS, "default", body)[0]["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("run-") for name in names)


def test_priority_comes_from_the_class(operations: Operations) -> None:
    operations.create(PRIORITY_CLASSES, "", {"metadata": {"name": "gold"}, "value": 500, "preemptionPolicy": "Never"})
    spec = operations.create(PODS, "default", pod(priorityClassName="gold"))[0]["spec"]
    assert (spec["priority"], spec["preemptionPolicy"]) == (500, "Never")


def test_binding_writes_node_annotations_and_condition_in_one_version(operations: Operations) -> None:
    made, _ = operations.create(PODS, "default", {**pod(), "metadata": {"name": "a", "annotations": {"mine": "1"}, "labels": {"zone": "own"}}})
    before = operations.store.version
    operations.bind("default", "a", binding("n1", uid=made["metadata"]["uid"], annotations={"grant": "{}"}, labels={"zone": "theirs", "rack": "r"}))
    bound = operations.store.get(PODS, "default", "a")
    assert operations.store.version == before + 1
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["annotations"] == {"mine": "1", "grant": "{}"}
    assert bound["metadata"]["labels"] == {"zone": "own", "rack": "r"}
    assert [(item["type"], item["status"]) for item in bound["status"]["conditions"]] == [("PodScheduled", "True")]


def test_binding_is_refused_with_a_conflict(operations: Operations) -> None:
    operations.create(PODS, "default", pod("twice"))
    operations.bind("default", "twice", binding("n1"))
    operations.create(PODS, "default", pod("gated", schedulingGates=[{"name": "wait"}]))
    operations.create(PODS, "default", pod("other"))
    operations.create(PODS, "default", {**pod("dying"), "metadata": {"name": "dying", "finalizers": ["x.com/hold"]}})
    operations.delete(PODS, "default", "dying")
    cases = [
        ("twice", {}, "already assigned"),
        ("gated", {}, "schedulingGates"),
        ("other", {"uid": "someone else"}, "UID in precondition"),
        ("dying", {}, "being deleted"),
    ]
    for name, metadata, said in cases:
        with pytest.raises(ApiRefusal, match=said) as refused:
            operations.bind("default", name, binding("n2", **metadata))
        assert refused.value.code == 409
    with pytest.raises(ApiRefusal) as missing:
        operations.bind("default", "nobody", binding("n2"))
    assert missing.value.code == 404


def test_a_bound_pod_leaves_gracefully_and_kubelet_ends_it(operations: Operations) -> None:
    uid = operations.create(PODS, "default", pod())[0]["metadata"]["uid"]
    operations.bind("default", "a", binding("n1"))
    leaving = operations.delete(PODS, "default", "a")
    assert leaving["metadata"]["deletionGracePeriodSeconds"] == 30
    assert operations.store.find(PODS, "default", "a") is not None
    with pytest.raises(ApiRefusal, match="UID in precondition"):
        operations.delete(PODS, "default", "a", {"gracePeriodSeconds": 0, "preconditions": {"uid": "another"}})
    operations.delete(PODS, "default", "a", {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
    assert operations.store.find(PODS, "default", "a") is None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", None])
def test_a_pod_that_runs_nowhere_goes_at_once(operations: Operations, phase: str | None) -> None:
    operations.create(PODS, "default", pod())
    if phase:
        operations.bind("default", "a", binding("n1"))
        operations.patch(PODS, "default", "a", MERGE, {"status": {"phase": phase}}, "status")
    operations.delete(PODS, "default", "a")
    assert operations.store.find(PODS, "default", "a") is None


def test_a_stale_write_conflicts_and_a_blind_one_wins(operations: Operations) -> None:
    operations.create(NODES, "", {"metadata": {"name": "n"}})
    read = operations.store.get(NODES, "", "n")
    operations.patch(NODES, "", "n", MERGE, {"metadata": {"labels": {"a": "1"}}})
    with pytest.raises(ApiRefusal) as refused:
        operations.update(NODES, "", "n", {**read, "spec": {"unschedulable": True}})
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")
    with pytest.raises(ApiRefusal):
        operations.patch(NODES, "", "n", MERGE, {"metadata": {"resourceVersion": read["metadata"]["resourceVersion"], "labels": {"a": "2"}}})
    blind = {"metadata": {"name": "n"}, "spec": {"unschedulable": True}}
    assert operations.update(NODES, "", "n", blind)["spec"] == {"unschedulable": True}


def test_status_is_written_through_its_subresource_only(operations: Operations) -> None:
    operations.create(PODS, "default", pod())
    assert operations.patch(PODS, "default", "a", MERGE, {"status": {"phase": "Running"}})[0]["status"]["phase"] == "Pending"
    changed, _ = operations.patch(PODS, "default", "a", MERGE, {"status": {"phase": "Running"}, "spec": {"nodeName": "n9"}}, "status")
    assert changed["status"]["phase"] == "Running"
    assert "nodeName" not in changed["spec"]


def test_a_write_that_changes_nothing_makes_no_version(operations: Operations) -> None:
    operations.create(PODS, "default", pod())
    before = operations.store.version
    operations.patch(PODS, "default", "a", MERGE, {"spec": {"restartPolicy": "Always"}})
    assert operations.store.version == before


def test_the_spec_of_a_pod_is_fixed(operations: Operations) -> None:
    operations.create(PODS, "default", pod())
    with pytest.raises(ApiRefusal) as refused:
        operations.patch(PODS, "default", "a", MERGE, {"spec": {"nodeName": "n1"}})
    assert refused.value.code == 422


def test_finalizers_hold_an_object_until_they_are_gone(operations: Operations) -> None:
    operations.create(NODES, "", {"metadata": {"name": "n", "finalizers": ["x.com/hold"]}})
    operations.delete(NODES, "", "n")
    assert "deletionTimestamp" in operations.store.get(NODES, "", "n")["metadata"]
    operations.patch(NODES, "", "n", MERGE, {"metadata": {"finalizers": None}})
    assert operations.store.find(NODES, "", "n") is None


def test_a_namespace_takes_its_pods_along(operations: Operations) -> None:
    operations.create(NAMESPACES, "", {"metadata": {"name": "team"}})
    operations.create(PODS, "team", pod())
    operations.delete(NAMESPACES, "", "team")
    assert operations.store.list(PODS, "team") == []


def test_a_definition_adds_a_kind_and_its_removal_takes_it_away(operations: Operations) -> None:
    names = {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]}
    definition = {
        "metadata": {"name": "widgets.x.com"},
        "spec": {"group": "x.com", "scope": "Cluster", "names": names, "versions": [{"name": "v1", "served": True, "storage": True}]},
    }
    made, _ = operations.create(CUSTOM_RESOURCE_DEFINITIONS, "", definition)
    assert {item["type"] for item in made["status"]["conditions"]} == {"NamesAccepted", "Established"}
    kind = operations.kinds.find("x.com", "v1", "widgets")
    assert kind is not None
    assert operations.create(kind, "", {"metadata": {"name": "w"}, "spec": {"size": 1}})[0]["metadata"]["generation"] == 1
    assert operations.patch(kind, "", "w", MERGE, {"spec": {"size": 2}})[0]["metadata"]["generation"] == 2
    operations.delete(CUSTOM_RESOURCE_DEFINITIONS, "", "widgets.x.com")
    assert operations.kinds.find("x.com", "v1", "widgets") is None


def test_the_webhook_sees_canonical_quantities_and_its_patch_is_applied() -> None:
    seen: list[Json] = []

    def webhook(review: Json) -> Json:
        seen.append(review)
        patch = [{"op": "add", "path": "/spec/containers/0/resources/limits/x.com~1gpu", "value": 1}]
        encoded = base64.b64encode(json.dumps(patch).encode()).decode()
        response = {"uid": review["request"]["uid"], "allowed": True, "patchType": "JSONPatch", "patch": encoded, "warnings": ["a count was added"]}
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

    made, warnings = Operations(webhook=webhook).create(PODS, "default", pod(limits={"x.com/mem": "4000"}))
    request = seen[0]["request"]
    assert (request["operation"], request["namespace"], request["resource"]["resource"]) == ("CREATE", "default", "pods")
    assert "uid" not in request["object"]["metadata"]
    assert request["object"]["spec"]["containers"][0]["resources"]["limits"] == {"x.com/mem": "4k"}
    assert made["spec"]["containers"][0]["resources"]["requests"] == {"x.com/mem": "4k", "x.com/gpu": "1"}
    assert warnings == ["a count was added"]


def test_a_webhook_can_deny_and_cannot_answer_for_another_request() -> None:
    def deny(review: Json) -> Json:
        return {"kind": "AdmissionReview", "response": {"uid": review["request"]["uid"], "allowed": False, "status": {"message": "not today", "code": 422}}}

    with pytest.raises(ApiRefusal, match="not today") as refused:
        Operations(webhook=deny).create(PODS, "default", pod())
    assert refused.value.code == 422
    with pytest.raises(ApiRefusal) as confused:
        Operations(webhook=lambda _: {"kind": "AdmissionReview", "response": {"uid": "x", "allowed": True}}).create(PODS, "default", pod())
    assert confused.value.code == 500


def test_what_is_not_simulated_is_kept_and_named(operations: Operations) -> None:
    services = operations.kinds.find("", "v1", "services")
    assert services is not None
    _, warnings = operations.create(services, "default", {"metadata": {"name": "web"}})
    assert "Service is not simulated" in warnings[0]
    assert operations.not_simulated == ["Service default/web"]
    assert operations.store.get(services, "default", "web")


def test_the_history_tells_what_enters_and_leaves_a_selection(operations: Operations) -> None:
    mine = select(PODS, "", "spec.nodeName=n1")
    start = operations.store.version
    operations.create(PODS, "default", pod())
    operations.create(PODS, "default", pod("b"))
    operations.bind("default", "a", binding("n1"))
    operations.patch(PODS, "default", "a", MERGE, {"metadata": {"labels": {"x": "y"}}})
    operations.delete(PODS, "default", "a", {"gracePeriodSeconds": 0})
    lines = [change.event(mine, "default") for change in operations.store.since(start)]
    assert [json.loads(line)["type"] for line in lines if line] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_forgotten_version_is_gone() -> None:
    operations = Operations(Store(history=5))
    start = operations.store.version
    for number in range(5):
        operations.create(NODES, "", {"metadata": {"name": f"n{number}"}})
    assert [change.version for change in operations.store.since(start)] == list(range(start + 1, start + 6))
    operations.create(NODES, "", {"metadata": {"name": "one-more"}})
    with pytest.raises(ApiRefusal) as refused:
        operations.store.since(start)
    assert (refused.value.code, refused.value.reason) == (410, "Expired")
    assert len(list(operations.store.since(start + 1))) == 5
