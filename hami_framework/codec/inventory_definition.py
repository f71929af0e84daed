# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinition of inventories: schema, printer columns, status subresource. A module of its own, for those who install it."""

from __future__ import annotations

from typing import Any

from hami_framework.codec.agent_status import AgentStatus
from hami_framework.codec.inventories import GROUP, KIND, PLURAL, VERSION, Summary
from hami_framework.codec.schema import structural_schema
from hami_framework.model import Device, DeviceClass, VendorInfo


def _spec_schema() -> dict[str, Any]:
    """The schema of `spec`, made from the model's own types so that the two cannot drift apart."""
    device_class, device = structural_schema(DeviceClass), structural_schema(Device)
    device_class["properties"]["name"] = {"type": "string"}
    device_class["required"].append("name")
    device["properties"]["classRef"] = {"type": "string", "description": "name of an entry of spec.classes"}
    del device["properties"]["deviceClass"]
    device["required"] = ["classRef", *(name for name in device["required"] if name != "deviceClass")]
    return {
        "type": "object",
        "required": ["generation"],
        "properties": {
            "generation": {"type": "integer", "format": "int64"},
            "vendors": structural_schema(tuple[VendorInfo, ...]),
            "classes": {"type": "array", "items": device_class},
            "devices": {"type": "array", "items": device},
            "held": {"type": "array", "items": {"type": "string"}, "description": "grants of local runs on the node, each as a pod's annotation has it"},
            "summary": structural_schema(Summary),
        },
    }


def _status_schema() -> dict[str, Any]:
    """The schema of `status`. Conditions are a map by their type, as everywhere in Kubernetes."""
    schema = structural_schema(AgentStatus)
    schema["properties"]["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return schema


def _column(name: str, type_: str, path: str, priority: int = 0) -> dict[str, Any]:
    return {"name": name, "type": type_, "jsonPath": path} | ({"priority": priority} if priority else {})


CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{PLURAL}.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Cluster",
        "names": {"kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": "nodeinventory", "shortNames": ["ninv"]},
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {"spec": _spec_schema(), "status": _status_schema()}}},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    _column("Devices", "integer", ".spec.summary.devices"),
                    _column("Healthy", "integer", ".spec.summary.healthy"),
                    _column("Models", "string", ".spec.summary.models"),
                    _column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
                    _column("Version", "string", ".status.agent.version"),
                    _column("State", "string", ".status.agent.state", priority=1),
                    _column("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
                    _column("Generation", "integer", ".spec.generation", priority=1),
                    _column("Age", "date", ".metadata.creationTimestamp"),
                ],
            }
        ],
    },
}
"""The definition to install; structural, so that the API server prunes and validates."""
