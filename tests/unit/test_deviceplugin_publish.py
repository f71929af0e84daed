# SPDX-License-Identifier: Apache-2.0
"""The published inventory: written on change only, with the next generation, and not emptied by a restart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from hami_framework.codec import inventories
from hami_framework.deviceplugin.cluster import decode_pod
from hami_framework.deviceplugin.publish import Publisher
from hami_framework.model import Capacity, Device, DeviceClass, Health, Inventory, Rejection, ResourceNames, VendorInfo

Json = Mapping[str, Any]


def device(name: str, vendor: str = "acme", health: Health | None = None) -> Device:
    return Device(id=name, name=name, device_class=DeviceClass(model="X", vendor=vendor, capacity=Capacity(memory_bytes=1)), health=health or Health())


def vendor(name: str, state: str = "ready") -> VendorInfo:
    return VendorInfo(name=name, state=state, resources=(ResourceNames(count=f"{name}.com/x"),) if state != "starting" else ())


BOTH = Inventory(node="n1", vendors=(vendor("acme"), vendor("zeta")), devices=(device("a0"), device("z0", "zeta")))


class Api:
    """One inventory object, with the API server's optimistic locking left to the resourceVersion it carries."""

    def __init__(self) -> None:
        self.object: dict[str, Any] | None = None
        self.version = 0

    async def inventory(self, node: str) -> Json | None:
        return self.object

    async def create_inventory(self, body: Json) -> None:
        assert self.object is None
        self._store(body)

    async def replace_inventory(self, node: str, body: Json) -> None:
        assert self.object is not None
        assert body["metadata"]["resourceVersion"] == self.object["metadata"]["resourceVersion"]
        self._store(body)

    def _store(self, body: Json) -> None:
        self.version += 1
        self.object = json.loads(json.dumps(body))
        self.object["metadata"]["resourceVersion"] = str(self.version)

    async def pod(self, namespace: str, name: str) -> Json | None:
        return None

    async def report(self, pod: Json, rejection: Rejection) -> None: ...

    async def warn(self, pod: Json, reason: str, message: str) -> None: ...

    async def evict(self, pod: Json) -> None: ...


@pytest.fixture
def api() -> Api:
    return Api()


async def test_it_is_written_on_change_only_and_counts_up(api: Api) -> None:
    now = BOTH
    publisher = Publisher(api, lambda: now)

    assert [await publisher.publish(), await publisher.publish()] == [True, False]
    assert api.object is not None
    assert inventories.from_object(api.object) == BOTH

    sick = Health(state="unhealthy", reason="gone")
    now = Inventory(node="n1", vendors=BOTH.vendors, devices=(device("a0", health=sick), BOTH.devices[1]))
    assert await publisher.publish()
    assert inventories.from_object(api.object).generation == 2
    now = BOTH
    assert await publisher.publish()
    assert (inventories.from_object(api.object).generation, publisher.writes) == (3, 3)


async def test_what_others_put_into_the_metadata_stays(api: Api) -> None:
    await Publisher(api, lambda: BOTH).publish()
    assert api.object is not None
    api.object["metadata"]["labels"] = {"team": "x"}

    await Publisher(api, lambda: Inventory(node="n1")).publish()

    assert api.object["metadata"]["labels"] == {"team": "x"}


async def test_a_vendor_that_is_still_starting_keeps_what_was_published(api: Api) -> None:
    await Publisher(api, lambda: BOTH).publish()
    restarted = Inventory(node="n1", vendors=(vendor("acme"), vendor("zeta", "starting")), devices=(device("a0"),))

    assert not await Publisher(api, lambda: restarted).publish()

    broken = Inventory(node="n1", vendors=(vendor("acme"), vendor("zeta", "quarantined")), devices=(device("a0"),))
    assert await Publisher(api, lambda: broken).publish()
    assert api.object is not None
    assert [one.id for one in inventories.from_object(api.object).devices] == ["a0"]


async def test_an_object_of_another_version_is_replaced(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    await Publisher(api, lambda: BOTH).publish()
    assert api.object is not None
    api.object["spec"] = {"generation": 41, "devices": [{"id": 7}]}

    assert await Publisher(api, lambda: BOTH).publish()

    assert inventories.from_object(api.object).generation == 42
    assert "the published inventory is replaced" in caplog.text


def test_of_a_pod_only_what_the_agent_reads_is_kept() -> None:
    pod = {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "managedFields": [{"x": 1}], "annotations": {"hami.io/grant": "{}", "big": "x" * 1000}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "env": []}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "c", "state": {"running": {}}, "imageID": "y"}], "podIP": "10.0.0.1"},
    }

    assert decode_pod(json.dumps(pod).encode()) == {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "annotations": {"hami.io/grant": "{}"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "c", "state": {"running": {}}}]},
    }
