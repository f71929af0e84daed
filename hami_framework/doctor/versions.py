# SPDX-License-Identifier: Apache-2.0
"""Versions that go together, and clocks that agree."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hami_framework.doctor.cluster import COMPONENT, Cluster, Json, ours, seconds
from hami_framework.doctor.finding import Finding, fail, ok, some, warn

OLDEST_SERVER = (1, 30)
"""ValidatingAdmissionPolicy and the webhook's match conditions are stable since then."""
OLDEST_KUBELET = (1, 29)
"""Device plugins may answer with CDI names by default since then (gate `DevicePluginCDIDevices`, beta in 1.29)."""
KUBELET_BEHIND = 3
"""Minor versions that a kubelet may be older than the API server (Kubernetes' version skew policy)."""
CLOCK_WARN_SECONDS, CLOCK_FAIL_SECONDS = 5.0, 30.0
"""Leases last 10 s and are judged by each reader's own clock; certificates and events are what suffers."""


def minor(version: str) -> tuple[int, int] | None:
    """`v1.37.2+build` → (1, 37)."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


def server(cluster: Cluster) -> Iterator[Finding]:
    """Is the API server new enough?"""
    text = (cluster.one("version") or {}).get("gitVersion", "")
    known = minor(text)
    if known is None:
        return
    if known < OLDEST_SERVER:
        do = f"upgrade Kubernetes to {_dotted(OLDEST_SERVER)} or later; until then install with policies.enabled=false and know that grants can be forged"
        yield fail("Kubernetes", f"API server {text}: it has no ValidatingAdmissionPolicy", do)
    else:
        yield ok("Kubernetes", f"API server {text}")


def kubelets(cluster: Cluster) -> Iterator[Finding]:
    """Are the kubelets new enough, and not too far from the API server?"""
    above = minor((cluster.one("version") or {}).get("gitVersion", ""))
    by_version: dict[str, list[str]] = {}
    for node in cluster.list("nodes"):
        by_version.setdefault(_info(node, "kubeletVersion"), []).append(node["metadata"]["name"])
    wrong = False
    for text, names in sorted(by_version.items()):
        known = minor(text)
        if known is None:
            continue
        if known < OLDEST_KUBELET:
            wrong = True
            yield fail("kubelet", f"{text} does not pass CDI names on", f"upgrade these nodes to {_dotted(OLDEST_KUBELET)} or later", some(names))
        elif above is not None and known > above:
            wrong = True
            yield fail("kubelet", f"{text} is newer than the API server", "upgrade the control plane first", some(names))
        elif above is not None and above[1] - known[1] > KUBELET_BEHIND:
            wrong = True
            yield warn("kubelet", f"{text} is more than {KUBELET_BEHIND} minor versions behind the API server", "upgrade these nodes", some(names))
    if by_version and not wrong:
        yield ok("kubelet", f"{', '.join(sorted(by_version))} on {sum(map(len, by_version.values()))} nodes")


def components(cluster: Cluster) -> Iterator[Finding]:
    """Do all parts of ours come from one release?"""
    images: dict[str, set[str]] = {}
    for workload in (*cluster.list("daemonsets"), *cluster.list("deployments")):
        if ours(workload):
            for container in workload["spec"]["template"]["spec"]["containers"]:
                role = (workload["metadata"].get("labels") or {}).get(COMPONENT, workload["metadata"]["name"])
                if container["name"] != "kube-scheduler":  # the one image that is not ours
                    images.setdefault(_tag(container.get("image", "")), set()).add(role)
    if len(images) > 1:
        found = "; ".join(f"{tag}: {', '.join(sorted(roles))}" for tag, roles in sorted(images.items()))
        yield warn("components", found, "finish the upgrade (`helm upgrade`), agents first; neighbours of one release apart go together meanwhile")
    elif images:
        yield ok("components", next(f"{tag}: {', '.join(sorted(roles))}" for tag, roles in images.items()))
    for workload, kind in [(one, "daemonsets") for one in cluster.list("daemonsets")] + [(one, "deployments") for one in cluster.list("deployments")]:
        ready, wanted = _ready(workload, kind)
        if ours(workload) and ready < wanted:
            do = f"kubectl -n {workload['metadata'].get('namespace')} describe {kind[:-1]} {workload['metadata']['name']}"
            yield (warn if ready else fail)("components", f"{ready} of {wanted} pods are ready", do, f"{kind[:-1]} {workload['metadata']['name']}")


def clock(cluster: Cluster) -> Iterator[Finding]:
    """Do the clocks agree: ours, the API server's, and those by which leases are renewed?"""
    ahead = cluster.server_ahead_seconds
    if ahead is None:
        return
    words = f"the API server is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
    if abs(ahead) > CLOCK_FAIL_SECONDS:
        yield fail("clock", words, "synchronise the clocks (NTP); certificates and events are dated by them")
    elif abs(ahead) > CLOCK_WARN_SECONDS:
        yield warn("clock", words, "synchronise the clocks (NTP)")
    else:
        yield ok("clock", "this machine and the API server agree")
    fast = [
        lease["spec"].get("holderIdentity", "")
        for lease in cluster.list("leases")
        if (renewed := seconds((lease.get("spec") or {}).get("renewTime"))) is not None and renewed - (cluster.now + ahead) > CLOCK_WARN_SECONDS
    ]
    if fast:
        yield warn("clock", "leases were renewed in the future, by the API server's clock", "synchronise the clocks of these holders (NTP)", some(fast))


def _ready(workload: Json, kind: str) -> tuple[int, int]:
    status = workload.get("status") or {}
    if kind == "daemonsets":
        return status.get("numberReady", 0), status.get("desiredNumberScheduled", 0)
    return status.get("readyReplicas", 0), workload["spec"].get("replicas", 1)


def _tag(image: str) -> str:
    name, _, digest = image.partition("@")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    return tag if colon else digest or "latest"


def _info(node: Json, key: str) -> str:
    text: str = ((node.get("status") or {}).get("nodeInfo") or {}).get(key, "")
    return text


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
