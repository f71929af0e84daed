# SPDX-License-Identifier: Apache-2.0
"""The one mutation at admission: what a pod must say so that kubelet and the node agent are called for it.

It does five things and nothing else: rewrites aliases to the declared names, adds a missing count (of 1) where a
container names amounts only, raises a count of whole devices to the least that can be had, hides a vendor's devices
from those containers of the pod that asked for none of them, and sets what the operator's `Rules` say of the whole pod.
It is pure (JSON in, JSON patch out), minimal, and idempotent: its own result is left alone. What is ambiguous or wrong is
left as written, for the scheduler to refuse with a reason; `review` warns of it. Two things are refused at once: a share in a
privileged container, which nothing could hold it to, and what oversteps the namespace's quota.

AdmissionReview v1: `docs/resources.md`, and Kubernetes' "Dynamic Admission Control".
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hami_framework.codec import words
from hami_framework.codec.admission import NO_RULES, Rules, remarks, whole_pod
from hami_framework.codec.annotations import POLICIES
from hami_framework.codec.asking import vendors_asked, whole_devices
from hami_framework.codec.containers import Group, asks_amounts, by_family, counts_devices
from hami_framework.codec.pods import read_pod
from hami_framework.codec.podspec import Json, Place, mapping, places, quantities, spelled
from hami_framework.codec.resources import NEUTRAL_VENDOR, ResourceCatalog
from hami_framework.errors import FormatError, InvalidRequest
from hami_framework.model import PodRequest, Reason, Rejection, encode

Operation = dict[str, Any]
"""One operation of a JSON patch (RFC 6902)."""

LONGEST_WARNING = 256
"""Characters after which the API server may cut a warning (k8s.io/api/admission/v1, `AdmissionResponse.Warnings`)."""

REFUSED_AT_ONCE = frozenset({Reason.PRIVILEGED_SHARE})
"""Reasons for which a pod is not even created: it would look like a tenant like any other and be none."""


def mutate_pod(pod: Json, catalog: ResourceCatalog, rules: Rules = NO_RULES) -> list[Operation]:
    """The JSON patch that completes the pod; empty when there is nothing to do, in particular for pods that are not ours."""
    completed = [operation for place in places(pod) for operation in _patch(place, catalog)]
    hidden = [operation for place, environment in _hidden(pod, catalog) for operation in _set(place, environment)]
    return [*completed, *hidden, *whole_pod(pod, catalog, rules)]


def apply_patch(pod: Json, operations: list[Operation]) -> dict[str, Any]:
    """The pod after `mutate_pod`'s operations (members of objects, and items of `env`, as it writes them)."""
    result: dict[str, Any] = _copy(pod)
    for operation in operations:
        *way, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].removeprefix("/").split("/"))
        owner: Any = result
        for part in way:
            owner = owner[int(part)] if isinstance(owner, list) else owner[part]
        if isinstance(owner, list) and last == "-":
            owner.append(operation["value"])
        elif isinstance(owner, list):
            owner[int(last)] = operation["value"]
        elif operation["op"] == "remove":
            del owner[last]
        else:
            owner[last] = operation["value"]
    return result


def review(
    admission_review: Json,
    catalog: ResourceCatalog,
    *,
    policies: Collection[str] = POLICIES,
    rules: Rules = NO_RULES,
    objections: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Answer an AdmissionReview v1: patched where needed, with warnings in words; denied for `REFUSED_AT_ONCE` and `objections`.

    A pod that can never be placed is admitted all the same (its refusal belongs to scheduling, where it can be looked
    up), but its author is told at once. `policies`: as for `read_pod`. `objections`: why this pod must not be created, as others
    found (the namespace's quota). `notes`: further warnings. Everything but the creation of a pod is allowed and left alone.
    Raises `FormatError` when this is no AdmissionReview of a version we speak.
    """
    response: dict[str, Any] = {"uid": _request(admission_review).get("uid", ""), "allowed": True}
    pod = created_pod(admission_review)
    if pod is not None:
        operations = mutate_pod(pod, catalog, rules)
        patched = apply_patch(pod, operations)
        rejections = _rejections(patched, catalog, policies)
        denials = [*(words.sentence(rejection) for rejection in rejections if rejection.reason in REFUSED_AT_ONCE), *objections]
        if denials:
            response |= {"allowed": False, "status": {"code": 403, "reason": "Forbidden", "message": "; ".join(denials)}}
        elif operations:
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(encode(operations)).decode()}
        told = [f"no node will take this pod: {words.sentence(rejection)}" for rejection in rejections if rejection.reason not in REFUSED_AT_ONCE]
        warnings = [*_changes(pod, patched, catalog), *remarks(pod, catalog, rules), *told, *notes]
        if warnings:
            response["warnings"] = [_shortened(warning) for warning in warnings]
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def created_pod(admission_review: Json) -> Json | None:
    """The pod that is about to be created, None when the review is about something else. Raises `FormatError`."""
    request = _request(admission_review)
    pod = request.get("object")
    if mapping(request, "kind", "request").get("kind") != "Pod" or request.get("operation") != "CREATE" or request.get("subResource"):
        return None
    return pod if isinstance(pod, Mapping) else None


def wanted(admission_review: Json, catalog: ResourceCatalog, *, policies: Collection[str] = POLICIES) -> tuple[str, PodRequest] | None:
    """Namespace and request of the pod to be created, once completed; None where there is none, or it cannot be read. Raises `FormatError`."""
    pod = created_pod(admission_review)
    if pod is None:
        return None
    namespace = _request(admission_review).get("namespace") or mapping(pod, "metadata").get("namespace") or "default"
    try:
        return str(namespace), read_pod(apply_patch(pod, mutate_pod(pod, catalog)), catalog, policies=policies)
    except InvalidRequest:
        return None


def _request(admission_review: Json) -> Json:
    request = admission_review.get("request")
    if admission_review.get("apiVersion") != "admission.k8s.io/v1" or admission_review.get("kind") != "AdmissionReview" or not isinstance(request, Mapping):
        raise FormatError("not an AdmissionReview of admission.k8s.io/v1 with a request")
    return request


def _patch(place: Place, catalog: ResourceCatalog) -> Iterator[Operation]:
    """What to change in one container. Limits decide; requests that name the same family follow, so that both stay equal."""
    counts = _new_counts(by_family(spelled(place, "limits", catalog)))
    for section in ("limits", "requests"):
        items = spelled(place, section, catalog)
        pointer = f"{place.pointer}/resources/{section}"
        spellings = Counter(item.meaning.name for item in items)
        for item in items:
            if item.is_alias and spellings[item.meaning.name] == 1:
                yield _operation("remove", pointer, item.spelling)
                if item.meaning.name not in counts:
                    yield _operation("add", pointer, item.meaning.name, item.raw)
        named = {item.meaning.family.names.count for item in items}
        yield from (_operation("add", pointer, name, str(count)) for name, count in counts.items() if name in named)


def _hidden(pod: Json, catalog: ResourceCatalog) -> Iterator[tuple[Place, dict[str, str]]]:
    """What containers beside one with devices must be told so that they see none of that vendor's.

    A vendor's container runtime may look at the environment alone, and an image may say "all" there. A container that asks
    in neutral names may be given any vendor's device, so nothing is hidden from it.
    """
    asked = vendors_asked(pod, catalog)
    vendors = frozenset[str]().union(*asked.values())
    everybody = NEUTRAL_VENDOR in vendors
    for place in places(pod):
        own = asked[place.pointer]
        environment = {
            name: value
            for family in catalog.families
            if (everybody or family.vendor in vendors) and family.vendor not in own and NEUTRAL_VENDOR not in own
            for name, value in family.names.hidden_by.items()
        }
        wanted = {name: value for name, value in environment.items() if {"name": name, "value": value} not in (place.container.get("env") or [])}
        if wanted:
            yield place, wanted


def _set(place: Place, environment: Mapping[str, str]) -> Iterator[Operation]:
    """Entries of these names are replaced, also those that take their value from elsewhere; the others are added."""
    env = place.container.get("env") or []
    if not env:
        yield {"op": "add", "path": f"{place.pointer}/env", "value": [{"name": name, "value": value} for name, value in environment.items()]}
        return
    for name, value in environment.items():
        number = next((number for number, entry in enumerate(env) if isinstance(entry, Mapping) and entry.get("name") == name), None)
        op, last = ("add", "-") if number is None else ("replace", str(number))
        yield {"op": op, "path": f"{place.pointer}/env/{last}", "value": {"name": name, "value": value}}


def _new_counts(groups: Sequence[Group]) -> dict[str, int]:
    """Counts to be written: 1 where amounts stand alone, the minimum where fewer whole devices are asked.

    No count is added beside another family's: whether the amount belongs to that one or to a further device is for
    the author to say. A share is not raised: it is part of one device.
    """
    counted = any(counts_devices(group) for group in groups)
    counts: dict[str, int] = {}
    for group in groups:
        names = group[0].meaning.family.names
        if asks_amounts(group):
            if not counted:
                counts[names.count] = 1
        elif 0 < whole_devices(group) < names.minimum_count:
            counts[names.count] = names.minimum_count
    return counts


def _operation(op: str, pointer: str, key: str, *value: object) -> Operation:
    escaped = key.replace("~", "~0").replace("/", "~1")
    return {"op": op, "path": f"{pointer}/{escaped}"} | ({"value": value[0]} if value else {})


def _changes(pod: Json, patched: Json, catalog: ResourceCatalog) -> Iterator[str]:
    """What was rewritten, container by container, for the person who wrote the pod."""
    before_spec = mapping(pod, "spec")
    for field in ("schedulerName", "runtimeClassName"):
        if mapping(patched, "spec").get(field) != before_spec.get(field):
            yield f"spec.{field} was set to {patched['spec'][field]}, because the pod asks for devices"
    for place, environment in _hidden(pod, catalog):
        for name, value in environment.items():
            yield f"container {place.name}: {name}={value} was set, because it asks for no device of the kind that others of this pod ask for"
    for place, new_place in zip(places(pod), places(patched), strict=True):
        after = quantities(new_place, "limits")
        items = spelled(place, "limits", catalog)
        for item in items:
            if item.spelling not in after:
                yield f"container {place.name}: {item.spelling} is an alias and was rewritten to {item.meaning.name}"
        before = {item.meaning.name: item.raw for item in items}
        for item in spelled(new_place, "limits", catalog):
            if item.spelling not in before:
                yield f"container {place.name}: {item.spelling}: {item.raw} was added, because amounts alone do not say how many devices"
            elif item.raw != before[item.spelling]:
                yield f"container {place.name}: {item.spelling} was raised from {before[item.spelling]} to {item.raw}, the least that can be had"


def _rejections(pod: Json, catalog: ResourceCatalog, policies: Collection[str]) -> tuple[Rejection, ...]:
    try:
        read_pod(pod, catalog, policies=policies)
    except InvalidRequest as error:
        return error.rejections
    return ()


def _shortened(warning: str) -> str:
    return warning if len(warning) <= LONGEST_WARNING else warning[: LONGEST_WARNING - 1] + "…"


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
