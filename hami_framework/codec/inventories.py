# SPDX-License-Identifier: Apache-2.0
"""A node's inventory as the custom resource `nodeinventories.hami.io`: one object per node, named after it.

Eight equal devices share one description of their class: `spec.classes` holds each class once, under a name made from
its content, and a device points at it with `classRef`. `spec.generation` is the inventory's own counter
(`metadata.generation` belongs to the API server). `spec.held`, left out when empty, are the grants of local runs on the node, each as
the text of a pod's grant annotation. `spec.summary` is for people and printer columns; nothing reads it back. `status` is
what the agent says of itself (`codec.agent_status`); nothing here reads it.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from hami_framework.codec.grants import decode_grant, encode_grant
from hami_framework.errors import FormatError
from hami_framework.model import Capacity, Device, DeviceClass, Inventory, Value, VendorInfo, decode, device_name, encode, from_builtins, to_builtins

GROUP = "hami.io"
VERSION = "v1alpha1"
PLURAL = "nodeinventories"
KIND = "NodeInventory"
API_VERSION = f"{GROUP}/{VERSION}"


class Summary(Value, frozen=True, kw_only=True):
    """The inventory at a glance, for `kubectl get nodeinventories`."""

    devices: int
    healthy: int
    models: str
    """E.g. `8 × A100-SXM4-80GB`."""


def to_object(inventory: Inventory) -> dict[str, Any]:
    """The custom resource that the node agent writes."""
    references = {device.device_class: _reference(device.device_class) for device in inventory.devices}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": inventory.node},
        "spec": {
            "generation": inventory.generation,
            "vendors": [to_builtins(vendor) for vendor in inventory.vendors],
            "classes": [{"name": reference, **_fields(device_class)} for device_class, reference in references.items()],
            "devices": [_device_fields(device, references[device.device_class]) for device in inventory.devices],
            "summary": to_builtins(_summary(inventory)),
            **({"held": [encode_grant(grant) for grant in inventory.held]} if inventory.held else {}),
        },
    }


def from_object(document: Mapping[str, Any]) -> Inventory:
    """The inventory in a custom resource; raises `FormatError` naming the object and the field."""
    metadata, spec = document.get("metadata") or {}, document.get("spec") or {}
    name = metadata.get("name", "")
    if document.get("apiVersion") != API_VERSION or document.get("kind") != KIND:
        raise FormatError(f"{name!r} is a {document.get('kind')} of {document.get('apiVersion')}; this program reads {KIND} of {API_VERSION} only")
    try:
        classes = {fields["name"]: _class(encode(fields)) for fields in _objects(spec, "classes")}
        return Inventory(
            node=name,
            generation=from_builtins(spec.get("generation", 1), int),
            vendors=from_builtins(spec.get("vendors") or (), tuple[VendorInfo, ...]),
            devices=tuple(_device(fields, classes) for fields in _objects(spec, "devices")),
            held=tuple(decode_grant(text) for text in from_builtins(spec.get("held") or [], list[str])),
        )
    except (msgspec.ValidationError, KeyError, FormatError) as error:
        raise FormatError(f"{KIND} {name!r} cannot be read: {error}") from error


def _reference(device_class: DeviceClass) -> str:
    """A name for the class, the same wherever the class is the same."""
    digest = hashlib.sha256(encode(device_class)).hexdigest()[:8]
    return device_name(device_class.vendor, f"{device_class.model}-{digest}".lower())


def _fields(value: object) -> dict[str, Any]:
    return from_builtins(to_builtins(value), dict[str, Any])


def _device_fields(device: Device, reference: str) -> dict[str, Any]:
    fields = _fields(device)
    fields["classRef"] = reference
    del fields["deviceClass"]
    return fields


def _objects(spec: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return from_builtins(spec.get(key) or [], list[dict[str, Any]])


@functools.lru_cache(maxsize=1024)
def _class(text: bytes) -> DeviceClass:
    """A class from its JSON. A fleet has few classes and many nodes: equal text is one object."""
    return decode(text, DeviceClass)


_NO_CLASS = _fields(DeviceClass(model="", capacity=Capacity(memory_bytes=0)))


def _device(fields: Mapping[str, Any], classes: Mapping[str, DeviceClass]) -> Device:
    reference = fields["classRef"]
    if reference not in classes:
        raise msgspec.ValidationError(f"device {fields.get('id')!r} is of class {reference!r}, which spec.classes lacks")
    return msgspec.structs.replace(from_builtins({**fields, "deviceClass": _NO_CLASS}, Device), device_class=classes[reference])


def _summary(inventory: Inventory) -> Summary:
    models = Counter(device.device_class.model for device in inventory.devices)
    return Summary(
        devices=len(inventory.devices),
        healthy=sum(device.health.ok for device in inventory.devices),
        models=", ".join(f"{count} × {model}" for model, count in models.items()),
    )


if TYPE_CHECKING:
    CRD: dict[str, Any]
else:

    def __getattr__(name: str) -> object:
        """`CRD`, made when it is asked for: a node agent installs nothing, and its memory is counted."""
        if name == "CRD":
            from hami_framework.codec.inventory_definition import CRD

            return CRD
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
