# SPDX-License-Identifier: Apache-2.0
"""Asks the API server, everything at once and each with a deadline. Nothing is changed: what is created is a review or a dry run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

from hami_framework.codec import inventories
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.doctor.cluster import Cluster, Json, Unread
from hami_framework.doctor.needs import Need, needs
from hami_framework.errors import Unavailable
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError, KubeError
from hami_framework.model import NEUTRAL

DEADLINE_SECONDS = 20.0
"""For each question: a list of some ten thousand pods takes a few seconds."""

INVENTORIES = path(inventories.PLURAL, group=inventories.GROUP, version=inventories.VERSION)
DEFINITION = path("customresourcedefinitions", group="apiextensions.k8s.io", name=f"{inventories.PLURAL}.{inventories.GROUP}")


def _lists(place: str, **query: str) -> Callable[[KubeClient], Any]:
    return lambda client: client.list(place, query)["items"]


def _gets(place: str) -> Callable[[KubeClient], Any]:
    return lambda client: client.get(place)


def questions(namespace: str) -> dict[str, Callable[[KubeClient], Any]]:
    """What is asked, by the name under which the answer is kept."""
    return {
        "version": _gets("/version"),
        "definition": _gets(DEFINITION),
        "nodes": _lists(path("nodes")),
        "inventories": _lists(INVENTORIES),
        "pods": _lists(path("pods")),
        "daemonsets": _lists(path("daemonsets", group="apps")),
        "deployments": _lists(path("deployments", group="apps", namespace=namespace)),
        "leases": _lists(path("leases", group="coordination.k8s.io", namespace=namespace)),
        "webhooks": _lists(path("mutatingwebhookconfigurations", group="admissionregistration.k8s.io")),
        "policies": _lists(path("validatingadmissionpolicies", group="admissionregistration.k8s.io")),
        "policy bindings": _lists(path("validatingadmissionpolicybindings", group="admissionregistration.k8s.io")),
        "endpoints": _lists(path("endpointslices", group="discovery.k8s.io", namespace=namespace)),
        "events": _lists(path("events"), fieldSelector="involvedObject.kind=Pod,type=Warning"),
        "trial": lambda client: client.create(path("pods", namespace="default"), trial_pod(), {"dryRun": "All"}),
    }


def trial_pod() -> Json:
    """A pod that asks for an amount and leaves the count to admission; only ever created as a dry run."""
    assert NEUTRAL.memory is not None
    container = {"name": "c", "image": "hami.invalid/none", "resources": {"limits": {NEUTRAL.memory: "64"}}}
    spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "hami-doctor-", "namespace": "default"}, "spec": spec}


async def read(client: KubeClient, catalog: ResourceCatalog, namespace: str) -> Cluster:
    """Everything that the checks look at. Raises Unavailable when the API server does not answer at all."""
    asked = questions(namespace)
    first = await _answer(client, asked.pop("version"))
    if isinstance(first, Unread) and first.why == "silent":
        raise Unavailable(f"the API server at {client.credentials.server} does not answer: {first.text}")
    answers = await asyncio.gather(*(_answer(client, ask) for ask in asked.values()))
    cluster = Cluster(
        answers={"version": first, **dict(zip(asked, answers, strict=True))}, namespace=namespace, now=time.time(), server_ahead_seconds=_ahead(client)
    )
    reviews = {f"{account}: {need}": _may(namespace, account, need) for account, need in needs(cluster)}
    access = await asyncio.gather(*(_answer(client, review) for review in reviews.values()))
    return replace(cluster, access=dict(zip(reviews, access, strict=True)))


def _may(namespace: str, account: str, need: Need) -> Callable[[KubeClient], Any]:
    attributes = {"verb": need.verb, "group": need.group, "resource": need.resource, "subresource": need.subresource, "name": need.name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            "resourceAttributes": attributes | ({"namespace": namespace} if need.own else {}),
        },
    }
    place = path("subjectaccessreviews", group="authorization.k8s.io")
    return lambda client: bool(client.create(place, review)["status"]["allowed"])


async def _answer(client: KubeClient, ask: Callable[[KubeClient], Any]) -> Any:
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await client.call(ask, client)
    except TimeoutError:
        return Unread("silent", f"no answer within {DEADLINE_SECONDS:.0f} s")
    except ApiError as error:
        why = {401: "forbidden", 403: "forbidden", 404: "absent", 405: "absent"}.get(error.status)
        # A refusal of the trial pod is an answer: the check of the webhook reads its words.
        return Unread(why if why else "silent", error.message or str(error))  # type: ignore[arg-type]
    except KubeError as error:
        return Unread("silent", str(error))


def _ahead(client: KubeClient) -> float | None:
    if client.dated is None:
        return None
    text, ours = client.dated
    try:
        # The header has whole seconds: on average it is half a second behind.
        return parsedate_to_datetime(text).timestamp() + 0.5 - ours
    except ValueError:
        return None
