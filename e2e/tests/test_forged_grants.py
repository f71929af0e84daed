# SPDX-License-Identifier: Apache-2.0
"""Nobody forges a grant, an inventory or a sign of life, whatever way he takes; those whose they are may write them.

The forger is the cluster's administrator: what he is refused, everybody is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from e2e.harness.admission import NAMESPACE, Admission, pod
from e2e.lab import Lab
from hami_framework.codec.agent_status import FORMATS, AgentFacts, AgentStatus, ready, to_status
from hami_framework.kube.client import JSON_PATCH, MERGE_PATCH, KubeClient, path
from hami_framework.kube.errors import ApiError

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(120)]

Json = dict[str, Any]
GRANT = {"hami.io/grant": '{"version":"1.0"}'}
STRATEGIC, APPLY = "application/strategic-merge-patch+json", "application/apply-patch+yaml"
PODS = path("pods", namespace="default")
EPHEMERAL = {"name": "debug", "image": "x", "terminationMessagePolicy": "File", "imagePullPolicy": "Never"}
BOTH_BINDINGS = pytest.mark.parametrize("address", ["pods/binding", "bindings"])


@pytest.fixture(scope="module")
def admission() -> Iterator[Admission]:
    with Lab.up(f"forged-{os.getpid()}", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES"), node=False) as lab:
        admission = Admission(lab, ["webhook.failurePolicy=Ignore"])
        admission.install()
        for node in ("n1", "n2"):
            admission.admin.create("/api/v1/nodes", {"metadata": {"name": node}, "spec": {"taints": [{"key": "none", "effect": "NoSchedule"}]}})
        yield admission
        admission.close()


@pytest.fixture
def victim(admission: Admission, request: pytest.FixtureRequest) -> Iterator[str]:
    """A pod that waits, by name; removed afterwards."""
    name = f"victim-{abs(hash(request.node.name)) % 10**8}"
    admission.create(pod(name, {}, schedulerName="nobody"))
    yield name
    admission.admin.delete(path("pods", namespace="default", name=name), grace_seconds=0)


def at(name: str, subresource: str | None = None) -> str:
    return path("pods", namespace="default", name=name, subresource=subresource)


def forbidden(act: Callable[[], object], who: str = "scheduler extender") -> str:
    """The API server refuses it, by one of our policies."""
    with pytest.raises(ApiError) as caught:
        act()
    assert caught.value.status == 403, caught.value
    assert "ValidatingAdmissionPolicy 'hami-" in caught.value.message, caught.value
    assert who in caught.value.message
    return caught.value.message


# -- grants on pods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{"name": "forged"}, {"generateName": "forged-"}], ids=["name", "generateName"])
def test_a_pod_is_not_created_with_a_grant(admission: Admission, metadata: Json) -> None:
    message = forbidden(lambda: admission.create(pod("x", {}) | {"metadata": {**metadata, "annotations": GRANT}}))
    assert "remove it from the pod" in message
    scheduler = admission.service_account("hami-scheduler")
    with pytest.raises(ApiError):
        admission.create(pod("x", {}) | {"metadata": {**metadata, "annotations": GRANT}}, client=scheduler)


def test_not_even_an_empty_grant(admission: Admission) -> None:
    forbidden(lambda: admission.create(pod("x", {}) | {"metadata": {"name": "empty", "annotations": {"hami.io/grant": ""}}}))


def test_a_controller_s_template_forges_nothing_and_says_why(admission: Admission) -> None:
    template = {"metadata": {"labels": {"app": "forged"}, "annotations": GRANT}, "spec": pod("x", {})["spec"]}
    body = {"metadata": {"name": "forged"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "forged"}}, "template": template}}
    admission.admin.create(path("replicasets", group="apps", namespace="default"), body)
    events = path("events", namespace="default")

    def told() -> bool:
        found = admission.admin.list(events, {"fieldSelector": "involvedObject.name=forged,reason=FailedCreate"})["items"]
        return any("hami.io/grant is written by" in event["message"] for event in found)

    admission.until("the ReplicaSet's event", told, 20)
    assert admission.admin.list(PODS, {"labelSelector": "app=forged"})["items"] == []


PATCHES = [
    pytest.param(None, {"metadata": {"annotations": GRANT}}, MERGE_PATCH, id="merge patch"),
    pytest.param(None, {"metadata": {"annotations": GRANT}}, STRATEGIC, id="strategic merge patch"),
    pytest.param(None, [{"op": "add", "path": "/metadata/annotations", "value": GRANT}], JSON_PATCH, id="JSON patch"),
    pytest.param("status", {"metadata": {"annotations": GRANT}}, MERGE_PATCH, id="pods/status"),
    pytest.param("status", {"metadata": {"annotations": GRANT}, "status": {"message": "x"}}, STRATEGIC, id="pods/status beside a status"),
]


@pytest.mark.parametrize(("subresource", "body", "kind"), PATCHES)
def test_a_grant_is_not_patched_in(admission: Admission, victim: str, subresource: str | None, body: object, kind: str) -> None:
    forbidden(lambda: admission.admin.patch(at(victim, subresource), body, kind))
    assert "hami.io/grant" not in admission.admin.get(at(victim))["metadata"].get("annotations", {})


def test_a_grant_is_not_applied(admission: Admission, victim: str) -> None:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": victim, "annotations": GRANT}}
    forbidden(lambda: admission.admin.patch(at(victim), body, APPLY, {"fieldManager": "mallory", "force": "true"}))


@pytest.mark.parametrize("subresource", [None, "status", "ephemeralcontainers", "resize"])
def test_a_grant_is_not_put_in(admission: Admission, victim: str, subresource: str | None) -> None:
    """A subresource that ignores annotations may take the rest; the grant is not there in either case."""
    body = admission.admin.get(at(victim))
    body["metadata"].setdefault("annotations", {}).update(GRANT)
    if subresource == "ephemeralcontainers":
        body["spec"]["ephemeralContainers"] = [EPHEMERAL]
    if subresource in ("ephemeralcontainers", "resize"):
        with suppress(ApiError):
            admission.admin.replace(at(victim, subresource), body)
    else:
        forbidden(lambda: admission.admin.replace(at(victim, subresource), body))
    assert "hami.io/grant" not in admission.admin.get(at(victim))["metadata"].get("annotations", {})


def test_the_node_s_own_kubelet_writes_no_grant(admission: Admission) -> None:
    admission.create(pod("on-n1", {}, nodeName="n1"))
    kubelet = admission.user("system:node:n1", "system:nodes")
    forbidden(lambda: kubelet.patch(at("on-n1", "status"), {"metadata": {"annotations": GRANT}}, STRATEGIC))
    kubelet.patch(at("on-n1", "status"), {"status": {"message": "its status is its own"}}, STRATEGIC)
    admission.admin.delete(at("on-n1"), grace_seconds=0)


# -- grants in bindings -----------------------------------------------------------------------------------------


def bind(client: KubeClient, address: str, name: str, annotations: Json) -> object:
    body = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"},
    }
    return client.create(path("bindings", namespace="default") if address == "bindings" else at(name, "binding"), body)


@BOTH_BINDINGS
def test_nobody_else_binds_with_a_grant(admission: Admission, victim: str, address: str) -> None:
    forbidden(lambda: bind(admission.admin, address, victim, GRANT))
    forbidden(lambda: bind(admission.user("system:kube-scheduler"), "pods/binding", victim, GRANT))
    assert not admission.admin.get(at(victim))["spec"].get("nodeName")


@BOTH_BINDINGS
def test_other_schedulers_bind_without_one(admission: Admission, victim: str, address: str) -> None:
    bind(admission.admin, address, victim, {"example.com/mine": "1"})
    assert admission.admin.get(at(victim))["spec"]["nodeName"] == "n1"


def test_the_extender_binds_with_a_grant_and_then_it_stays_as_it_is(admission: Admission, victim: str) -> None:
    bind(admission.service_account("hami-scheduler"), "pods/binding", victim, GRANT)
    assert admission.admin.get(at(victim))["metadata"]["annotations"] == GRANT
    forbidden(lambda: admission.admin.patch(at(victim), {"metadata": {"annotations": {"hami.io/grant": "other"}}}))
    forbidden(lambda: admission.admin.patch(at(victim), {"metadata": {"annotations": {"hami.io/grant": None}}}))
    forbidden(lambda: admission.admin.patch(at(victim, "status"), {"metadata": {"annotations": None}}))
    admission.admin.patch(at(victim), {"metadata": {"labels": {"other": "changes"}, "annotations": {"example.com/note": "1"}}})
    admission.admin.patch(at(victim, "status"), {"status": {"message": "go through"}})
    evicted = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": victim, "namespace": "default"}}
    admission.admin.create(at(victim, "eviction"), evicted, {"dryRun": "All"})


# -- inventories ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agents(admission: Admission) -> dict[str, KubeClient]:
    """The agents of two nodes, by the tokens that kubelet mounts; and others that are none."""
    clients: dict[str, KubeClient] = {"": admission.service_account("hami-agent")}
    for node in ("n1", "n2"):
        body = pod(f"agent-{node}", {}, serviceAccountName="hami-agent", nodeName=node)
        clients[node] = admission.service_account("hami-agent", pod=admission.create(body, NAMESPACE))
        clients[f"host service of {node}"] = admission.user(f"system:hami-agent:{node}", "system:hami-agents")
    for kind, scope in (("ClusterRole", ""), ("Role", NAMESPACE)):
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": f"{kind}Binding",
            "metadata": {"name": "host-services", **({"namespace": scope} if scope else {})},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "hami-agent"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:hami-agents"}],
        }
        admission.lab.apply(binding)
    return clients


def inventory(node: str) -> Json:
    return {"apiVersion": "hami.io/v1alpha1", "kind": "NodeInventory", "metadata": {"name": node}, "spec": {"generation": 1}}


INVENTORIES = path("nodeinventories", group="hami.io", version="v1alpha1")


def refuse_changes(client: KubeClient, place: str, stored: Json, who: str) -> None:
    """Neither put nor patched."""
    forbidden(lambda: client.replace(place, stored), who)


def test_an_agent_writes_its_own_node_s_inventory(admission: Admission, agents: dict[str, KubeClient]) -> None:
    for name in ("n1", "host service of n2"):
        node = name[-2:]
        made = agents[name].create(INVENTORIES, inventory(node))
        agents[name].replace(f"{INVENTORIES}/{node}", made | {"spec": {"generation": 2}})
        assert admission.admin.get(f"{INVENTORIES}/{node}")["spec"]["generation"] == 2
        admission.admin.delete(f"{INVENTORIES}/{node}")  # a node that is gone leaves one behind


def test_a_status_is_written_by_the_same_agent_alone(admission: Admission, agents: dict[str, KubeClient]) -> None:
    agents["n1"].create(INVENTORIES, inventory("n1"))
    status = f"{INVENTORIES}/n1/status"
    now = "2026-01-01T00:00:00Z"
    condition = ready("Registered", "as it should be", holds=True, before={}, now=now)
    try:
        for who in ("n1", "host service of n1"):
            facts = AgentFacts(version=who, state="running", started=now, formats=FORMATS)
            said = {"status": to_status(AgentStatus(agent=facts, cdi="applied", conditions=(condition,)))}
            agents[who].patch(status, said)
            assert admission.admin.get(f"{INVENTORIES}/n1")["status"] == said["status"], "the definition drops a field"
        admission.lab.kubectl("wait", "--for=condition=Ready", "nodeinventory/n1", "--timeout=5s")
        columns = admission.lab.kubectl("get", "nodeinventories", "n1").stdout.splitlines()
        assert [word in line for word, line in zip(("READY", "True"), columns, strict=True)] == [True, True]
        for stranger in (agents["n2"], agents[""], agents["host service of n2"], admission.admin):
            forbidden(partial(stranger.patch, status, said), "written by that node's agent alone")
    finally:
        admission.admin.delete(f"{INVENTORIES}/n1")


@pytest.mark.parametrize("who", ["n2", "", "host service of n2", "administrator"])
def test_nobody_else_writes_it(admission: Admission, agents: dict[str, KubeClient], who: str) -> None:
    client = agents.get(who, admission.admin)
    message = forbidden(lambda: client.create(INVENTORIES, inventory("n1")), "written by that node's agent alone")
    assert ("whose token names no node" in message) == (who == "")
    stored = agents["n1"].create(INVENTORIES, inventory("n1"))
    try:
        refuse_changes(client, f"{INVENTORIES}/n1", stored | {"spec": {"generation": 9}}, "written by that node's agent alone")
        if client is admission.admin:
            forbidden(lambda: client.patch(f"{INVENTORIES}/n1", {"spec": {"generation": 9}}), "written by that node's agent alone")
    finally:
        admission.admin.delete(f"{INVENTORIES}/n1")


# -- signs of life ----------------------------------------------------------------------------------------------

LEASES = path("leases", group="coordination.k8s.io", namespace=NAMESPACE)


def lease(name: str, holder: str = "n1", **labels: str) -> Json:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "labels": {key.replace("_", "-"): value for key, value in labels.items()}},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 40},
    }


@pytest.mark.parametrize("who", ["n1", "host service of n1"])
def test_an_agent_gives_its_own_sign_of_life(admission: Admission, agents: dict[str, KubeClient], who: str) -> None:
    made = agents[who].create(LEASES, lease("node-n1"))
    agents[who].replace(f"{LEASES}/node-n1", made | {"spec": {"holderIdentity": ""}})
    admission.admin.delete(f"{LEASES}/node-n1")


@pytest.mark.parametrize("who", ["n2", "", "host service of n2", "administrator", "hami-scheduler"])
def test_nobody_gives_it_for_another(admission: Admission, agents: dict[str, KubeClient], who: str) -> None:
    client = admission.service_account("hami-scheduler") if who == "hami-scheduler" else agents.get(who, admission.admin)
    forbidden(lambda: client.create(LEASES, lease("node-n1")), "sign of life of a node")
    stored = agents["n1"].create(LEASES, lease("node-n1"))
    try:
        refuse_changes(client, f"{LEASES}/node-n1", stored | {"spec": {"holderIdentity": "n1"}}, "sign of life of a node")
    finally:
        admission.admin.delete(f"{LEASES}/node-n1")


def test_a_label_makes_no_sign_of_life(admission: Admission) -> None:
    forged = lease("innocent")
    forged["metadata"]["labels"] = {"hami.io/sign-of-life": "true"}
    forbidden(lambda: admission.admin.create(LEASES, forged), "sign of life of a node")


def test_even_the_extender_writes_no_grant_by_a_status(admission: Admission, victim: str) -> None:
    scheduler = admission.service_account("hami-scheduler")
    forbidden(lambda: scheduler.patch(at(victim, "status"), {"metadata": {"annotations": GRANT}}, STRATEGIC))
    condition = {"type": "hami.io/DevicesFreed", "status": "True"}
    scheduler.patch(at(victim, "status"), {"status": {"conditions": [condition]}}, STRATEGIC)
    found = admission.admin.get(at(victim))
    assert "hami.io/grant" not in found["metadata"].get("annotations", {})
    assert any(one["type"] == "hami.io/DevicesFreed" for one in found["status"]["conditions"])


@pytest.mark.parametrize("leader", ["hami-scheduler", "hami-webhook"])
def test_only_a_component_s_own_replicas_lead(admission: Admission, agents: dict[str, KubeClient], leader: str) -> None:
    with suppress(ApiError):
        admission.admin.delete(f"{LEASES}/{leader}")
    other = "hami-webhook" if leader == "hami-scheduler" else "hami-scheduler"
    strangers = [admission.admin, agents["n1"], agents["host service of n1"], admission.service_account(other)]
    for stranger in strangers:
        with pytest.raises(ApiError) as caught:
            stranger.create(LEASES, lease(leader, "mallory"))
        assert caught.value.status == 403, caught.value
    forbidden(lambda: admission.admin.create(LEASES, lease(leader, "mallory")), f"service account {leader} alone")
    own = admission.service_account(leader)
    made = own.create(LEASES, lease(leader, "a replica"))
    try:
        made = own.replace(f"{LEASES}/{leader}", made | {"spec": {"holderIdentity": "another replica"}})
        stolen = made | {"spec": {"holderIdentity": "mallory"}}
        forbidden(lambda: admission.admin.replace(f"{LEASES}/{leader}", stolen), "which replica leads")
        forbidden(lambda: agents["n1"].replace(f"{LEASES}/{leader}", stolen), f"Lease {leader}")
    finally:
        admission.admin.delete(f"{LEASES}/{leader}")


@pytest.mark.parametrize(
    ("name", "words"),
    # Of a leader's Lease two policies refuse it, and either may be quoted.
    [("hami-scheduler", "Lease hami-scheduler"), ("hami-webhook", "Lease hami-webhook"), ("anything", "none of an agent's")],
)
def test_an_agent_takes_no_leader_s_lease(agents: dict[str, KubeClient], name: str, words: str) -> None:
    forbidden(lambda: agents["n1"].create(LEASES, lease(name)), words)


def test_other_leases_are_nobody_s_business(admission: Admission) -> None:
    admission.service_account("hami-scheduler").create(LEASES, lease("hami-scheduler", "x"))
    admission.admin.create(path("leases", group="coordination.k8s.io", namespace="default"), lease("node-n1"))
