# SPDX-License-Identifier: Apache-2.0
"""What the API server itself does to a pod: defaults, quantities, validation, priority, binding.

Only what a scheduler or a kubelet looks at is done. Sources: pkg/apis/core/v1/defaults.go, pkg/apis/core/validation,
plugin/pkg/admission/priority and `BindingREST` in pkg/registry/core/pod/storage of Kubernetes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from hami_framework.sandbox import quantities, status
from hami_framework.sandbox.resources import PODS
from hami_framework.sandbox.storage import timestamp

Json = dict[str, Any]

NATIVE_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage", "storage", "pods"})
DNS_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}

MUTABLE_SPEC = frozenset({"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"})


def containers(pod: Json) -> Iterator[tuple[str, Json]]:
    """Every container with its place in the spec."""
    for field in ("initContainers", "containers"):
        for index, container in enumerate(pod["spec"].get(field) or ()):
            yield f"spec.{field}[{index}]", container


def is_extended(name: str) -> bool:
    """True for countable resources outside Kubernetes' own names."""
    return "/" in name and not name.startswith(("requests.", "kubernetes.io/"))


def default(pod: Json, priority_classes: Iterable[Json] = ()) -> None:
    """Fill in what the server fills in, and rewrite quantities. Raises `ApiRefusal` 422 for what cannot be read."""
    spec = pod["spec"]
    for field, value in (
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("terminationGracePeriodSeconds", 30),
        ("schedulerName", "default-scheduler"),
        ("serviceAccountName", "default"),
        ("securityContext", {}),
        ("enableServiceLinks", True),
        ("preemptionPolicy", "PreemptLowerPriority"),
    ):
        spec.setdefault(field, value)
    for place, container in containers(pod):
        container.setdefault("imagePullPolicy", "IfNotPresent")
        container["resources"] = _resources(pod, place, container.get("resources") or {})
    spec["tolerations"] = [*(spec.get("tolerations") or ()), *_default_tolerations(spec.get("tolerations") or ())]
    _set_priority(pod, priority_classes)
    pod["status"] = {"phase": "Pending", "qosClass": _quality(pod)}
    if spec.get("schedulingGates"):
        message = "Scheduling is blocked due to non-empty scheduling gates"
        pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": message}]


def _resources(pod: Json, place: str, resources: Json) -> Json:
    filled: Json = dict(resources)
    for section in ("limits", "requests"):
        given = resources.get(section)
        if given:
            filled[section] = {name: _canonical(pod, f"{place}.resources.{section}[{name}]", raw) for name, raw in given.items()}
    if filled.get("limits"):
        filled["requests"] = {**filled["limits"], **filled.get("requests", {})}
    return filled


def _canonical(pod: Json, where: str, raw: Any) -> str:
    try:
        return quantities.canonical(raw)
    except ValueError as error:
        raise status.invalid("Pod", pod["metadata"].get("name", ""), [f"{where}: Invalid value: {raw!r}: {error}"]) from error


def _default_tolerations(given: Iterable[Json]) -> list[Json]:
    keys = {toleration.get("key") for toleration in given}
    wanted = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    if None in keys:
        return []
    return [{"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300} for key in wanted if key not in keys]


def _set_priority(pod: Json, priority_classes: Iterable[Json]) -> None:
    """Resolve the class name. A bare number is kept: the sandbox is kinder here than the Priority admission plugin."""
    spec = pod["spec"]
    classes = {item["metadata"]["name"]: item for item in priority_classes}
    named = spec.get("priorityClassName")
    if not named and "priority" not in spec:
        named = next((name for name, item in classes.items() if item.get("globalDefault")), None)
    if not named:
        spec.setdefault("priority", 0)
        return
    if named not in classes and named not in SYSTEM_PRIORITIES:
        raise status.ApiRefusal(403, f'pods "{pod["metadata"].get("name", "")}" is forbidden: no PriorityClass with name {named} was found')
    spec["priorityClassName"] = named
    spec["priority"] = SYSTEM_PRIORITIES.get(named, 0) if named not in classes else classes[named].get("value", 0)
    if named in classes and classes[named].get("preemptionPolicy"):
        spec["preemptionPolicy"] = classes[named]["preemptionPolicy"]


def _quality(pod: Json) -> str:
    sections = [container.get("resources") or {} for _, container in containers(pod)]
    native = [{name: section.get(side, {}).get(name) for side in ("limits", "requests") for name in ("cpu", "memory")} for section in sections]
    if not any(value for section in native for value in section.values()):
        return "BestEffort"
    guaranteed = all(
        section.get("limits", {}).get(name) and section.get("requests", {}).get(name) == section["limits"][name]
        for section in sections
        for name in ("cpu", "memory")
    )
    return "Guaranteed" if guaranteed else "Burstable"


def validate(pod: Json) -> None:
    """Raises `ApiRefusal` 422 with everything that is wrong."""
    spec = pod["spec"]
    problems = [] if spec.get("containers") else ["spec.containers: Required value"]
    seen: set[str] = set()
    for place, container in containers(pod):
        name = container.get("name", "")
        if not name:
            problems.append(f"{place}.name: Required value")
        elif not DNS_LABEL.fullmatch(name):
            problems.append(f'{place}.name: Invalid value: "{name}": a lowercase RFC 1123 label is needed')
        elif name in seen:
            problems.append(f'{place}.name: Duplicate value: "{name}"')
        seen.add(name)
        problems += _resource_problems(place, container["resources"])
    if problems:
        raise status.invalid("Pod", pod["metadata"]["name"], problems)


def _resource_problems(place: str, resources: Json) -> Iterator[str]:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for section, given in (("limits", limits), ("requests", requests)):
        for name, raw in given.items():
            where, value = f"{place}.resources.{section}[{name}]", quantities.amount(raw)
            if value < 0:
                yield f'{where}: Invalid value: "{raw}": must be greater than or equal to 0'
            elif "/" not in name and name not in NATIVE_RESOURCES and not name.startswith("hugepages-"):
                yield f'{where}: Invalid value: "{name}": must be a standard resource type or fully qualified'
            elif is_extended(name) and value.denominator != 1:
                yield f'{where}: Invalid value: "{raw}": must be an integer'
    for name, raw in requests.items():
        where = f"{place}.resources.requests"
        if is_extended(name) and name not in limits:
            yield f"{where}: Required value: Limit must be set for non overcommitable resources"
        elif is_extended(name) and quantities.amount(raw) != quantities.amount(limits[name]):
            yield f'{where}: Invalid value: "{raw}": must be equal to {name} limit of {limits[name]}'
        elif name in limits and quantities.amount(raw) > quantities.amount(limits[name]):
            yield f'{where}: Invalid value: "{raw}": must be less than or equal to {name} limit of {limits[name]}'


def check_update(old: Json, new: Json) -> None:
    """Raises `ApiRefusal` 422 when more of the spec changes than a pod's may."""
    if _fixed_spec(old) != _fixed_spec(new):
        allowed = (
            "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations`,`spec.terminationGracePeriodSeconds`"
        )
        raise status.invalid("Pod", old["metadata"]["name"], [f"spec: Forbidden: pod updates may not change fields other than {allowed}"])


def _fixed_spec(pod: Json) -> Json:
    fixed = {key: value for key, value in pod["spec"].items() if key not in MUTABLE_SPEC}
    for field in ("initContainers", "containers"):
        if field in fixed:
            fixed[field] = [{key: value for key, value in container.items() if key != "image"} for container in fixed[field]]
    return fixed


def bound(pod: Json, binding: Json) -> Json:
    """The pod after a Binding: node, annotations and labels in one write.

    Raises `ApiRefusal` 409 for another uid, and for pods that are deleted, bound or gated; 400 for a target that is no node.
    """
    metadata, given = pod["metadata"], binding.get("metadata") or {}
    name, target = metadata["name"], binding.get("target") or {}
    if target.get("kind", "Node") not in ("", "Node") or not target.get("name"):
        raise status.invalid("Binding", name, ["target.name: Required value: bind to a Node by name"])
    if given.get("uid") and given["uid"] != metadata["uid"]:
        why = f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {metadata['uid']}"
        raise status.conflict(PODS.qualified, name, why)
    if given.get("resourceVersion") not in (None, "", metadata["resourceVersion"]):
        raise status.stale(PODS.qualified, name)
    if "deletionTimestamp" in metadata:
        raise status.conflict("pods/binding", name, f"pod {name} is being deleted, cannot be assigned to a host")
    if pod["spec"].get("nodeName"):
        raise status.conflict("pods/binding", name, f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"')
    if pod["spec"].get("schedulingGates"):
        raise status.conflict("pods/binding", name, f"pod {name} has non-empty .spec.schedulingGates")
    merged = dict(metadata)
    if given.get("annotations"):
        merged["annotations"] = {**(metadata.get("annotations") or {}), **given["annotations"]}
    if given.get("labels"):
        merged["labels"] = {**given["labels"], **(metadata.get("labels") or {})}
    scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": timestamp()}
    conditions = [item for item in pod["status"].get("conditions") or () if item["type"] != "PodScheduled"]
    return {
        **pod,
        "metadata": merged,
        "spec": {**pod["spec"], "nodeName": target["name"]},
        "status": {**pod["status"], "conditions": [*conditions, scheduled]},
    }


def canonical_node_status(node_status: Json, node: str) -> Json:
    """A node's status with its quantities rewritten. Raises `ApiRefusal` 422 for what is no quantity."""
    rewritten = dict(node_status)
    for section in ("capacity", "allocatable"):
        given = node_status.get(section) or {}
        try:
            rewritten[section] = {name: quantities.canonical(raw) for name, raw in given.items()}
        except ValueError as error:
            raise status.invalid("Node", node, [f"status.{section}: Invalid value: {error}"]) from error
    return rewritten
