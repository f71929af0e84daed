# SPDX-License-Identifier: Apache-2.0
"""What the chart installs: the definition, permissions, the scheduler's leader, policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hami_framework.codec import inventories
from hami_framework.doctor.cluster import Cluster, Json, Unread, ours, seconds
from hami_framework.doctor.finding import Finding, fail, ok, some, warn

INSTALL = "helm upgrade --install hami ./deploy/chart -n hami-system"
LEADER = "hami-scheduler"
"""The Lease of the leading extender."""
QUIET = "nobody leads, since nobody has asked: one takes the lease with the next pod that asks for devices"


def definition(cluster: Cluster) -> Iterator[Finding]:
    """Is the custom resource there, served, and does it keep every field that this release writes?"""
    what, name = "CRD", inventories.CRD["metadata"]["name"]
    if not cluster.known("definition"):
        return
    found = cluster.one("definition")
    if found is None:
        yield fail(what, "it is not installed: agents cannot publish, no pod gets a device", INSTALL, name)
        return
    versions = {version["name"]: version for version in found["spec"].get("versions") or ()}
    wanted = inventories.CRD["spec"]["versions"][0]
    served = versions.get(inventories.VERSION)
    if served is None or not served.get("served"):
        yield fail(what, f"version {inventories.VERSION} is not served (there is {some(versions)})", "install the CRD of this release: " + INSTALL, name)
        return
    missing = list(lacking(wanted["schema"]["openAPIV3Schema"], (served.get("schema") or {}).get("openAPIV3Schema") or {}))
    conditions = {one["type"]: one["status"] for one in (found.get("status") or {}).get("conditions") or ()}
    if missing:
        yield fail(what, f"the API server would drop what agents of this release write: {some(missing)}", "install the CRD of this release: " + INSTALL, name)
    elif conditions.get("Established", "True") != "True":
        yield fail(what, "the API server has not established it", f"kubectl describe crd {name}", name)
    else:
        yield ok(what, f"{inventories.VERSION} is served", name)
    old = set((found.get("status") or {}).get("storedVersions") or ()) - {inventories.VERSION}
    if old:
        do = "delete those inventories; the agents write them again"
        yield warn(what, f"objects may still be stored as {some(old)}", do, name)


def lacking(wanted: Any, there: Any, place: str = "") -> Iterator[str]:
    """Fields (as dotted paths) of the wanted schema that the installed one lacks: they would be pruned."""
    if not isinstance(wanted, dict) or not isinstance(there, dict) or there.get("x-kubernetes-preserve-unknown-fields"):
        return
    for name, below in (wanted.get("properties") or {}).items():
        inner = (there.get("properties") or {}).get(name)
        if inner is None:
            yield f"{place}.{name}".lstrip(".")
        else:
            yield from lacking(below, inner, f"{place}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(wanted.get(key), dict):
            yield from lacking(wanted[key], there.get(key) or {}, f"{place}[]")


def permissions(cluster: Cluster) -> Iterator[Finding]:
    """May each component do what it must?"""
    denied = [need for need, may in cluster.access.items() if may is False]
    unknown = [need for need, may in cluster.access.items() if isinstance(may, Unread)]
    for account in sorted({need.partition(":")[0] for need in denied}):
        needs = [need.partition(": ")[2] for need in denied if need.startswith(f"{account}:")]
        yield fail("RBAC", f"it may not {', '.join(needs)}", "install the chart's roles again: " + INSTALL, f"service account {account}")
    if unknown:
        yield warn("RBAC", f"not checked: {len(unknown)} access reviews were not answered", "run the doctor as somebody who may create SubjectAccessReviews")
    elif cluster.access and not denied:
        yield ok("RBAC", f"{len(cluster.access)} permissions looked up")


def scheduler(cluster: Cluster) -> Iterator[Finding]:
    """Does an extender lead?"""
    if not cluster.known("leases"):
        return
    lease = next((one for one in cluster.list("leases") if one["metadata"]["name"] == LEADER), None)
    if lease is None and when_asked(cluster):
        yield ok("extender", QUIET, f"lease {LEADER}")
        return
    if lease is None:
        running = [one for one in cluster.list("deployments") if ours(one) and "scheduler" in one["metadata"]["name"]]
        if running:
            yield warn(
                "extender", "no Lease: it runs without leader election, or has not started", "run it with --leader-elect where there is more than one replica"
            )
        else:
            yield fail("extender", f"no scheduler of ours in namespace {cluster.namespace}", INSTALL)
        return
    spec = lease.get("spec") or {}
    holder, age, lasts = spec.get("holderIdentity"), lease_age(cluster, lease), spec.get("leaseDurationSeconds") or 10
    if when_asked(cluster) and (not holder or age is None or age > 2 * lasts):
        if not holder:
            yield ok("extender", QUIET, f"lease {LEADER}")
        else:
            do = f"nothing, if the next pod is placed; kubectl -n {cluster.namespace} get pods"
            yield warn("extender", f"{holder} led and is gone; another one takes the lease with the next pod that asks for devices", do, f"lease {LEADER}")
    elif not holder:
        yield fail(
            "extender", "no replica leads", f"kubectl -n {cluster.namespace} get pods; a replica takes over within 15 s where one is ready", f"lease {LEADER}"
        )
    elif age is None or age > 2 * lasts:
        text = f"{holder} leads, but renewed {age:.0f} s ago" if age is not None else f"{holder} never renewed"
        yield fail("extender", text, f"kubectl -n {cluster.namespace} logs {holder}: does it reach the API server?", f"lease {LEADER}")
    else:
        yield ok("extender", f"{holder} leads", f"lease {LEADER}")


def when_asked(cluster: Cluster) -> bool:
    """Do the extenders stand beside a kube-scheduler each, and take the lease when that one asks? Then a quiet cluster has no leader."""
    if not cluster.known("deployments"):
        return False
    mine = [one for one in cluster.list("deployments") if ours(one) and "scheduler" in one["metadata"]["name"]]
    containers = [container for one in mine for container in one["spec"].get("template", {}).get("spec", {}).get("containers", ())]
    return any("--leader-elect=when-asked" in (container.get("args") or ()) for container in containers)


def lease_age(cluster: Cluster, lease: Json) -> float | None:
    """Seconds since the holder renewed it, by the API server's clock as far as that is known."""
    renewed = seconds((lease.get("spec") or {}).get("renewTime"))
    return None if renewed is None else cluster.now + (cluster.server_ahead_seconds or 0.0) - renewed


def policies(cluster: Cluster) -> Iterator[Finding]:
    """Are there policies that keep users from writing grants, and is each of them bound so that it denies?"""
    if not cluster.known("policies") or not cluster.known("policy bindings"):
        return
    mine = [one for one in cluster.list("policies") if ours(one) or one["metadata"]["name"].startswith("hami-")]
    if not mine:
        yield warn("policies", "none of ours is installed: whoever may create pods can write a grant", "install with policies.enabled=true")
        return
    bound = {one["spec"].get("policyName"): one for one in cluster.list("policy bindings")}
    loose = [one["metadata"]["name"] for one in mine if one["metadata"]["name"] not in bound]
    lenient = [name for one in mine if (name := one["metadata"]["name"]) in bound and "Deny" not in (bound[name]["spec"].get("validationActions") or ())]
    broken = [one["metadata"]["name"] for one in mine if ((one.get("status") or {}).get("typeChecking") or {}).get("expressionWarnings")]
    if loose:
        yield fail("policies", "they are bound to nothing, and so refuse nothing", INSTALL, some(loose))
    if lenient:
        yield fail("policies", "their bindings do not deny", "set validationActions: [Deny]", some(lenient))
    if broken:
        yield warn(
            "policies", "the API server finds fault with their expressions", "kubectl get validatingadmissionpolicy -o yaml: status.typeChecking", some(broken)
        )
    if not loose and not lenient:
        yield ok("policies", f"{len(mine)} are bound and deny")
