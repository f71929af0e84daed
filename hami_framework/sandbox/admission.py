# SPDX-License-Identifier: Apache-2.0
"""The mutating step at pod creation: a real AdmissionReview v1 goes out, a real JSON patch comes back.

The webhook is a function handed in, so that the sandbox and a served webhook run the same code.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from hami_framework.sandbox import patches
from hami_framework.sandbox.resources import Kind
from hami_framework.sandbox.status import ApiRefusal

Json = dict[str, Any]
Webhook = Callable[[Json], Mapping[str, Any]]
"""AdmissionReview with a request → AdmissionReview with a response."""

WEBHOOK_NAME = "pods.hami.io"


def review_of(kind: Kind, namespace: str, obj: Json) -> Json:
    """The AdmissionReview for the creation of `obj`."""
    request = {
        "uid": str(uuid.uuid4()),
        "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "resource": {"group": kind.group, "version": kind.version, "resource": kind.plural},
        "namespace": namespace,
        "name": obj["metadata"].get("name", ""),
        "operation": "CREATE",
        "userInfo": {"username": "sandbox", "groups": ["system:authenticated"]},
        "object": obj,
        "oldObject": None,
        "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request}


def admit(webhook: Webhook, kind: Kind, namespace: str, obj: Json) -> tuple[Json, list[str]]:
    """The object as the webhook wants it, and its warnings. Raises `ApiRefusal` when it denies, or answers what is no answer."""
    review = review_of(kind, namespace, obj)
    answer = webhook(review)
    response = answer.get("response")
    if answer.get("kind") != "AdmissionReview" or not isinstance(response, Mapping) or response.get("uid") != review["request"]["uid"]:
        raise ApiRefusal(500, f'failed calling webhook "{WEBHOOK_NAME}": expected an AdmissionReview response with our uid')
    warnings = [str(warning) for warning in response.get("warnings") or ()]
    if not response.get("allowed"):
        verdict = response.get("status") or {}
        message = f'admission webhook "{WEBHOOK_NAME}" denied the request: {verdict.get("message", "without explanation")}'
        raise ApiRefusal(verdict.get("code") or 403, message)
    if not response.get("patch"):
        return obj, warnings
    if response.get("patchType") != "JSONPatch":
        raise ApiRefusal(500, f'failed calling webhook "{WEBHOOK_NAME}": patchType {response.get("patchType")!r} is not JSONPatch')
    patched = patches.json_patch(obj, json.loads(base64.b64decode(response["patch"])))
    return patched, warnings
