# SPDX-License-Identifier: Apache-2.0
"""From a pod's container and the plugins' answers to what kubelet hands the runtime."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as api
from hami_framework.sandbox.kubelet.names import device_limits, whole_units
from hami_framework.sandbox.runtime.container import ContainerConfig, ContainerError, Kind

RUN_SECONDS = "sandbox.hami.io/run-seconds"
"""Pod annotation: app containers end by themselves after so many seconds and the pod succeeds, whatever its restartPolicy."""
INIT_SECONDS = "sandbox.hami.io/init-seconds"
"""Pod annotation: how long each init container runs."""

_REFERENCE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")
_KEYED_FIELD = re.compile(r"metadata\.(annotations|labels)\['([^']+)'\]")


def kinds(pod: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Kind]]:
    """The containers of a pod in the order kubelet starts them."""
    spec = pod["spec"]
    before: list[tuple[Mapping[str, Any], Kind]] = [
        (container, "sidecar" if container.get("restartPolicy") == "Always" else "init") for container in spec.get("initContainers") or ()
    ]
    return before + [(container, "app") for container in spec["containers"]]


def seconds(pod: Mapping[str, Any], annotation: str) -> float | None:
    """The number in a pod's annotation; None when it has none. Raises ContainerError on anything but a number ≥ 0."""
    text = (pod["metadata"].get("annotations") or {}).get(annotation)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise ContainerError("CreateContainerConfigError", f"annotation {annotation} is {text!r}: a number of seconds is needed")
    return float(text)


def container_config(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    kind: Kind,
    responses: Iterable[api.ContainerAllocateResponse],
    slots: Iterable[str],
    init_seconds: float,
) -> ContainerConfig:
    """Raises ContainerError for an `env` that cannot be made."""
    answers = list(responses)
    metadata = pod["metadata"]
    env = {key: value for answer in answers for key, value in answer.envs.items()}
    env |= pod_environment(pod, container, env)
    command = container.get("command") or ()
    argv = tuple(_expand(word, env) for word in (*command, *(container.get("args") or ()))) if command else ()
    security = {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
    ends_after = {"app": seconds(pod, RUN_SECONDS), "init": seconds(pod, INIT_SECONDS) or init_seconds, "sidecar": None}[kind]
    return ContainerConfig(
        pod_uid=metadata["uid"], namespace=metadata.get("namespace", "default"), pod=metadata["name"], container=container["name"], kind=kind, env=env,
        mounts=tuple(_mount(mount) for answer in answers for mount in answer.mounts),
        device_nodes=tuple(_device_node(device) for answer in answers for device in answer.devices),
        cdi_devices=tuple(device.name for answer in answers for device in answer.cdi_devices),
        slots=tuple(sorted(slots)), run_seconds=ends_after,
        argv=argv, cwd=container.get("workingDir"), uid=security.get("runAsUser"), gid=security.get("runAsGroup"),
        read_only_root=bool(security.get("readOnlyRootFilesystem")),
    )  # fmt: skip


def pod_environment(pod: Mapping[str, Any], container: Mapping[str, Any], base: Mapping[str, str]) -> dict[str, str]:
    """The container's own `env`: later entries may refer to earlier ones as `$(NAME)`."""
    env: dict[str, str] = {}
    for entry in container.get("env") or ():
        if "valueFrom" in entry:
            value = _from_source(pod, container, entry["name"], entry["valueFrom"])
            if value is None:
                continue
        else:
            value = _expand(entry.get("value") or "", {**base, **env})
        env[entry["name"]] = value
    return env


def _from_source(pod: Mapping[str, Any], container: Mapping[str, Any], name: str, source: Mapping[str, Any]) -> str | None:
    if "fieldRef" in source:
        return _field(pod, name, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        _, _, resource = source["resourceFieldRef"]["resource"].partition(".")
        return str(whole_units(device_limits(container).get(resource, "0")))
    kind, reference = next(iter(source.items()))
    if reference.get("optional"):
        return None
    raise ContainerError(
        "CreateContainerConfigError", f"env {name} comes from {kind}, which the sandbox does not simulate: write the value itself, or set optional: true"
    )


def _field(pod: Mapping[str, Any], name: str, field_path: str) -> str:
    keyed = _KEYED_FIELD.fullmatch(field_path)
    if keyed:
        return str((pod["metadata"].get(keyed[1]) or {}).get(keyed[2], ""))
    value: Any = pod
    for part in field_path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if field_path.startswith("status.") and value is None:
        return ""
    if not isinstance(value, str):
        raise ContainerError("CreateContainerConfigError", f"env {name}: fieldPath {field_path!r} is not supported")
    return value


def _expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` of what is known, `$$` as an escape, all else untouched."""
    return _REFERENCE.sub(lambda found: "$" if found[1] == "$" else env.get(found[2], found[0]), text)


def _mount(mount: api.Mount) -> dict[str, Any]:
    return {"hostPath": mount.host_path, "containerPath": mount.container_path, "options": ["rbind", "rprivate", "ro" if mount.read_only else "rw"]}


def _device_node(device: api.DeviceSpec) -> dict[str, Any]:
    return {"path": device.container_path, "hostPath": device.host_path, "permissions": device.permissions}
