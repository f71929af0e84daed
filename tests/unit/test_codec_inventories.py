# SPDX-License-Identifier: Apache-2.0
"""The custom resource of a node's devices: classes written once, a structural schema that fits, and errors that name the field."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hami_framework.codec.agent_status import FORMATS, AgentFacts, AgentStatus, ready, to_status
from hami_framework.codec.grants import encode_grant
from hami_framework.codec.inventories import API_VERSION, CRD, GROUP, KIND, PLURAL, VERSION, from_object, to_object
from hami_framework.codec.schema import structural_schema
from hami_framework.errors import FormatError
from hami_framework.model import (
    GIB,
    AnnotationNames,
    Capacity,
    ContainerGrant,
    Cost,
    Counter,
    Device,
    DeviceClass,
    DeviceGrant,
    Health,
    Interval,
    Inventory,
    Isolation,
    Link,
    Membership,
    Mode,
    Owner,
    PartitionProfile,
    PodGrant,
    Rejection,
    ResourceNames,
    VendorInfo,
    share,
)

BIG = DeviceClass(
    vendor="acme",
    model="XPU-80",
    types=("XPU",),
    capacity=Capacity(memory_bytes=80 * GIB, counters=(Counter(name="decoder", amount=2),), line=8),
    modes=(Mode(name="whole"), Mode(name="cut", isolation=Isolation(memory="hard"), max_instances=7)),
    profiles=(PartitionProfile(name="half", mode="cut", cost=Cost(memory_bytes=40 * GIB, interval=Interval(size=4, starts=(0, 4)))),),
    facts=(("alignment", "4"),),
)
SMALL = DeviceClass(vendor="acme", model="XPU-16", capacity=Capacity(memory_bytes=16 * GIB))


def card(index: int, device_class: DeviceClass = BIG, **more: Any) -> Device:
    return Device(id=f"XPU-{index}", device_class=device_class, name=f"acme-xpu-{index}", index=index, numa_node=index // 4, **more)


INVENTORY = Inventory(
    node="node-1",
    generation=12,
    vendors=(
        VendorInfo(
            name="acme",
            package="hami-framework-acme",
            version="1.2.3",
            resources=(ResourceNames(count="acme.com/xpu", aliases={"acme.com/old": "acme.com/xpu"}, annotations=AnnotationNames(use_type=("acme.com/use",))),),
        ),
    ),
    devices=(
        *(card(index) for index in range(7)),
        card(7, health=Health(state="unhealthy", reason="fell off the bus"), links=(Link(peer="XPU-6", kind="nvlink", lanes=4),)),
        card(8, SMALL, groups=(Membership(kind="board", name="b0"),), identities=(("minor", "8"),), pci_address="0000:3b:00.0"),
    ),
)


def test_there_and_back() -> None:
    assert from_object(to_object(INVENTORY)) == INVENTORY


def test_what_local_runs_hold_travels_as_a_pods_annotation_does() -> None:
    held = DeviceGrant(device_id="XPU-0", device_name="acme-xpu-0", vendor="acme", resource="acme.com/xpu", offer=share(4 * GIB, 30))
    local = PodGrant(owner=Owner(kind="local", uid="local-1"), node="node-1", containers=(ContainerGrant(container="main", devices=(held,)),))
    inventory = msgspec.structs.replace(INVENTORY, held=(local,))
    assert from_object(to_object(inventory)) == inventory
    assert to_object(inventory)["spec"]["held"] == [encode_grant(local)]
    assert "held" not in to_object(INVENTORY)["spec"]


def test_each_class_is_written_once_and_shared_when_read() -> None:
    spec = to_object(INVENTORY)["spec"]
    assert [entry["model"] for entry in spec["classes"]] == ["XPU-80", "XPU-16"]
    assert {device["classRef"] for device in spec["devices"]} == {entry["name"] for entry in spec["classes"]}
    assert not any("deviceClass" in device for device in spec["devices"])
    one, other = from_object(to_object(INVENTORY)), from_object(to_object(INVENTORY))
    assert one.devices[0].device_class is other.devices[6].device_class, "one object per class, however many nodes"


def test_the_object_names_its_node_and_generation() -> None:
    document = to_object(INVENTORY)
    assert (document["apiVersion"], document["kind"], document["metadata"]) == ("hami.io/v1alpha1", "NodeInventory", {"name": "node-1"})
    assert document["spec"]["generation"] == 12
    assert document["spec"]["summary"] == {"devices": 9, "healthy": 8, "models": "8 × XPU-80, 1 × XPU-16"}


def test_what_the_api_server_adds_is_ignored() -> None:
    document = to_object(INVENTORY)
    document["metadata"] |= {"uid": "u", "generation": 99, "resourceVersion": "7", "managedFields": []}
    assert from_object(document) == INVENTORY


def broken(change: Any) -> dict[str, Any]:
    document = to_object(INVENTORY)
    change(document)
    return document


@pytest.mark.parametrize(
    ("document", "words"),
    [
        pytest.param(broken(lambda d: d.update(apiVersion="hami.io/v9")), r"'node-1' is a NodeInventory of hami\.io/v9", id="another version"),
        pytest.param(broken(lambda d: d.update(kind="Pod")), "'node-1' is a Pod", id="another kind"),
        pytest.param(broken(lambda d: d["spec"]["devices"][0].update(classRef="gone")), "'XPU-0' is of class 'gone'", id="a class that is not there"),
        pytest.param(broken(lambda d: d["spec"]["devices"][0].pop("classRef")), "classRef", id="no class"),
        pytest.param(broken(lambda d: d["spec"]["devices"][0].update(index="first")), r"\$\.index", id="a field of the wrong type"),
        pytest.param(broken(lambda d: d["spec"]["classes"][0].pop("capacity")), "missing required field `capacity`", id="half a class"),
        pytest.param(broken(lambda d: d["spec"].update(devices=3)), "cannot be read", id="no list"),
        pytest.param({}, "None", id="nothing"),
    ],
)
def test_damage_is_named(document: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        from_object(document)


def schema() -> dict[str, Any]:
    (version,) = CRD["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


PYTHON_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "number": float, "boolean": bool}


def misfits(value: Any, part: dict[str, Any], where: str = "$") -> Iterator[str]:
    """Where a value does not fit a structural schema, or would lose a field to pruning."""
    expected = PYTHON_TYPES[part["type"]]
    if not isinstance(value, expected):
        yield f"{where}: {type(value).__name__}, not {part['type']}"
    elif part["type"] == "array":
        for index, item in enumerate(value):
            yield from misfits(item, part["items"], f"{where}[{index}]")
    elif part["type"] == "object":
        properties, free = part.get("properties", {}), part.get("additionalProperties")
        yield from (f"{where}: {name} is missing" for name in part.get("required", ()) if name not in value)
        for name, item in value.items():
            if name in properties or free:
                yield from misfits(item, properties.get(name, free), f"{where}.{name}")
            elif where != "$":
                yield f"{where}: {name} would be pruned"
    elif value not in part.get("enum", [value]):
        yield f"{where}: {value!r} is not one of {part['enum']}"


def as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def test_the_schema_fits_what_is_written() -> None:
    assert list(misfits(as_json(to_object(INVENTORY)), schema())) == []


def test_the_schema_is_structural() -> None:
    def levels(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield part
        children = [*part.get("properties", {}).values(), *(part[key] for key in ("items", "additionalProperties") if key in part)]
        for child in children:
            yield from levels(child)

    for part in levels(schema()):
        assert "type" in part
        assert not {"$ref", "anyOf", "oneOf", "default"} & part.keys()
        assert not ({"properties", "additionalProperties"} <= part.keys()), "the API server takes one of the two"


def test_the_definition_names_itself() -> None:
    assert CRD["metadata"]["name"] == f"{PLURAL}.{GROUP}"
    assert CRD["spec"]["names"]["kind"] == KIND
    assert CRD["spec"]["scope"] == "Cluster"
    assert f"{CRD['spec']['group']}/{CRD['spec']['versions'][0]['name']}" == API_VERSION == f"{GROUP}/{VERSION}"


def test_printer_columns_lead_to_something() -> None:
    facts = AgentFacts(version="1.0", state="running", started="2026-01-01T00:00:00Z", formats=dict(FORMATS))
    condition = ready("Registered", "", holds=True, before={}, now="2026-01-01T00:00:00Z")
    status = to_status(AgentStatus(agent=facts, cdi="applied", conditions=(condition,)))
    document = to_object(INVENTORY) | {"metadata": {"name": "node-1", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status}
    for column in CRD["spec"]["versions"][0]["additionalPrinterColumns"]:
        value: Any = document
        for key in column["jsonPath"].replace('[?(@.type=="Ready")]', ".0").removeprefix(".").split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert value is not None


def test_a_status_is_not_part_of_what_is_read() -> None:
    """An object without one, with one, and with one of a release to come are the same inventory."""
    statuses: list[dict[str, Any]] = [{}, {"status": {"conditions": []}}, {"status": {"agent": "something else"}}]
    for status in statuses:
        assert from_object(to_object(INVENTORY) | status) == INVENTORY


def test_the_status_is_written_by_its_own_way_and_fits_its_schema() -> None:
    version = CRD["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    schema = version["schema"]["openAPIV3Schema"]
    assert schema["required"] == ["spec"], "objects of the release before have no status"
    status = schema["properties"]["status"]
    assert sorted(status["properties"]) == ["agent", "cdi", "conditions"]
    assert status["properties"]["conditions"]["items"]["required"] == ["type", "status", "reason", "message", "lastTransitionTime"]


def test_an_agent_does_not_pay_for_the_definition() -> None:
    code = "import sys, hami_framework.deviceplugin.agent; sys.exit('hami_framework.codec.inventory_definition' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_class_has_no_field_that_the_name_would_hide() -> None:
    assert "name" not in DeviceClass.__struct_fields__


def test_a_type_without_structural_schema_is_refused() -> None:
    with pytest.raises(TypeError, match="no structural schema"):
        structural_schema(Rejection)
