# SPDX-License-Identifier: Apache-2.0
"""Pods of the probe: small builders, so that a test shows what matters in it and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from e2e.lab.images import PROBE

Json = dict[str, Any]
Amounts = Mapping[str, int | str]


def container(name: str = "main", limits: Amounts | None = None, *, args: Sequence[str] = (), **more: Any) -> Json:
    """A container with the probe, which is told who it is. `limits`: resource name → amount."""
    built: Json = {"name": name, "image": PROBE, "imagePullPolicy": "Never", "env": identity(name)}
    if limits:
        built["resources"] = {"limits": {resource: str(amount) for resource, amount in limits.items()}}
    return built | ({"args": list(args)} if args else {}) | more


def sidecar(name: str, limits: Amounts | None = None, **more: Any) -> Json:
    """An init container that stays."""
    return container(name, limits, restartPolicy="Always", **more)


def ending(name: str, limits: Amounts | None = None, **more: Any) -> Json:
    """A container that looks once and ends: an init container, or the work of a Job."""
    return container(name, limits, args=("--run", "100ms"), **more)


def pod(
    name: str,
    containers: Sequence[Json] | Amounts,
    *,
    init: Sequence[Json] = (),
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> Json:
    """A pod. `containers`: built ones, or the limits of one alone. `spec`: further fields of its spec."""
    apps = [container("main", containers)] if isinstance(containers, Mapping) else list(containers)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": dict(annotations or {}), "labels": dict(labels or {})},
        "spec": {**QUIET, "containers": apps, **({"initContainers": list(init)} if init else {}), **spec},
    }


QUIET: Json = {"dnsPolicy": "Default", "automountServiceAccountToken": False, "enableServiceLinks": False, "terminationGracePeriodSeconds": 1}
"""What keeps a pod of the lab small: there is no DNS in it, and the probe ends at once."""


def with_probe(manifest: Json) -> Json:
    """Somebody else's manifest with the probe in its containers: image, command and what tells it who it is are ours, all else is theirs."""
    changed: Json = dict(manifest)
    if changed["kind"] != "Pod":
        template = dict(changed["spec"]["template"])
        template["spec"] = _probing(template["spec"])
        return changed | {"spec": {**changed["spec"], "template": template}}
    return changed | {"spec": _probing(changed["spec"])}


def _probing(spec: Json) -> Json:
    def own(one: Json) -> Json:
        kept = {key: value for key, value in one.items() if key not in ("image", "command", "args", "imagePullPolicy")}
        return kept | {"image": PROBE, "imagePullPolicy": "Never", "env": [*one.get("env", ()), *identity(one["name"])]}

    return {**spec, **QUIET, **{key: [own(one) for one in spec[key]] for key in ("containers", "initContainers") if key in spec}}


def identity(name: str) -> list[Json]:
    """Environment that tells a container who it is, by the downward API."""
    return [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}, {"name": "CONTAINER_NAME", "value": name}]
