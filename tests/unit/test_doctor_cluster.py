# SPDX-License-Identifier: Apache-2.0
"""The cluster checks of `hami doctor`, by table: what was read of a cluster in, findings out."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hami_framework.cli import doctor_cluster
from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.config.settings import NodeRule, Settings
from hami_framework.doctor import examine
from hami_framework.doctor.cluster import Cluster, Unread
from hami_framework.doctor.configuration import configuration
from hami_framework.doctor.finding import Finding
from hami_framework.doctor.needs import needs
from hami_framework.model import (
    NEUTRAL,
    Capacity,
    ContainerGrant,
    Cost,
    Device,
    DeviceClass,
    DeviceGrant,
    Health,
    Inventory,
    Limit,
    Offer,
    Owner,
    PodGrant,
    ResourceNames,
    VendorInfo,
)
from hami_framework.scheduler import configuration as scheduler_configuration

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
GIB = 1 << 30
Json = dict[str, Any]


def stamp(seconds_ago: float) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def bundle(days: float) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(NOW - timedelta(days=365)).not_valid_after(NOW + timedelta(days=days))
    made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    return base64.b64encode(made.public_bytes(serialization.Encoding.PEM)).decode()


def node(name: str, *, runtime: str = "containerd://2.3.7", kubelet: str = "v1.37.2", slots: str = "10", **annotations: str) -> Json:
    info = {"containerRuntimeVersion": runtime, "kubeletVersion": kubelet}
    return {"metadata": {"name": name, "annotations": annotations}, "status": {"nodeInfo": info, "allocatable": {"acme.com/gpu": slots}}}


def inventory(name: str, *, health: Health | None = None, vendor_state: str = "ready") -> Json:
    device = Device(
        id="GPU-1",
        name="acme-gpu-1",
        index=0,
        device_class=DeviceClass(vendor="acme", model="A1", capacity=Capacity(memory_bytes=16 * GIB)),
        health=health or Health(),
    )
    vendor = VendorInfo(name="acme", resources=(ResourceNames(count="acme.com/gpu"),), state=vendor_state, reason="it hung" if vendor_state != "ready" else "")
    return inventories.to_object(Inventory(node=name, vendors=(vendor,), devices=(device,)))


def grant(uid: str, *, memory_gib: int = 4, on: str = "n1", exclusive: bool = False) -> str:
    offer = Offer(mode="share", cost=Cost(memory_bytes=memory_gib * GIB, core_percent=30), limit=Limit(memory_bytes=memory_gib * GIB), exclusive=exclusive)
    held = DeviceGrant(device_id="GPU-1", device_name="acme-gpu-1", vendor="acme", resource="acme.com/gpu", offer=offer)
    owner = Owner(kind="pod", uid=uid, namespace="d", name=uid)
    return encode_grant(PodGrant(owner=owner, node=on, containers=(ContainerGrant(container="c", devices=(held,)),)))


def pod(
    uid: str, *, text: str | None = None, on: str | None = "n1", volumes: list[Json] | None = None, phase: str = "Running", limit: str = "acme.com/gpu"
) -> Json:
    annotations = {GRANT_ANNOTATION: text} if text else {}
    spec = {"nodeName": on, "containers": [{"name": "c", "resources": {"limits": {limit: "1"}}}], "volumes": volumes or []}
    return {"metadata": {"name": uid, "namespace": "d", "uid": uid, "annotations": annotations}, "spec": spec, "status": {"phase": phase}}


def lease(name: str, *, holder: str = "x", ago: float = 2.0, sign: bool = False) -> Json:
    labels = {"hami.io/sign-of-life": "true"} if sign else {}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"holderIdentity": holder, "renewTime": stamp(ago), "leaseDurationSeconds": 10}}


CA = bundle(300)
LABELS = {"app.kubernetes.io/part-of": "hami-framework"}


def hook(ca: str = CA) -> Json:
    service = {"namespace": "hami-system", "name": "hami-webhook"}
    return {
        "metadata": {"name": "hami", "labels": LABELS},
        "webhooks": [{"name": "w", "failurePolicy": "Fail", "clientConfig": {"caBundle": ca, "service": service}}],
    }


def workload(name: str, tag: str = "0.2.0", ready: int = 1) -> Json:
    template = {"spec": {"containers": [{"name": name, "image": f"registry.example:5000/hami:{tag}"}]}}
    status = {"numberReady": ready, "desiredNumberScheduled": 1, "readyReplicas": ready}
    return {"metadata": {"name": name, "namespace": "hami-system", "labels": LABELS}, "spec": {"replicas": 1, "template": template}, "status": status}


def sound() -> dict[str, Any]:
    """A cluster with which all is well."""
    definition = copy.deepcopy(inventories.CRD) | {"status": {"conditions": [{"type": "Established", "status": "True"}], "storedVersions": ["v1alpha1"]}}
    endpoints = {"metadata": {"name": "w-1", "labels": {"kubernetes.io/service-name": "hami-webhook"}}, "endpoints": [{"conditions": {"ready": True}}]}
    return {
        "version": {"gitVersion": "v1.37.2"},
        "definition": definition,
        "nodes": [node("n1")],
        "inventories": [inventory("n1")],
        "pods": [pod("a", text=grant("a"))],
        "daemonsets": [workload("hami-agent")],
        "deployments": [workload("hami-scheduler"), workload("hami-webhook")],
        "leases": [lease("hami-scheduler", holder="replica-1"), lease("node-n1", holder="n1", sign=True)],
        "webhooks": [hook()],
        "policies": [{"metadata": {"name": "hami-grants", "labels": LABELS}, "spec": {}}],
        "policy bindings": [{"metadata": {"name": "b"}, "spec": {"policyName": "hami-grants", "validationActions": ["Deny"]}}],
        "endpoints": [endpoints],
        "events": [],
        "trial": {"spec": {"containers": [{"resources": {"limits": {NEUTRAL.count: "1", "hami.io/memory-mib": "64"}}}]}},
    }


def findings(answers: dict[str, Any], settings: Settings | None = None, **fields: Any) -> list[Finding]:
    given = {"now": NOW.timestamp(), "server_ahead_seconds": 0.2, "access": {"hami-scheduler: list pods": True}, **fields}
    return examine(Cluster(answers=answers, **given), ResourceCatalog([]), settings)


def test_a_sound_cluster_has_nothing_but_ok() -> None:
    found = findings(sound())
    assert [finding for finding in found if finding.state != "ok"] == []
    assert {"Kubernetes", "CRD", "RBAC", "extender", "webhook", "policies", "agent", "CDI", "resources", "grants", "promises"} <= {one.what for one in found}


def change(**answers: Any) -> Callable[[dict[str, Any]], None]:
    return lambda cluster: cluster.update(answers)


def without_field(cluster: dict[str, Any]) -> None:
    schema = cluster["definition"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["held"]


def asked(leases: list[Json]) -> dict[str, Any]:
    """A cluster whose extenders take the lease when a kube-scheduler beside them asks."""
    beside = workload("hami-scheduler")
    beside["spec"]["template"]["spec"]["containers"][0]["args"] = ["--leader-elect=when-asked"]
    return sound() | {"deployments": [beside, workload("hami-webhook")], "leases": [*leases, lease("node-n1", holder="n1", sign=True)]}


@pytest.mark.parametrize(
    ("leases", "state", "said"),
    [
        pytest.param([], "ok", "nobody has asked", id="no pod yet"),
        pytest.param([lease("hami-scheduler", holder="")], "ok", "nobody has asked", id="given up in good order"),
        pytest.param([lease("hami-scheduler", holder="replica-1")], "ok", "replica-1 leads", id="it leads"),
        pytest.param([lease("hami-scheduler", holder="replica-1", ago=120)], "warn", "is gone", id="it died, and nobody has asked since"),
    ],
)
def test_a_quiet_cluster_needs_no_leader_where_extenders_lead_when_asked(leases: list[Json], state: str, said: str) -> None:
    (line,) = [one for one in findings(asked(leases)) if one.what == "extender"]
    assert (line.state, said in line.found) == (state, True), line


HOST_PATH = [{"name": "dp", "hostPath": {"path": "/var/lib/kubelet/device-plugins/"}}]


@pytest.mark.parametrize(
    ("wrong", "what", "state", "said"),
    [
        pytest.param(change(version={"gitVersion": "v1.28.0"}), "Kubernetes", "fail", "v1.28.0", id="an older Kubernetes"),
        pytest.param(change(nodes=[node("n1", kubelet="v1.38.0")]), "kubelet", "fail", "newer than", id="a kubelet newer than the API server"),
        pytest.param(change(nodes=[node("n1", kubelet="v1.33.9")]), "kubelet", "warn", "behind", id="a kubelet far behind"),
        pytest.param(change(nodes=[node("n1", kubelet="v1.27.1")]), "kubelet", "fail", "CDI", id="a kubelet that passes no CDI names on"),
        pytest.param(change(daemonsets=[workload("hami-agent", "0.1.0")]), "components", "warn", "0.1.0: hami-agent", id="two releases at once"),
        pytest.param(change(daemonsets=[workload("hami-agent", ready=0)]), "components", "fail", "0 of 1", id="no agent is ready"),
        pytest.param(change(definition=Unread("absent", "not found")), "CRD", "fail", "not installed", id="no CRD"),
        pytest.param(without_field, "CRD", "fail", "spec.held", id="an older CRD that prunes"),
        pytest.param(change(leases=[]), "extender", "warn", "no Lease", id="no leader election"),
        pytest.param(change(leases=[], deployments=[]), "extender", "fail", "no scheduler", id="no scheduler"),
        pytest.param(change(leases=[lease("hami-scheduler", ago=120)]), "extender", "fail", "renewed 120 s ago", id="a dead leader"),
        pytest.param(change(leases=[lease("hami-scheduler", holder="")]), "extender", "fail", "no replica leads", id="nobody leads"),
        pytest.param(change(policies=[]), "policies", "warn", "none of ours", id="no policies"),
        pytest.param(change(**{"policy bindings": []}), "policies", "fail", "bound to nothing", id="an unbound policy"),
        pytest.param(
            change(**{"policy bindings": [{"metadata": {"name": "b"}, "spec": {"policyName": "hami-grants", "validationActions": ["Audit"]}}]}),
            "policies",
            "fail",
            "do not deny",
            id="a policy that only watches",
        ),
        pytest.param(change(webhooks=[]), "webhook", "warn", "none of ours", id="no webhook"),
        pytest.param(change(endpoints=[]), "webhook", "fail", "no ready pod", id="a webhook without pods that blocks"),
        pytest.param(change(webhooks=[hook("")]), "webhook certificate", "fail", "empty", id="no CA"),
        pytest.param(change(webhooks=[hook("bm9uc2Vuc2U=")]), "webhook certificate", "fail", "cannot be read", id="a CA that is none"),
        pytest.param(change(webhooks=[hook(bundle(2))]), "webhook certificate", "warn", "expires in 2.0 days", id="a CA that ends soon"),
        pytest.param(change(webhooks=[hook(bundle(-1))]), "webhook certificate", "fail", "expired", id="a CA that has ended"),
        pytest.param(
            change(trial={"spec": {"containers": [{"resources": {"limits": {"hami.io/memory-mib": "64"}}}]}}),
            "admission",
            "warn",
            "did not get",
            id="no mutation",
        ),
        pytest.param(change(trial=Unread("silent", "denied by quota")), "admission", "warn", "denied by quota", id="the trial pod is refused"),
        pytest.param(change(leases=[lease("hami-scheduler"), lease("node-n1", ago=95, sign=True)]), "agent", "fail", "silent for 95 s", id="a silent agent"),
        pytest.param(change(leases=[lease("hami-scheduler"), lease("node-n1", holder="", sign=True)]), "agent", "warn", "stopped", id="a stopped agent"),
        pytest.param(change(leases=[lease("hami-scheduler")]), "agent", "warn", "no sign of life", id="an agent of the previous release"),
        pytest.param(change(nodes=[node("n1", runtime="containerd://1.6.20")]), "CDI", "fail", "knows no CDI", id="a runtime without CDI"),
        pytest.param(change(nodes=[node("n1", runtime="containerd://1.7.2")]), "CDI", "warn", "switched off", id="CDI to be switched on"),
        pytest.param(change(nodes=[node("n1", runtime="docker://27.0")]), "CDI", "warn", "not known", id="an unknown runtime"),
        pytest.param(
            change(inventories=[inventory("n1") | {"apiVersion": "hami.io/v2"}]), "inventory", "fail", "hami.io/v2", id="an inventory of another version"
        ),
        pytest.param(change(inventories=[inventory("n1", vendor_state="quarantined")]), "vendor", "fail", "it hung", id="a quarantined vendor"),
        pytest.param(
            change(inventories=[inventory("n1", health=Health(state="unhealthy", reason="ECC"))]), "devices", "warn", "acme-gpu-1 (ECC)", id="a sick device"
        ),
        pytest.param(
            lambda cluster: cluster["pods"].append(pod("plug", text=grant("plug"), volumes=HOST_PATH)),
            "device plugins",
            "warn",
            "d/plug (pod)",
            id="a foreign plugin",
        ),
        pytest.param(change(nodes=[node("n1", **{"hami.io/node-handshake": "x"})]), "device plugins", "warn", "HAMi's own", id="HAMi is still there"),
        pytest.param(
            lambda cluster: cluster["nodes"].append(node("n2")), "resources", "fail", "acme.com/gpu is offered without", id="our names on a node without agent"
        ),
        pytest.param(change(nodes=[node("n1", slots="0")]), "resources", "fail", "none of our names", id="published but not registered"),
        pytest.param(lambda cluster: cluster["pods"].append(pod("b")), "grants", "fail", "1 bound pods asked", id="bound by somebody else"),
        pytest.param(lambda cluster: cluster["pods"].append(pod("b", text=grant("a"))), "grants", "fail", "copied or forged", id="a copied grant"),
        pytest.param(lambda cluster: cluster["pods"].append(pod("b", text="{}")), "grants", "fail", "no version", id="a damaged grant"),
        pytest.param(
            lambda cluster: cluster["pods"].append(pod("b", text=grant("b", memory_gib=13))), "promises", "fail", "17.0 GiB", id="memory promised twice"
        ),
        pytest.param(
            lambda cluster: cluster["pods"].append(pod("b", text=grant("b", exclusive=True))),
            "promises",
            "fail",
            "held exclusively, and by 2",
            id="not exclusive",
        ),
        pytest.param(change(nodes=[]), "resources", "ok", "", id="nodes that were not listed accuse nobody"),
        pytest.param(change(inventories=[inventory("n1"), inventory("gone")]), "leftovers", "warn", "nodes that are gone", id="an inventory without node"),
        pytest.param(
            lambda cluster: cluster["leases"].append(lease("node-gone", sign=True)), "leftovers", "warn", "signs of life", id="a sign of life without node"
        ),
        pytest.param(change(pods=Unread("forbidden", "pods is forbidden")), "not checked", "warn", "pods: pods is forbidden", id="partial permissions"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(wrong: Callable[[dict[str, Any]], None], what: str, state: str, said: str) -> None:
    cluster = sound()
    wrong(cluster)
    found = [finding for finding in findings(cluster) if finding.what == what and finding.state == state and said in finding.found]
    assert found, [finding for finding in findings(cluster) if finding.state != "ok"]
    assert all(finding.do for finding in found if finding.state != "ok")


@pytest.mark.parametrize("name", sorted(sound()))
@pytest.mark.parametrize("why", ["forbidden", "absent", "silent"])
def test_whatever_cannot_be_read_is_a_finding_and_no_crash(name: str, why: Any) -> None:
    found = findings(sound() | {name: Unread(why, "no")})
    assert found
    if why == "forbidden":
        assert not [finding for finding in found if finding.state == "fail"], "what may not be read is not known to be broken"


def test_permissions_and_clock() -> None:
    denied = findings(sound(), access={"hami-scheduler: create pods/binding": False, "hami-agent: list pods": True})
    assert ("RBAC", "fail", "it may not create pods/binding") in [(one.what, one.state, one.found) for one in denied]
    unknown = findings(sound(), access={"hami-agent: list pods": Unread("forbidden", "no")})
    assert [one.state for one in unknown if one.what == "RBAC"] == ["warn"]
    for ahead, state in ((0.4, "ok"), (12.0, "warn"), (-90.0, "fail")):
        assert [one.state for one in findings(sound(), server_ahead_seconds=ahead) if one.what == "clock"][:1] == [state]


def test_overcommitment_that_the_operator_allows_is_no_fault() -> None:
    cluster = sound()
    cluster["pods"].append(pod("b", text=grant("b", memory_gib=13)))
    allowed = findings(cluster, Settings(nodes=(NodeRule(match="n*", memory_overcommit=2.0),)))
    assert [one.state for one in allowed if one.what == "promises"] == ["ok"]
    assert [one.where for one in findings(cluster, Settings(nodes=(NodeRule(match="gpu-*"),))) if one.what == "settings"] == ["nodes[0]"]


def asked_for(**answers: Any) -> set[str]:
    return {f"{account}: {need}" for account, need in needs(Cluster(answers=sound() | answers))}


def with_arguments(name: str, *arguments: str) -> Json:
    made = workload(name)
    made["spec"]["template"]["spec"]["containers"][0]["args"] = list(arguments)
    return made


def test_permissions_are_asked_of_what_is_installed() -> None:
    wanted = asked_for()
    assert {
        "hami-agent: create leases.coordination.k8s.io", "hami-agent: patch nodeinventories/status.hami.io",
        "hami-scheduler: update leases.coordination.k8s.io", "hami-scheduler: patch pods/status", "hami-scheduler: create pods/eviction",
        "hami-webhook: list resourcequotas",
    } <= wanted  # fmt: skip
    assert not any("secrets" in need or "hami-agent: create pods/eviction" in need for need in wanted)
    assert not any(need.startswith("hami-agent") for need in asked_for(daemonsets=[])), "host services have identities of their own"
    assert {"hami-agent: list pods", "hami-scheduler: create pods/binding"} <= asked_for(daemonsets=[], deployments=[], inventories=[]), "nothing is installed"
    assert "hami-agent: create pods/eviction" in asked_for(daemonsets=[with_arguments("hami-agent", "--on-bypass=evict")])


def test_a_webhook_that_makes_its_certificates_needs_its_own_secrets() -> None:
    keeps = with_arguments("hami-webhook", "--secret=tls-a", "--also-server=tls-b=hami-scheduler", "--port=9443")
    wanted = asked_for(deployments=[keeps])
    assert {f"hami-webhook: update secrets {name}" for name in ("tls-a", "tls-b", "hami-authorities")} <= wanted
    assert "hami-webhook: patch mutatingwebhookconfigurations.admissionregistration.k8s.io hami-webhook" in wanted
    given = with_arguments("hami-webhook", "--tls-cert-file=/x", "--tls-key-file=/y")
    assert not any("secrets" in need for need in asked_for(deployments=[given]))


def test_waiting_pods_are_told_with_our_last_word() -> None:
    cluster = sound()
    cluster["pods"] += [pod("w1", on=None, phase="Pending"), pod("w2", on=None, phase="Pending")]
    cluster["events"] = [
        {"metadata": {}, "reason": "DevicesUnavailable", "message": "memory", "involvedObject": {"uid": uid}, "lastTimestamp": stamp(5)}
        for uid in ("w1", "w2", "a")
    ]
    (told,) = [one for one in findings(cluster) if one.what == "waiting pods"]
    assert told.found == "2 × DevicesUnavailable: memory"
    assert told.where == "d/w1, d/w2"


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        pytest.param({}, "ok", "is asked for 2", id="sound"),
        pytest.param({"extenders": []}, "fail", "no extender manages", id="no extender"),
        pytest.param({"kind": "Pod"}, "fail", "no KubeSchedulerConfiguration", id="another file"),
    ],
)
def test_scheduler_configuration(change: Json, state: str, said: str) -> None:
    managed = [{"name": NEUTRAL.count, "ignoredByScheduler": False}, {"name": "acme.com/gpu"}]
    extender = {
        "urlPrefix": "u",
        "filterVerb": "filter",
        "prioritizeVerb": "prioritize",
        "bindVerb": "bind",
        "nodeCacheCapable": True,
        "managedResources": managed,
    }
    document = {"kind": "KubeSchedulerConfiguration", "percentageOfNodesToScore": 100, "extenders": [extender], **change}
    assert any(one.state == state and said in one.found for one in configuration(document, {NEUTRAL.count, "acme.com/gpu"}, "f"))
    if not change:
        lacking = list(configuration(document, {NEUTRAL.count, "acme.com/npu"}, "f"))
        assert [one.state for one in lacking] == ["fail"]
        faulty = list(configuration(document, {NEUTRAL.count}, "f", ["line 3: weight: is 1"]))
        assert [(one.state, one.found) for one in faulty] == [("fail", "line 3: weight: is 1")]


@pytest.mark.parametrize(
    ("weight", "authority", "said"),
    [
        pytest.param(151, "decisive", [], id="decisive as it is"),
        pytest.param(1, "decisive", ["weight: is 1"], id="too light to decide"),
        pytest.param(1, None, [], id="advisory, without settings that say so"),
        pytest.param(7, None, ["weight: is 7"], id="neither"),
    ],
)
def test_a_scheduler_configuration_is_held_to_all_that_is_written(weight: int, authority: Any, said: list[str]) -> None:
    catalog = ResourceCatalog([("acme", ResourceNames(count="acme.com/gpu"))], vendors=["acme"])
    document = scheduler_configuration.whole("mine", scheduler_configuration.extender(catalog, "http://127.0.0.1:9480", weight), lease_namespace="hami-system")
    found = doctor_cluster._faults(yaml.safe_dump(document), catalog, authority)
    assert len(found) == len(said)
    assert all(words in fault and fault.startswith("line ") for words, fault in zip(said, found, strict=True))
