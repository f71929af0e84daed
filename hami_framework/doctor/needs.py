# SPDX-License-Identifier: Apache-2.0
"""What each component's service account cannot do without, as far as it is installed here. What the chart allows: `tests/unit/test_chart_rbac.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hami_framework.codec.inventories import GROUP, PLURAL
from hami_framework.doctor.cluster import Cluster, Json, ours

LEASES = "coordination.k8s.io"


@dataclass(frozen=True)
class Need:
    """One permission. `own`: in our namespace alone; else in all of them."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    own: bool = False
    name: str = ""

    def __str__(self) -> str:
        whole = f"{self.resource}{'/' + self.subresource if self.subresource else ''}{'.' + self.group if self.group else ''}"
        return f"{self.verb} {whole}{' ' + self.name if self.name else ''}"


def _each(verbs: str, group: str, resource: str, subresource: str = "", *, own: bool = False, name: str = "") -> tuple[Need, ...]:
    return tuple(Need(verb, group, resource, subresource, own, name) for verb in verbs.split())


AGENT = (
    *_each("get list watch", "", "pods"),
    *_each("get", "", "nodes"),
    *_each("get create update", GROUP, PLURAL),
    *_each("patch", GROUP, PLURAL, "status"),
    *_each("create", "", "events"),
    *_each("get create update", LEASES, "leases", own=True),
)
EVICTING = _each("create", "", "pods", "eviction")
SCHEDULER = (
    *_each("get list watch", "", "pods"),
    *_each("list watch", "", "nodes"),
    *_each("list watch", GROUP, PLURAL),
    *_each("list watch", "policy", "poddisruptionbudgets"),
    *_each("create", "", "pods", "binding"),
    *_each("create", "", "pods", "eviction"),
    *_each("patch", "", "pods", "status"),
    *_each("create", "", "events"),
    *_each("get list watch create update", LEASES, "leases", own=True),
)
WEBHOOK = (*_each("list", "", "pods"), *_each("list watch", "", "resourcequotas"))
KEEPER = (
    *_each("create", LEASES, "leases", own=True),
    *_each("get update", LEASES, "leases", own=True, name="hami-webhook"),
    *_each("get patch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", name="hami-webhook"),
)
"""Of a webhook that makes its certificates itself, beside its Secrets."""
AUTHORITIES = "hami-authorities"


def needs(cluster: Cluster) -> Iterator[tuple[str, Need]]:
    """Service account and permission. Of what is not there at all, agent and extender are asked for: they are what was meant to be installed."""
    agents = _installed(cluster, "daemonsets", "hami-agent")
    if agents is not None or not cluster.list("inventories"):  # else they are host services, with identities of their own
        yield from (("hami-agent", need) for need in (*AGENT, *(EVICTING if "--on-bypass=evict" in _arguments(agents) else ())))
    yield from (("hami-scheduler", need) for need in SCHEDULER)
    webhook = _installed(cluster, "deployments", "hami-webhook")
    if webhook is not None:
        yield from (("hami-webhook", need) for need in (*WEBHOOK, *_keeping(_arguments(webhook))))


def _keeping(arguments: list[str]) -> Iterator[Need]:
    """Of a webhook with these arguments: its Secrets, by name."""
    said = [argument.partition("=")[::2] for argument in arguments]
    secrets = [value.partition("=")[0] for flag, value in said if flag in ("--secret", "--also-server", "--also-client")]
    if secrets:
        yield from KEEPER
        for secret in (*secrets, AUTHORITIES):
            yield from _each("get update", "", "secrets", own=True, name=secret)


def _installed(cluster: Cluster, kind: str, name: str) -> Json | None:
    return next((one for one in cluster.list(kind) if ours(one) and one["metadata"]["name"] == name), None)


def _arguments(workload: Json | None) -> list[str]:
    spec = ((((workload or {}).get("spec") or {}).get("template") or {}).get("spec")) or {}
    return [str(word) for container in spec.get("containers") or () for word in container.get("args") or ()]
