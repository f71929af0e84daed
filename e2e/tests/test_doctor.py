# SPDX-License-Identifier: Apache-2.0
"""`hami doctor --cluster` and the inventory's definition, on a real API server."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.lab import Lab
from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import load
from hami_framework.model import GIB, Capacity, Device, DeviceClass, Inventory, ResourceNames, VendorInfo

HAMI = [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]
INVENTORIES = f"/apis/{inventories.API_VERSION}/{inventories.PLURAL}"
NAME = inventories.CRD["metadata"]["name"]
CLASS = DeviceClass(model="Xpu", vendor="acme", capacity=Capacity(memory_bytes=64 * GIB, shares=32))
VENDOR = VendorInfo(name="acme", resources=(ResourceNames(count="acme.com/xpu"),))
OBJECT = inventories.to_object(Inventory(node="doctored", vendors=(VENDOR,), devices=(Device(id="x0", name="acme-x0", index=0, device_class=CLASS),)))

pytestmark = pytest.mark.timeout(120)
Json = dict[str, Any]


def doctor(kubeconfig: Path) -> tuple[int, list[Json]]:
    done = subprocess.run(
        [*HAMI, "doctor", "--cluster", "--kubeconfig", str(kubeconfig), "-o", "json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def states(found: list[Json], what: str) -> list[str]:
    return [one["state"] for one in found if one["what"] == what]


@pytest.fixture
def bare(control_plane: Lab) -> Iterator[Lab]:
    """No definition before and after."""
    control_plane.kubectl("delete", "crd", NAME, "--ignore-not-found", "--wait")
    yield control_plane
    control_plane.kubectl("delete", "crd", NAME, "--ignore-not-found", "--wait")


def install(lab: Lab, definition: Json) -> KubeClient:
    lab.apply(definition)
    client = KubeClient(load(str(lab.kubeconfig)))
    deadline = time.monotonic() + 20
    while True:
        try:
            client.get(INVENTORIES)
            return client
        except Exception:
            assert time.monotonic() < deadline, "the definition is not served"
            time.sleep(0.1)


def test_a_cluster_without_the_framework_is_told_so_and_left_alone(bare: Lab) -> None:
    pods = len(bare.get("pods", "--all-namespaces")["items"])
    status, found = doctor(bare.kubeconfig)
    assert status == 1
    assert states(found, "Kubernetes") == ["ok"]
    assert states(found, "CRD") == ["fail"]
    assert states(found, "clock") == ["ok"]
    assert "fail" in states(found, "RBAC")
    assert all(one["do"] for one in found if one["state"] != "ok")
    assert len(bare.get("pods", "--all-namespaces")["items"]) == pods


def test_somebody_who_may_read_nothing_gets_lines_and_no_crash(bare: Lab) -> None:
    status, found = doctor(bare.kubeconfig_for("nobody"))
    assert len(states(found, "not checked")) >= 8
    assert status == 0, [one for one in found if one["state"] == "fail"]


def test_an_older_definition_that_drops_fields_is_found(bare: Lab) -> None:
    old = copy.deepcopy(inventories.CRD)
    del old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["held"]
    client = install(bare, old)
    client.create(INVENTORIES, {**OBJECT, "spec": {**OBJECT["spec"], "held": ["a grant"]}})
    assert "held" not in client.get(f"{INVENTORIES}/doctored")["spec"], "the API server keeps what it does not know?"
    _, found = doctor(bare.kubeconfig)
    (line,) = [one for one in found if one["what"] == "CRD"]
    assert (line["state"], "spec.held" in line["found"]) == ("fail", True)
    bare.apply(inventories.CRD)
    _, found = doctor(bare.kubeconfig)
    assert states(found, "CRD") == ["ok"]
    client.close()


def test_an_object_that_a_newer_release_stored_is_read_through_this_version(bare: Lab) -> None:
    """A later release adds a version and stores in it; the API server gives us ours, and back again after a rollback."""
    client = install(bare, inventories.CRD)
    client.create(INVENTORIES, OBJECT)
    newer = copy.deepcopy(inventories.CRD)
    version = copy.deepcopy(newer["spec"]["versions"][0])
    version["name"] = "v1beta1"
    version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["novelty"] = {"type": "string"}
    newer["spec"]["versions"][0]["storage"] = False
    newer["spec"]["versions"].append(version)
    bare.apply(newer)
    place = f"/apis/{inventories.GROUP}/v1beta1/{inventories.PLURAL}/doctored"
    bare.wait("the newer version to be served", lambda: bare.kubectl("get", "--raw", place, check=False).returncode == 0, 20)
    client.patch(place, {"spec": {"novelty": "yes"}})
    seen = client.get(f"{INVENTORIES}/doctored")
    assert inventories.from_object(seen).device("x0") is not None
    _, found = doctor(bare.kubeconfig)
    assert set(states(found, "CRD")) == {"ok", "warn"}
    assert "v1beta1" in next(one["found"] for one in found if one["what"] == "CRD" and one["state"] == "warn")
    client.close()


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"generation": "seven"}, id="a word for a number"),
        pytest.param({"generation": 1, "devices": [{"id": "x0"}]}, id="a device without its class"),
        pytest.param(None, id="no spec"),
    ],
)
def test_what_is_no_inventory_is_refused_by_the_api_server(bare: Lab, wrong: Json | None) -> None:
    client = install(bare, inventories.CRD)
    document = {key: value for key, value in OBJECT.items() if key != "spec"} | ({} if wrong is None else {"spec": wrong})
    with pytest.raises(Exception, match="422"):
        client.create(INVENTORIES, document)
    client.close()


def test_what_somebody_else_bound_or_promised_twice_is_found(bare: Lab) -> None:
    client = install(bare, inventories.CRD)
    bare.wait("the service account of the pods", lambda: bare.kubectl("get", "sa", "default", check=False).returncode == 0, 30)
    client.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "doctored"}})
    client.create(INVENTORIES, OBJECT)
    container = {"name": "c", "image": "none.invalid/none", "resources": {"limits": {"acme.com/xpu": "1"}}}
    spec = {"schedulerName": "the-test", "nodeName": "doctored", "containers": [container], "tolerations": [{"operator": "Exists"}]}
    copied = {GRANT_ANNOTATION: "{}"}
    try:
        for name, annotations in (("bare", {}), ("forged", copied)):
            metadata = {"name": name, "namespace": "default", "annotations": annotations}
            client.create("/api/v1/namespaces/default/pods", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        _, found = doctor(bare.kubeconfig)
        told = [one["found"] for one in found if one["what"] == "grants"]
        assert len(told) == 2, found
        assert any("1 bound pods asked for devices" in text for text in told)
        assert any("default/forged" in text for text in told)
    finally:
        for name in ("bare", "forged"):
            client.delete(f"/api/v1/namespaces/default/pods/{name}", grace_seconds=0)
        client.delete("/api/v1/nodes/doctored")
        client.close()
