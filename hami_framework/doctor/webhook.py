# SPDX-License-Identifier: Apache-2.0
"""Admission: is the webhook's configuration sound, can the API server reach it, and does it do its work?"""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import Iterator
from typing import Any

from hami_framework.doctor.cluster import Cluster, Json, Unread, ours
from hami_framework.doctor.finding import Finding, fail, ok, some, warn
from hami_framework.model import NEUTRAL

DAY_SECONDS = 86_400.0
EXPIRES_SOON_SECONDS = 7 * DAY_SECONDS
"""The framework renews at two thirds of a certificate's life: one this near its end was not renewed."""
WITHOUT = "pods that name amounts without a count are refused by the extender, with the remedy, until it is mended"


def configuration(cluster: Cluster) -> Iterator[Finding]:
    """The MutatingWebhookConfiguration, its CA, and the pods behind its service."""
    if not cluster.known("webhooks"):
        return
    mine = [one for one in cluster.list("webhooks") if ours(one) or _called_in(one, cluster.namespace)]
    if not mine:
        yield warn("webhook", f"none of ours is configured: {WITHOUT}", "install with webhook.enabled=true, or have users write the count")
        return
    if len(mine) > 1:
        yield warn("webhook", "several are configured", "uninstall the release that is not wanted", some(one["metadata"]["name"] for one in mine))
    for item in mine:
        for hook in item.get("webhooks") or ():
            yield from _hook(cluster, item["metadata"]["name"], hook)


def _called_in(item: Json, namespace: str) -> bool:
    services = ((hook.get("clientConfig") or {}).get("service") or {} for hook in item.get("webhooks") or ())
    return any(service.get("namespace") == namespace for service in services)


def _hook(cluster: Cluster, where: str, hook: Json) -> Iterator[Finding]:
    client = hook.get("clientConfig") or {}
    yield from _authority(cluster, where, client.get("caBundle"))
    service = client.get("service")
    if not service or not cluster.known("endpoints") or service.get("namespace") != cluster.namespace:
        return
    slices = [one for one in cluster.list("endpoints") if (one["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == service["name"]]
    ready = sum((end.get("conditions") or {}).get("ready", True) is not False for one in slices for end in one.get("endpoints") or ())
    if ready:
        yield ok("webhook", f"{ready} pods stand behind service {service['name']}", where)
    else:
        blocks = hook.get("failurePolicy", "Fail") == "Fail"
        found = f"no ready pod stands behind service {service['name']}" + ("; failurePolicy Fail refuses every pod it matches" if blocks else "")
        yield (fail if blocks else warn)("webhook", found, f"kubectl -n {cluster.namespace} get pods -l app.kubernetes.io/component=webhook; {WITHOUT}", where)


def _authority(cluster: Cluster, where: str, bundle: str | None) -> Iterator[Finding]:
    ends = certificate_ends(bundle or "")
    if isinstance(ends, str):
        yield fail("webhook certificate", ends, "see the log of the leading webhook pod: it issues the CA and writes it here", where)
        return
    now = cluster.now + (cluster.server_ahead_seconds or 0.0)
    left = max(ends) - now
    if left <= 0:
        yield fail("webhook certificate", "its CA has expired", "see the log of the leading webhook pod: it should have renewed it", where)
    elif left < EXPIRES_SOON_SECONDS:
        yield warn(
            "webhook certificate", f"its CA expires in {left / DAY_SECONDS:.1f} days", "see the log of the leading webhook pod: it renews in time", where
        )
    else:
        yield ok("webhook certificate", f"its CA is good for {left / DAY_SECONDS:.0f} days", where)


def certificate_ends(bundle: str) -> list[float] | str:
    """When each CA in a `caBundle` (base64 of PEM) ends, in seconds since the epoch; or what is wrong with it."""
    if not bundle:
        return "caBundle is empty: the API server trusts nobody under this name"
    try:
        pem = base64.b64decode(bundle, validate=True).decode("ascii")
        context = ssl.create_default_context(cadata=pem)
    except (binascii.Error, UnicodeDecodeError, ssl.SSLError, ValueError) as error:
        return f"caBundle cannot be read: {error}"
    ends: list[float] = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()]
    return ends or "caBundle holds no CA certificate"


def trial(cluster: Cluster) -> Iterator[Finding]:
    """The pod that was created as a dry run, as admission left it."""
    answer: Any = cluster.answers.get("trial")
    if answer is None or (isinstance(answer, Unread) and answer.why == "forbidden"):
        return
    if isinstance(answer, Unread):
        yield warn(
            "admission",
            f"a pod created as a dry run was refused: {answer.text}",
            "is it a policy of the cluster's, or our webhook? its name stands in the message",
        )
        return
    limits = (answer["spec"]["containers"][0].get("resources") or {}).get("limits") or {}
    if limits.get(NEUTRAL.count):
        yield ok("admission", "a pod created as a dry run got its count")
    else:
        yield warn("admission", f"a pod created as a dry run did not get its count: {WITHOUT}", "see the webhook's findings, and its log")
