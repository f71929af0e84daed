# SPDX-License-Identifier: Apache-2.0
"""What admission does beside completing counts: scheduler, runtime class, refusals, objections. Its own result is left alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.admission import Rules
from hami_framework.codec.mutation import apply_patch, created_pod, mutate_pod, review, wanted
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import Family, ResourceCatalog
from hami_framework.errors import ConfigError, InvalidRequest
from hami_framework.model import Reason, decode
from hami_framework.webhook.rules import make_rules

FAMILIES = decode((Path(__file__).parents[1] / "data" / "resource-families.json").read_bytes(), tuple[Family, ...])
CATALOG = ResourceCatalog((family.vendor, family.names) for family in FAMILIES)
RULES = Rules(scheduler_name="hami-scheduler", runtime_classes={"nvidia": "nvidia", "ascend": "ascend"})
SHARE = {"nvidia.com/gpumem": 3000}


def pod(limits: dict[str, Any], container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"generateName": "a-"}, "spec": {"containers": [{"name": "main", "resources": {"limits": limits}, **(container or {})}], **spec}}


def asked(body: dict[str, Any], **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "r", "kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": "team", "object": body, **request},
    }


def after(body: dict[str, Any], rules: Rules = RULES) -> dict[str, Any]:
    spec: dict[str, Any] = apply_patch(body, mutate_pod(body, CATALOG, rules))["spec"]
    return spec


@pytest.mark.parametrize("named", [{}, {"schedulerName": ""}, {"schedulerName": "default-scheduler"}], ids=["absent", "empty", "the default"])
def test_a_pod_that_names_no_scheduler_gets_ours(named: dict[str, Any]) -> None:
    assert after(pod(SHARE, **named))["schedulerName"] == "hami-scheduler"


LEFT_ALONE = [
    pytest.param(pod({"cpu": 1}), RULES, id="a pod that asks for nothing of ours"),
    pytest.param(pod({"nvidia.com/gpu": 1}, schedulerName="volcano", runtimeClassName="mine"), RULES, id="a pod that names its own"),
    pytest.param(pod({"nvidia.com/gpu": 1}, schedulerName="default-scheduler"), Rules(), id="no rules"),
    pytest.param(pod({"nvidia.com/gpu": 1}, schedulerName="default-scheduler"), Rules(scheduler_name="default-scheduler"), id="the default is the rule"),
    pytest.param(pod({"nvidia.com/gpu": 0}), RULES, id="a count of none"),
    pytest.param({"metadata": {}, "spec": {"containers": [{"name": "m"}], "ephemeralContainers": [{"name": "e"}]}}, RULES, id="ephemeral containers"),
]


@pytest.mark.parametrize(("body", "rules"), LEFT_ALONE)
def test_leaves_alone(body: dict[str, Any], rules: Rules) -> None:
    assert mutate_pod(body, CATALOG, rules) == []


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        pytest.param({"nvidia.com/gpu": 1}, "nvidia", id="its vendor's"),
        pytest.param({"hygon.com/dcunum": 1}, None, id="a vendor without one"),
        pytest.param({"hami.io/accelerator": 1}, None, id="any vendor's device may come"),
        pytest.param({"nvidia.com/gpu": 1, "huawei.com/Ascend910B3": 1}, None, id="two that differ"),
    ],
)
def test_the_runtime_class_is_the_vendor_s(limits: dict[str, int], expected: str | None) -> None:
    assert after(pod(limits)).get("runtimeClassName") == expected


@pytest.mark.parametrize(
    "body",
    [pod(SHARE), pod({"hygon.com/hcunum": 1, "nvidia.com/gpumem": 5}), pod({"nvidia.com/gpu": 1}, initContainers=[{"name": "i"}])],
    ids=["share", "two vendors", "init container"],
)
def test_twice_is_once(body: dict[str, Any]) -> None:
    once = apply_patch(body, mutate_pod(body, CATALOG, RULES))
    assert mutate_pod(once, CATALOG, RULES) == []
    second = review(asked(once), CATALOG, rules=RULES)["response"]
    assert "patch" not in second


PRIVILEGED = {"securityContext": {"privileged": True}}


@pytest.mark.parametrize(
    ("limits", "container", "allowed"),
    [
        pytest.param(SHARE, PRIVILEGED, False, id="a share"),
        pytest.param({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 50}, PRIVILEGED, False, id="a share of compute"),
        pytest.param({"nvidia.com/mig-1g.5gb": 1}, PRIVILEGED, False, id="a partition"),
        pytest.param({"hami.io/memory-mib": 5}, PRIVILEGED, False, id="a neutral share"),
        pytest.param({"nvidia.com/gpu": 1}, PRIVILEGED, True, id="a whole device"),
        pytest.param({"cpu": 1}, PRIVILEGED, True, id="nothing of ours"),
        pytest.param(SHARE, {"securityContext": {"privileged": False}}, True, id="not privileged"),
    ],
)
def test_privileged_containers_have_no_shares(limits: dict[str, Any], container: dict[str, Any], allowed: bool) -> None:
    response = review(asked(pod(limits, container)), CATALOG)["response"]
    assert response["allowed"] is allowed
    if not allowed:
        assert "patch" not in response
        assert response["status"]["code"] == 403
        assert "leave securityContext.privileged out" in response["status"]["message"]


def test_the_extender_refuses_them_too_when_no_webhook_did() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_pod(pod({"nvidia.com/gpu": 1, **SHARE}, PRIVILEGED), CATALOG)
    assert [(rejection.reason, rejection.container) for rejection in caught.value.rejections] == [(Reason.PRIVILEGED_SHARE, "main")]


def test_objections_refuse_and_notes_warn() -> None:
    response = review(asked(pod(SHARE)), CATALOG, objections=["quota q: no room"], notes=["a note"])["response"]
    assert (response["allowed"], response["status"]["message"]) == (False, "quota q: no room")
    assert "a note" in response["warnings"]


def test_a_pod_put_on_a_node_by_hand_is_told_that_nobody_grants() -> None:
    response = review(asked(pod({"nvidia.com/gpu": 1}, nodeName="n1")), CATALOG, rules=RULES)["response"]
    assert any("spec.nodeName is set" in warning for warning in response["warnings"])


OTHERS = [
    pytest.param({"operation": "UPDATE"}, id="update"),
    pytest.param({"operation": "DELETE", "object": None}, id="delete"),
    pytest.param({"kind": {"kind": "Deployment"}}, id="another kind"),
    pytest.param({"subResource": "ephemeralcontainers"}, id="a subresource"),
]


@pytest.mark.parametrize("request_", OTHERS)
def test_everything_but_creations_of_pods_is_allowed_and_left_alone(request_: dict[str, Any]) -> None:
    document = asked(pod(SHARE, PRIVILEGED), **request_)
    assert created_pod(document) is None
    assert wanted(document, CATALOG) is None
    assert review(document, CATALOG, rules=RULES)["response"] == {"uid": "r", "allowed": True}


def test_a_dry_run_is_answered_like_any_other() -> None:
    response = review(asked(pod(SHARE), dryRun=True), CATALOG)["response"]
    assert json.loads(base64.b64decode(response["patch"]))


def test_the_namespace_is_the_request_s() -> None:
    found = wanted(asked(pod(SHARE)), CATALOG)
    assert found is not None
    assert found[0] == "team"


@pytest.mark.parametrize(
    ("texts", "problem"),
    [(["nvidia"], "write VENDOR=NAME"), (["nope=x"], "no vendor is called 'nope'"), (["nvidia=a", "nvidia=b"], "has a already")],
)
def test_wrong_runtime_classes_are_named(texts: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_rules(None, texts, CATALOG)


def test_rules_from_the_command_line() -> None:
    assert make_rules("s", ["nvidia=n"], CATALOG) == Rules(scheduler_name="s", runtime_classes={"nvidia": "n"})
