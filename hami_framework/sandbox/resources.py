# SPDX-License-Identifier: Apache-2.0
"""The kinds this API server knows, and which of them have anything happen behind them.

A kind that is not simulated is stored, listed and watched like any other, and its author is told by a `Warning`
header. Custom resource definitions add kinds while the server runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One resource of the API, as discovery describes it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    simulated: bool = False
    """False: objects are kept, and nothing acts on them."""
    has_status: bool = False
    """True: `status` can be written through the subresource only."""
    short_names: tuple[str, ...] = ()
    custom: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """`deployments.apps`, `pods`: the name that messages use."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def storage(self) -> tuple[str, str]:
        """Where its objects lie: all versions of a kind share one place."""
        return (self.group, self.plural)

    def discovery(self) -> list[dict[str, Any]]:
        """Entries of the APIResourceList."""
        entry: dict[str, Any] = {"name": self.plural, "singularName": self.kind.lower(), "namespaced": self.namespaced, "kind": self.kind, "verbs": list(VERBS)}
        entries = [entry | ({"shortNames": list(self.short_names)} if self.short_names else {})]
        subresources = {"status": self.kind} if self.has_status else {}
        if self.storage == ("", "pods"):
            subresources |= {"binding": "Binding", "eviction": "Eviction"}
        for name, kind in subresources.items():
            verbs = ["get", "patch", "update"] if name == "status" else ["create"]
            entries.append({"name": f"{self.plural}/{name}", "singularName": "", "namespaced": self.namespaced, "kind": kind, "verbs": verbs})
        return entries


def _kinds(group: str, version: str, *rows: tuple[str, str, bool], simulated: bool = False, has_status: bool = False) -> tuple[Kind, ...]:
    return tuple(
        Kind(group=group, version=version, plural=plural, kind=kind, namespaced=namespaced, simulated=simulated, has_status=has_status)
        for plural, kind, namespaced in rows
    )


PODS = Kind(group="", version="v1", plural="pods", kind="Pod", simulated=True, has_status=True, short_names=("po",))
NODES = Kind(group="", version="v1", plural="nodes", kind="Node", namespaced=False, simulated=True, has_status=True, short_names=("no",))
NAMESPACES = Kind(group="", version="v1", plural="namespaces", kind="Namespace", namespaced=False, simulated=True, has_status=True, short_names=("ns",))
EVENTS = Kind(group="", version="v1", plural="events", kind="Event", simulated=True, short_names=("ev",))
DEPLOYMENTS = Kind(group="apps", version="v1", plural="deployments", kind="Deployment", simulated=True, has_status=True, short_names=("deploy",))
JOBS = Kind(group="batch", version="v1", plural="jobs", kind="Job", simulated=True, has_status=True)
LEASES = Kind(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease", simulated=True)
PRIORITY_CLASSES = Kind(
    group="scheduling.k8s.io", version="v1", plural="priorityclasses", kind="PriorityClass", namespaced=False, simulated=True, short_names=("pc",)
)
CUSTOM_RESOURCE_DEFINITIONS = Kind(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    namespaced=False,
    simulated=True,
    has_status=True,
    short_names=("crd",),
)

SIMULATED = (PODS, NODES, NAMESPACES, EVENTS, DEPLOYMENTS, JOBS, LEASES, PRIORITY_CLASSES, CUSTOM_RESOURCE_DEFINITIONS)

STORED_ONLY = (
    *_kinds("", "v1", ("configmaps", "ConfigMap", True), ("secrets", "Secret", True), ("serviceaccounts", "ServiceAccount", True)),
    *_kinds("", "v1", ("services", "Service", True), ("endpoints", "Endpoints", True), ("limitranges", "LimitRange", True), has_status=True),
    *_kinds("", "v1", ("persistentvolumeclaims", "PersistentVolumeClaim", True), ("resourcequotas", "ResourceQuota", True), has_status=True),
    *_kinds("", "v1", ("persistentvolumes", "PersistentVolume", False), ("replicationcontrollers", "ReplicationController", True), has_status=True),
    *_kinds("apps", "v1", ("daemonsets", "DaemonSet", True), ("statefulsets", "StatefulSet", True), ("replicasets", "ReplicaSet", True), has_status=True),
    *_kinds("batch", "v1", ("cronjobs", "CronJob", True), has_status=True),
    *_kinds("events.k8s.io", "v1", ("events", "Event", True)),
    *_kinds("policy", "v1", ("poddisruptionbudgets", "PodDisruptionBudget", True), has_status=True),
    *_kinds("networking.k8s.io", "v1", ("ingresses", "Ingress", True), ("networkpolicies", "NetworkPolicy", True)),
    *_kinds("rbac.authorization.k8s.io", "v1", ("roles", "Role", True), ("rolebindings", "RoleBinding", True)),
    *_kinds("rbac.authorization.k8s.io", "v1", ("clusterroles", "ClusterRole", False), ("clusterrolebindings", "ClusterRoleBinding", False)),
    *_kinds("storage.k8s.io", "v1", ("storageclasses", "StorageClass", False)),
    *_kinds("admissionregistration.k8s.io", "v1", ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration", False)),
    *_kinds("admissionregistration.k8s.io", "v1", ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration", False)),
)


class Kinds:
    """All kinds served right now."""

    def __init__(self, kinds: Iterable[Kind] = (*SIMULATED, *STORED_ONLY)) -> None:
        self._kinds = {(kind.group, kind.version, kind.plural): kind for kind in kinds}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        return self._kinds.get((group, version, plural))

    def add(self, kind: Kind) -> None:
        self._kinds[(kind.group, kind.version, kind.plural)] = kind

    def add_definition(self, definition: Mapping[str, Any]) -> None:
        """Serve what a CustomResourceDefinition describes; its objects are real even though the definition's schema is not checked."""
        spec = definition["spec"]
        names = spec["names"]
        for version in spec.get("versions", ()):
            self.add(
                Kind(
                    group=spec["group"],
                    version=version["name"],
                    plural=names["plural"],
                    kind=names["kind"],
                    namespaced=spec.get("scope", "Namespaced") == "Namespaced",
                    simulated=True,
                    has_status="status" in (version.get("subresources") or {}),
                    short_names=tuple(names.get("shortNames") or ()),
                    custom=True,
                )
            )

    def remove_definition(self, definition: Mapping[str, Any]) -> None:
        spec = definition["spec"]
        for version in spec.get("versions", ()):
            self._kinds.pop((spec["group"], version["name"], spec["names"]["plural"]), None)

    def versions(self) -> dict[str, list[str]]:
        """API group → its versions, in the order they were added."""
        groups: dict[str, list[str]] = {}
        for kind in self._kinds.values():
            versions = groups.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        return groups

    def of(self, group: str, version: str) -> list[Kind]:
        return [kind for kind in self._kinds.values() if (kind.group, kind.version) == (group, version)]
