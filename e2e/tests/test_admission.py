# SPDX-License-Identifier: Apache-2.0
"""The webhook behind a real API server, installed by the chart, with its service account's rights: what pods become, and what is refused.

Its certificates follow each other while pods are created: an authority lasts a minute here, a certificate a few seconds.
"""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.harness.admission import CONFIGURATION, NAMESPACE, PORT, Admission, pod
from e2e.lab import Lab
from hami_framework.certificates.making import split
from hami_framework.kube.client import JSON_PATCH, path
from hami_framework.kube.errors import ApiError

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(180)]

Json = dict[str, Any]
SHARE = {"nvidia.com/gpumem": 3000}
DAY = 86400
LIVES = {"--authority-days": 60 / DAY, "--certificate-days": 12 / DAY, "--overlap-days": 5 / DAY, "--look-seconds": 0.5}
SHORT_LIVES = tuple(word for flag, value in LIVES.items() for word in (flag, str(value)))
FLAGS = ("--scheduler-name", "hami-scheduler", "--runtime-class", "nvidia=nvidia")


@pytest.fixture(scope="module")
def admission() -> Iterator[Admission]:
    with Lab.up(f"admission-{os.getpid()}", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES"), node=False) as lab:
        admission = Admission(lab, ["webhook.failurePolicy=Fail"])
        admission.install()
        lab.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"})
        admission.start_webhook(*FLAGS)
        admission.until("the API server to believe the webhook", lambda: mutated(admission), 20)
        yield admission
        admission.close()


def limits(created: Json) -> Json:
    found: Json = created["spec"]["containers"][0]["resources"]["limits"]
    return found


def mutated(admission: Admission, **options: Any) -> bool:
    """A pod that asks for an amount only gets its count. An API server that cannot call the webhook counts as "no"."""
    try:
        created = admission.create(pod("probe", SHARE), dry_run=True, **options)
    except ApiError as error:
        if "failed calling webhook" in error.message:
            return False
        raise
    return limits(created).get("nvidia.com/gpu") == "1"


def reviews(admission: Admission) -> float:
    lines = admission.plain("/metrics").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("hami_webhook_reviews_total{"))


def refused(admission: Admission, body: Json, **options: Any) -> str:
    with pytest.raises(ApiError) as caught:
        admission.create(body, dry_run=True, **options)
    assert caught.value.status == 403
    assert 'admission webhook "pods.hami.io" denied the request' in caught.value.message
    return caught.value.message


# -- what pods become -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{"name": "a"}, {"generateName": "a-"}], ids=["name", "generateName"])
def test_amounts_alone_get_their_count_scheduler_and_runtime(admission: Admission, metadata: Json) -> None:
    created = admission.create(pod("", SHARE) | {"metadata": metadata}, dry_run=True)
    assert limits(created) == {"nvidia.com/gpumem": "3k", "nvidia.com/gpu": "1"}
    assert created["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert (created["spec"]["schedulerName"], created["spec"]["runtimeClassName"]) == ("hami-scheduler", "nvidia")
    assert any("nvidia.com/gpu: 1 was added" in warning for warning in admission.warnings)


def test_what_the_pod_says_itself_stays(admission: Admission) -> None:
    admission.lab.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "mine"}, "handler": "mine"})
    created = admission.create(pod("a", SHARE, schedulerName="volcano", runtimeClassName="mine"), dry_run=True)
    assert (created["spec"]["schedulerName"], created["spec"]["runtimeClassName"]) == ("volcano", "mine")
    assert any("spec.schedulerName volcano was kept" in warning for warning in admission.warnings)


def test_the_api_server_asks_only_about_pods_that_name_our_resources(admission: Admission) -> None:
    admission.create(pod("a", SHARE), dry_run=True)
    before = reviews(admission)
    admission.create(pod("a", {"cpu": 1, "memory": "1Gi", "example.com/other": 1}), dry_run=True)
    admission.create(pod("a", SHARE), "kube-system", dry_run=True)
    admission.create(pod("a", SHARE), NAMESPACE, dry_run=True)
    assert reviews(admission) == before
    init = pod("a", {}, initContainers=[{"name": "i", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "1"}}}])
    admission.create(init, dry_run=True)
    assert reviews(admission) > before


def test_a_pod_that_no_node_will_take_is_created_and_its_author_told(admission: Admission) -> None:
    admission.create(pod("a", {"nvidia.com/gpu": 1, "nvidia.com/gpucores": 300}), dry_run=True)
    assert any("no node will take this pod" in warning and "from 1 to 100" in warning for warning in admission.warnings)


# -- what is refused --------------------------------------------------------------------------------------------


def test_a_share_in_a_privileged_container_is_refused_a_whole_device_is_not(admission: Admission) -> None:
    privileged = {"securityContext": {"privileged": True}}
    message = refused(admission, pod("a", SHARE, container=privileged))
    assert "cannot be held to a share" in message
    assert "leave securityContext.privileged out, or ask for whole devices" in message
    admission.create(pod("a", {"nvidia.com/gpu": 1}, container=privileged), dry_run=True)


def test_the_quota_is_told_with_figures_memory_times_count(admission: Admission) -> None:
    namespace = "team"
    admission.lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    hard = {"limits.nvidia.com/gpumem": "20000", "requests.nvidia.com/gpu": "3"}
    admission.lab.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus", "namespace": namespace}, "spec": {"hard": hard}})
    account = path("serviceaccounts", namespace=namespace, name="default")
    admission.until("the service account", lambda: admission.lab.kubectl("get", "--raw", account, check=False).returncode == 0, 20)
    two = {"nvidia.com/gpu": 2, "nvidia.com/gpumem": 8000}

    def status_known() -> bool:
        quota = admission.admin.get(path("resourcequotas", namespace=namespace, name="gpus"))
        return "requests.nvidia.com/gpu" in quota.get("status", {}).get("used", {})

    admission.until("Kubernetes' own count of the quota", status_known, 20)
    admission.create(pod("first", two), namespace)
    message = refused(admission, pod("second", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 8000}), namespace=namespace)
    assert "quota gpus: limits.nvidia.com/gpumem: the pod asks for 8000 MiB, and 15.6 GiB of 19.5 GiB are taken in this namespace" in message
    admission.create(pod("third", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 4000}), namespace, dry_run=True)
    with pytest.raises(ApiError, match=r"exceeded quota: gpus, requested: requests\.nvidia\.com/gpu=2, used: requests\.nvidia\.com/gpu=2"):
        admission.create(pod("fourth", {"nvidia.com/gpu": 2, "nvidia.com/gpumem": 1000}), namespace, dry_run=True)
    admission.admin.delete(path("pods", namespace=namespace, name="first"), grace_seconds=0)


# -- certificates -----------------------------------------------------------------------------------------------


def bundle(admission: Admission) -> str:
    return base64.b64decode(admission.admin.get(CONFIGURATION)["webhooks"][0]["clientConfig"].get("caBundle", "")).decode()


def test_an_upgrade_of_the_chart_leaves_the_certificates_alone(admission: Admission) -> None:
    before = bundle(admission)
    admission.render(["webhook.failurePolicy=Fail", "webhook.timeoutSeconds=4"])
    assert bundle(admission) == before
    assert admission.admin.get(path("secrets", namespace=NAMESPACE, name="hami-webhook-tls"))["data"]["tls.crt"]
    assert mutated(admission)


def test_a_bundle_that_somebody_emptied_is_written_again(admission: Admission) -> None:
    admission.admin.patch(CONFIGURATION, [{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}], JSON_PATCH)
    admission.until("the bundle", lambda: bool(bundle(admission)), 30)
    admission.until("the API server to go by it", lambda: mutated(admission), 10)


def test_a_lost_authority_costs_no_review(admission: Admission) -> None:
    before = bundle(admission)
    admission.admin.patch(path("secrets", namespace=NAMESPACE, name="hami-authorities"), {"data": None})
    admission.until("the successor to be published", lambda: len(split(bundle(admission))) == 2, 30)
    assert before in bundle(admission)
    assert mutated(admission)


def test_the_webhook_writes_nobody_else_s_configuration_or_secret(admission: Admission) -> None:
    webhook = admission.service_account("hami-webhook")
    other = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "other"}, "webhooks": []}
    admission.lab.apply(other)
    admission.lab.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", "namespace": NAMESPACE}})
    for place in (CONFIGURATION.replace("hami-webhook", "other"), path("secrets", namespace=NAMESPACE, name="other")):
        with pytest.raises(ApiError, match="forbidden"):
            webhook.patch(place, {"metadata": {"labels": {"x": "y"}}})
        with pytest.raises(ApiError, match="forbidden"):
            webhook.get(place)


def begin_anew(admission: Admission, *flags: str) -> None:
    """The webhook with certificates that follow each other within seconds; those it has are good for too long."""
    admission.stop_webhook()
    admission.admin.patch(path("secrets", namespace=NAMESPACE, name="hami-authorities"), {"data": None})
    admission.admin.patch(path("secrets", namespace=NAMESPACE, name="hami-webhook-tls"), {"data": None})
    admission.admin.patch(CONFIGURATION, [{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}], JSON_PATCH)
    admission.start_webhook(*FLAGS, *SHORT_LIVES, *flags)


def test_rotation_while_pods_are_created_costs_not_one(admission: Admission) -> None:
    """failurePolicy is Fail: one handshake with a certificate that is not believed would fail a creation."""
    begin_anew(admission)
    admission.until("the API server to believe the webhook", lambda: mutated(admission), 20)
    shown, bundles, created = set[str](), set[str](), 0
    until = time.monotonic() + 62
    while time.monotonic() < until:
        assert mutated(admission), f"after {created} pods"
        created += 1
        if created % 10 == 0:
            shown.add(admission.served_certificate())
            bundles.add(bundle(admission))
        time.sleep(0.05)
    assert len(shown) >= 4, "certificates of 12 s follow each other every 8 s"
    assert {len(split(text)) for text in bundles} >= {1, 2}, "authorities overlapped"
    assert len({split(text)[0] for text in bundles}) >= 2, "a second authority signs"
    assert created > 200
    admission.stop_webhook()
    admission.start_webhook(*FLAGS)


def keeper(admission: Admission) -> str:
    """Which replica leads."""
    lease = admission.admin.get(path("leases", group="coordination.k8s.io", namespace=NAMESPACE, name="hami-webhook"))
    return str(lease["spec"].get("holderIdentity") or "")


def test_a_second_replica_answers_and_keeps_the_certificates_when_the_first_is_killed(admission: Admission) -> None:
    begin_anew(admission, "--identity", "first")
    admission.until("the first to lead", lambda: keeper(admission).startswith("first"), 30)
    admission.start_webhook(*FLAGS, *SHORT_LIVES, "--identity", "second", name="hami-webhook-2", port=PORT + 10)
    try:
        admission.until("both to show one certificate", lambda: admission.served_certificate() == admission.served_certificate(PORT + 10), 10)
        admission.stop_webhook(signal.SIGKILL)
        admission.direct_to(PORT + 10)  # as its readiness probe would have it
        admission.until("the second to be asked", lambda: mutated(admission), 10)
        admission.until("the second to lead", lambda: keeper(admission).startswith("second"), 30)
        shown = {admission.served_certificate(PORT + 10)}
        until = time.monotonic() + 20
        while time.monotonic() < until:
            assert mutated(admission)
            shown.add(admission.served_certificate(PORT + 10))
            time.sleep(0.2)
        assert len(shown) >= 3, "the second makes the certificates now: one every 8 s"
    finally:
        admission.stop_webhook(name="hami-webhook-2")
        admission.start_webhook(*FLAGS)
        admission.direct_to(PORT)
    admission.until("the first to be asked again", lambda: mutated(admission), 20)


# -- the webhook is down ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["Ignore", "Fail"])
def test_without_the_webhook_pods_are_created_as_they_are_or_wait(admission: Admission, policy: str) -> None:
    admission.render([f"webhook.failurePolicy={policy}"])
    admission.until("the webhook to be called", lambda: mutated(admission), 20)
    admission.stop_webhook()
    try:
        if policy == "Fail":
            with pytest.raises(ApiError, match="failed calling webhook"):
                admission.create(pod("a", SHARE), dry_run=True)
        else:
            created = admission.create(pod("a", SHARE), dry_run=True)
            assert limits(created) == {"nvidia.com/gpumem": "3k"}, "the extender refuses it: count-missing, with the remedy"
        assert limits(admission.create(pod("a", {"cpu": 1}), dry_run=True)) == {"cpu": "1"}, "other pods are never held up"
    finally:
        admission.start_webhook(*FLAGS)
    admission.until("the webhook to be called again", lambda: mutated(admission), 20)
