# SPDX-License-Identifier: Apache-2.0
"""The verbs of the API on top of the store, without HTTP: what a request means, and what it is refused for.

The server's routes, the controllers and the scheduling loop all go through here, so that each rule stands once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hami_framework.sandbox import admission, patches, pods, status
from hami_framework.sandbox.resources import CUSTOM_RESOURCE_DEFINITIONS, DEPLOYMENTS, JOBS, NAMESPACES, NODES, PODS, PRIORITY_CLASSES, Kind, Kinds
from hami_framework.sandbox.selectors import Test, matches_labels
from hami_framework.sandbox.storage import Store, clone, timestamp

Json = dict[str, Any]

FIRST_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
"""What generated names end in (k8s.io/apimachinery, pkg/util/rand)."""


class Operations:
    """Create, update, patch, delete and bind. Every method raises `ApiRefusal` for what the real server refuses."""

    def __init__(self, store: Store | None = None, kinds: Kinds | None = None, webhook: admission.Webhook | None = None) -> None:
        self.store = store or Store()
        self.kinds = kinds or Kinds()
        self.webhook = webhook
        self.not_simulated: list[str] = []
        """`Kind namespace/name` of every object that is kept without anything acting on it."""
        for name in FIRST_NAMESPACES:
            self.create(NAMESPACES, "", {"metadata": {"name": name}})

    # -- create

    def create(self, kind: Kind, namespace: str, body: Json) -> tuple[Json, list[str]]:
        """The stored object, and warnings for its author."""
        obj = self._prepared(kind, namespace, body)
        warnings: list[str] = []
        if kind is PODS:
            obj, warnings = self._new_pod(namespace, obj)
        elif kind.has_status and kind is not NODES:
            obj.pop("status", None)
        self._name(kind, obj)
        if kind is PODS:
            pods.validate(obj)
        elif kind is NODES:
            obj["status"] = pods.canonical_node_status(obj.get("status") or {}, obj["metadata"]["name"])
        elif kind is NAMESPACES:
            obj["status"] = {"phase": "Active"}
        elif kind in (DEPLOYMENTS, JOBS):
            _check_template(kind, obj)
        elif kind is CUSTOM_RESOURCE_DEFINITIONS:
            _establish(obj)
            self.kinds.add_definition(obj)
        if not kind.simulated:
            warnings.append(f"{kind.kind} is not simulated by the sandbox: the object is kept, nothing acts on it")
            self.not_simulated.append(f"{kind.kind} {namespace}/{obj['metadata']['name']}".replace(" /", " "))
        return self.store.create(kind, obj), warnings

    def _prepared(self, kind: Kind, namespace: str, body: Json) -> Json:
        """A copy of the body that can be completed; raises for what cannot be an object of this kind."""
        _check_type(kind, body)
        obj = clone(body)
        metadata = obj.setdefault("metadata", {})
        if metadata.get("resourceVersion"):
            raise status.ApiRefusal(400, "resourceVersion should not be set on objects to be created")
        for field in (
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "managedFields",
            "selfLink",
        ):
            metadata.pop(field, None)
        if kind.namespaced:
            if metadata.get("namespace", namespace) != namespace:
                raise status.ApiRefusal(400, "the namespace of the provided object does not match the namespace sent on the request")
            if self.store.find(NAMESPACES, "", namespace) is None:
                raise status.not_found("namespaces", namespace)
            metadata["namespace"] = namespace
        else:
            metadata.pop("namespace", None)
        return obj

    def _new_pod(self, namespace: str, pod: Json) -> tuple[Json, list[str]]:
        """Defaults before and after the webhook, as in the server: quantities are canonical when the webhook sees them."""
        if not isinstance(pod.get("spec"), dict):
            raise status.invalid("Pod", pod["metadata"].get("name", ""), ["spec.containers: Required value"])
        classes = self.store.list(PRIORITY_CLASSES)
        pods.default(pod, classes)
        if self.webhook is None:
            return pod, []
        pod, warnings = admission.admit(self.webhook, PODS, namespace, pod)
        pods.default(pod, classes)
        return pod, warnings

    def _name(self, kind: Kind, obj: Json) -> None:
        metadata = obj["metadata"]
        if not metadata.get("name"):
            prefix = metadata.get("generateName")
            if not prefix:
                raise status.invalid(kind.kind, "", ["metadata.name: Required value: name or generateName is required"])
            names = (f"{prefix[:58]}{''.join(random.choices(_NAME_LETTERS, k=5))}" for _ in range(8))
            metadata["name"] = next(name for name in names if self.store.find(kind, metadata.get("namespace", ""), name) is None)
        if not pods.DNS_SUBDOMAIN.fullmatch(metadata["name"]) and kind.group != "rbac.authorization.k8s.io":
            said = f'metadata.name: Invalid value: "{metadata["name"]}": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters'
            raise status.invalid(kind.kind, metadata["name"], [said])

    # -- change

    def update(self, kind: Kind, namespace: str, name: str, body: Json, subresource: str = "") -> Json:
        """PUT. Without a resourceVersion in the body the last writer wins, as on the real server."""
        _check_type(kind, body)
        if body.get("metadata", {}).get("name", name) != name:
            raise status.ApiRefusal(400, f"the name of the object ({body['metadata']['name']}) does not match the name on the URL ({name})")
        new = clone(body)
        return self._change(kind, namespace, name, lambda _: new, subresource)

    def patch(self, kind: Kind, namespace: str, name: str, content_type: str, patch: Any, subresource: str = "") -> tuple[Json, list[str]]:
        """PATCH of any sort; server-side apply creates what is not there."""
        if content_type == "application/apply-patch+yaml" and self.store.find(kind, namespace, name) is None:
            body = {**patch, "metadata": {**patch.get("metadata", {}), "name": name}}
            return self.create(kind, namespace, body)
        return self._change(kind, namespace, name, lambda old: patches.apply(content_type, clone(old), patch), subresource), []

    def _change(self, kind: Kind, namespace: str, name: str, change: Callable[[Json], Json], subresource: str) -> Json:
        old = self.store.get(kind, namespace, name)
        new = change(old)
        new.setdefault("metadata", {}).setdefault("name", name)
        if subresource == "status":
            metadata = old["metadata"] | {key: new["metadata"][key] for key in ("labels", "annotations", "resourceVersion", "uid") if key in new["metadata"]}
            new = {**old, "metadata": metadata, **({"status": new["status"]} if "status" in new else {})}
        elif kind.has_status:
            new.pop("status", None)
            new |= {"status": old["status"]} if "status" in old else {}
        if kind is PODS:
            pods.check_update(old, new)
        elif kind in (DEPLOYMENTS, JOBS):
            _check_template(kind, new)
        if kind is NODES and isinstance(new.get("status"), dict):
            new["status"] = pods.canonical_node_status(new["status"], name)
        return self.store.replace(kind, old, new)

    # -- delete

    def delete(self, kind: Kind, namespace: str, name: str, options: Json | None = None) -> Json:
        """Graceful for bound, running pods; held up by finalizers; at once for everything else."""
        obj, options = self.store.get(kind, namespace, name), options or {}
        self._check_preconditions(kind, obj, options.get("preconditions") or {})
        grace = self._grace(kind, obj, options.get("gracePeriodSeconds"))
        if grace > 0 or obj["metadata"].get("finalizers"):
            return self.store.mark_deleted(kind, obj, grace)
        removed = self.store.remove(kind, obj)
        self._sweep_up(kind, removed)
        return removed

    def _check_preconditions(self, kind: Kind, obj: Json, wanted: Json) -> None:
        for field, spelling in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            held = obj["metadata"][field]
            if wanted.get(field) and wanted[field] != held:
                why = f"Precondition failed: {spelling} in precondition: {wanted[field]}, {spelling} in object meta: {held}"
                raise status.conflict(kind.qualified, obj["metadata"]["name"], why)

    def _grace(self, kind: Kind, obj: Json, asked: int | None) -> int:
        """Seconds; pods that never reached a node, or have ended, need none (pkg/registry/core/pod/strategy.go)."""
        if kind is not PODS or not obj["spec"].get("nodeName") or obj["status"].get("phase") in ("Succeeded", "Failed"):
            return 0
        return int(obj["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked)

    def _sweep_up(self, kind: Kind, removed: Json) -> None:
        if kind is CUSTOM_RESOURCE_DEFINITIONS:
            self.kinds.remove_definition(removed)
        elif kind is NAMESPACES:
            for inner in [each for each in self.kinds if each.namespaced]:
                self.delete_all(inner, removed["metadata"]["name"], None, {"gracePeriodSeconds": 0})

    def delete_all(self, kind: Kind, namespace: str | None, test: Test | None, options: Json | None = None) -> list[Json]:
        """DELETE of a collection."""
        found = self.store.list(kind, namespace, test)
        return [self.delete(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"], options) for obj in found]

    # -- subresources of pods

    def bind(self, namespace: str, name: str, binding: Json) -> Json:
        """POST pods/NAME/binding: node, annotations and labels appear in one write."""
        pod = self.store.get(PODS, namespace, name)
        return self.store.replace(PODS, pod, pods.bound(pod, binding))

    def evict(self, namespace: str, name: str, eviction: Json) -> Json:
        """POST pods/NAME/eviction. Disruption budgets are not simulated."""
        return self.delete(PODS, namespace, name, eviction.get("deleteOptions"))


def _check_type(kind: Kind, body: Any) -> None:
    if not isinstance(body, dict):
        raise status.ApiRefusal(400, f"the body is not an object of kind {kind.kind}")
    if body.get("kind", kind.kind) != kind.kind or body.get("apiVersion", kind.api_version) != kind.api_version:
        given = f"{body.get('apiVersion')}, Kind={body.get('kind')}"
        raise status.ApiRefusal(400, f"the object provided is unrecognized here: it is {given}, this address takes {kind.api_version}, Kind={kind.kind}")


def _check_template(kind: Kind, obj: Json) -> None:
    """A workload without a usable pod template is refused where it is written, not found out by its controller."""
    spec = obj.get("spec") or {}
    template = spec.get("template") or {}
    problems = [] if (template.get("spec") or {}).get("containers") else ["spec.template.spec.containers: Required value"]
    if kind is DEPLOYMENTS:
        spec.setdefault("replicas", 1)
        selector, labels = spec.get("selector"), (template.get("metadata") or {}).get("labels") or {}
        if not selector:
            problems.append("spec.selector: Required value")
        elif not matches_labels(selector, labels):
            problems.append(f"spec.template.metadata.labels: Invalid value: {labels}: `selector` does not match template `labels`")
    if problems:
        raise status.invalid(kind.kind, obj["metadata"]["name"], problems)


def _establish(definition: Json) -> None:
    names = definition["spec"]["names"]
    definition["status"] = {
        "acceptedNames": names,
        "conditions": [
            {"type": condition, "status": "True", "reason": "InitialNamesAccepted", "message": "", "lastTransitionTime": timestamp()}
            for condition in ("NamesAccepted", "Established")
        ],
        "storedVersions": [version["name"] for version in definition["spec"].get("versions", ()) if version.get("storage")],
    }
