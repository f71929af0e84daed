# SPDX-License-Identifier: Apache-2.0
"""The rules of CDI 1.1.0 for one specification: fields, names, versions, edits (SPEC.md; pkg/cdi/{spec,device,container-edits}.go)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hami_framework.errors import HamiError

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
"""Versions a spec may declare; 0.3.0 is the least any spec needs."""
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
DEVICE_TYPES = ("", "b", "c", "u", "p")

_VENDOR = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_CLASS = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")

_SPEC_FIELDS = {"cdiVersion": str, "kind": str, "annotations": dict, "devices": list, "containerEdits": dict}
_DEVICE_FIELDS = {"name": str, "annotations": dict, "containerEdits": dict}
_EDIT_FIELDS = {"env": list, "deviceNodes": list, "netDevices": list, "hooks": list, "mounts": list, "intelRdt": dict, "additionalGids": list}
_NODE_FIELDS = {
    "path": str, "hostPath": str, "type": str, "major": int, "minor": int, "fileMode": int, "permissions": str, "uid": int, "gid": int,
}  # fmt: skip
_NET_FIELDS = {"hostInterfaceName": str, "name": str}
_HOOK_FIELDS = {"hookName": str, "path": str, "args": list, "env": list, "timeout": int}
_MOUNT_FIELDS = {"hostPath": str, "containerPath": str, "options": list, "type": str}
_RDT_FIELDS = {"closID": str, "l3CacheSchema": str, "memBwSchema": str, "schemata": list, "enableMonitoring": bool, "enableCMT": bool, "enableMBM": bool}


class SpecError(HamiError):
    """A CDI specification, or a CDI name, that the runtime refuses."""


def check_spec(spec: object) -> None:
    """Raise SpecError when `spec` is not a valid CDI specification."""
    document = _fields(spec, _SPEC_FIELDS, "spec")
    version = document.get("cdiVersion", "")
    if version not in VERSIONS:
        raise SpecError(f"invalid version {version!r}")
    _check_kind(document.get("kind", ""))
    devices = [_fields(device, _DEVICE_FIELDS, "device") for device in document.get("devices") or ()]
    if not devices:
        raise SpecError("invalid spec, no devices")
    for device in devices:
        _check_device(device)
    names = [device["name"] for device in devices]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"invalid spec, multiple device {name!r}")
    _check_edits(document.get("containerEdits") or {})
    needed = minimum_version(document)
    if VERSIONS.index(version) < VERSIONS.index(needed):
        raise SpecError(f"the spec version must be at least v{needed}, it is v{version}")


def minimum_version(spec: Mapping[str, Any]) -> str:
    """The lowest version that has every field in use."""
    devices = spec.get("devices") or ()
    edits = [spec.get("containerEdits") or {}, *(device.get("containerEdits") or {} for device in devices)]
    rdt = [edit.get("intelRdt") or {} for edit in edits]
    nodes = [node for edit in edits for node in edit.get("deviceNodes") or ()]
    mounts = [mount for edit in edits for mount in edit.get("mounts") or ()]
    annotated = bool(spec.get("annotations")) or any(device.get("annotations") for device in devices)
    rules = (
        ("1.1.0", any(edit.get("netDevices") for edit in edits) or any(set(item) & {"schemata", "enableMonitoring"} for item in rdt)),
        ("0.7.0", any(edit.get("additionalGids") for edit in edits) or any(rdt)),
        ("0.6.0", annotated or "." in spec["kind"].partition("/")[2]),
        ("0.5.0", any(not device["name"][0].isalpha() for device in devices) or any(node.get("hostPath") for node in nodes)),
        ("0.4.0", any(mount.get("type") for mount in mounts)),
    )
    return next((version for version, used in rules if used), "0.3.0")


def _check_kind(kind: str) -> None:
    vendor, slash, class_ = kind.partition("/")
    if not slash or not _VENDOR.fullmatch(vendor):
        raise SpecError(f"invalid vendor in kind {kind!r}: <vendor>/<class>, the vendor beginning with a letter")
    if not _CLASS.fullmatch(class_):
        raise SpecError(f"invalid class in kind {kind!r}")


def _check_device(device: Mapping[str, Any]) -> None:
    name = device.get("name", "")
    if not _DEVICE.fullmatch(name):
        raise SpecError(f"invalid device name {name!r}")
    edits = device.get("containerEdits") or {}
    if not any(edits.values()):
        raise SpecError(f"invalid device {name!r}, empty device edits")
    _check_edits(edits)


def _check_edits(edits: object) -> None:
    checked = _fields(edits, _EDIT_FIELDS, "containerEdits")
    _check_env(checked.get("env") or ())
    for node in _items(checked, "deviceNodes", _NODE_FIELDS):
        _need(node, "path", "device node")
        if node.get("type", "") not in DEVICE_TYPES:
            raise SpecError(f"device {node['path']!r}: invalid type {node['type']!r}")
        if set(node.get("permissions", "")) - set("rwm"):
            raise SpecError(f"device {node['path']!r}: invalid permissions {node['permissions']!r}")
    for hook in _items(checked, "hooks", _HOOK_FIELDS):
        if hook.get("hookName") not in HOOKS:
            raise SpecError(f"invalid hook name {hook.get('hookName')!r}")
        _need(hook, "path", "hook")
        _check_env(hook.get("env") or ())
    for mount in _items(checked, "mounts", _MOUNT_FIELDS):
        _need(mount, "hostPath", "mount")
        _need(mount, "containerPath", "mount")
    for device in _items(checked, "netDevices", _NET_FIELDS):
        _need(device, "hostInterfaceName", "net device")
        _need(device, "name", "net device")
    if "intelRdt" in checked:
        _fields(checked["intelRdt"], _RDT_FIELDS, "intelRdt")
    if any(type(gid) is not int or gid < 0 for gid in checked.get("additionalGids") or ()):
        raise SpecError("additionalGids must be non-negative integers")


def _check_env(entries: Any) -> None:
    for entry in entries:
        if not isinstance(entry, str) or entry.find("=") <= 0:
            raise SpecError(f"invalid environment variable {entry!r}")


def _items(edits: Mapping[str, Any], key: str, allowed: Mapping[str, type]) -> Iterator[Mapping[str, Any]]:
    for item in edits.get(key) or ():
        yield _fields(item, allowed, key)


def _need(item: Mapping[str, Any], key: str, what: str) -> None:
    if not item.get(key):
        raise SpecError(f"invalid {what}, empty {key}")


def _fields(value: object, allowed: Mapping[str, type], what: str) -> Mapping[str, Any]:
    """`value` as an object with known fields of the right types only."""
    if not isinstance(value, dict):
        raise SpecError(f"{what} must be an object, it is {type(value).__name__}")
    accepts: Callable[[object, type], bool] = lambda item, type_: isinstance(item, type_) and not (type_ is int and isinstance(item, bool))  # noqa: E731
    for key, item in value.items():
        if key not in allowed:
            raise SpecError(f"unknown field {key!r} in {what}")
        if item is not None and not accepts(item, allowed[key]):
            raise SpecError(f"field {key!r} in {what} must be {allowed[key].__name__}, it is {type(item).__name__}")
    return value
