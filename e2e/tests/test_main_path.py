# SPDX-License-Identifier: Apache-2.0
"""From a manifest to what the program in the container sees, on the real scheduler, kubelet and container runtime, for four vendors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.harness.cluster import Cluster, phase
from e2e.harness.inside import Inside
from e2e.harness.pods import container, ending, pod, sidecar

Json = dict[str, Any]
LIMITS = "/run/hami/limits.json"
HELD_SOFTLY = {"/etc/ld.so.preload": "ro", "/run/hami/policy": "ro", "/run/hami/state": "rw"}
"""What a container gets whose limits our library holds (docs/agent.md)."""


@dataclass(frozen=True)
class Asked:
    """What one container asks for, and what it has to see."""

    limits: Mapping[str, int]
    vendor: str
    memory_mib: int
    """0: as much as the device has."""
    core_percent: int | None
    files: tuple[str, ...]
    """Device files, `{slot}` being the device's own number."""
    number: str
    """Which of the device's identities is that number."""
    mounts: Mapping[str, str]
    env: Mapping[str, str]
    mode: str
    annotations: tuple[tuple[str, str], ...] = ()


NVIDIA_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/nvidia{slot}")
ASCEND_FILES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc", "/dev/davinci{slot}")
ASCEND_MOUNTS = {
    "/usr/local/Ascend/driver/lib64": "ro",
    "/usr/local/Ascend/driver/version.info": "ro",
    "/usr/local/dcmi": "ro",
    "/etc/ascend_install.info": "ro",
}
HYGON_FILES = ("/dev/kfd", "/dev/mkfd", "/dev/dri/card{card}", "/dev/dri/renderD{slot}")
HYGON_MOUNTS = {"/opt/hygondriver": "ro", "/opt/hyhal": "ro"}
B3 = "huawei.com/Ascend910B3"

SHARES = {
    "nvidia share": Asked(
        {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 30},
        "nvidia", 3000, 30, NVIDIA_FILES, "minor", HELD_SOFTLY,
        {"NVIDIA_VISIBLE_DEVICES": "{id}", "CUDA_DEVICE_MEMORY_LIMIT_0": "3000m", "CUDA_DEVICE_SM_LIMIT": "30"}, "share",
    ),
    "nvidia whole": Asked({"nvidia.com/gpu": 1}, "nvidia", 0, 100, NVIDIA_FILES, "minor", {}, {"NVIDIA_VISIBLE_DEVICES": "{id}"}, "whole"),
    "ascend soft share": Asked(
        {B3: 1, f"{B3}-memory": 8000, f"{B3}-core": 25},
        "ascend", 8000, 25, ASCEND_FILES, "phy-id", {**HELD_SOFTLY, **ASCEND_MOUNTS}, {"ASCEND_VISIBLE_DEVICES": "{slot}"}, "share",
        (("huawei.com/vnpu-mode", "hami-core"),),
    ),
    "ascend template": Asked(
        {B3: 1, f"{B3}-memory": 12000},
        "ascend", 16384, 25, (), "phy-id", {}, {"ASCEND_VISIBLE_DEVICES": "{slot}", "ASCEND_VNPU_SPECS": "vir05_1c_16g"}, "vnpu",
    ),
    "ascend whole": Asked({B3: 1}, "ascend", 0, 100, ASCEND_FILES, "phy-id", ASCEND_MOUNTS, {"ASCEND_VISIBLE_DEVICES": "{slot}"}, "whole"),
    "cambricon share": Asked(
        {"cambricon.com/vmlu": 1, "cambricon.com/mlu.smlu.vmemory": 20, "cambricon.com/mlu.smlu.vcore": 20},
        "cambricon", 5120, 20, ("/dev/cambricon_ctl", "/dev/cambricon_dev{slot}", "/dev/cambricon_ipcm{slot}", "/dev/cambricon-caps/cap_dev{slot}_mi*"),
        "slot", {"/usr/bin/cnmon": "ro"}, {}, "smlu",
    ),
    "cambricon whole": Asked(
        {"cambricon.com/vmlu": 1}, "cambricon", 0, 100, ("/dev/cambricon_ctl", "/dev/cambricon_dev{slot}", "/dev/cambricon_ipcm{slot}"),
        "slot", {"/usr/bin/cnmon": "ro"}, {"CAMBRICON_VISIBLE_DEVICES": "{slot}"}, "whole",
    ),
    "hygon share": Asked(
        {"hygon.com/dcunum": 1, "hygon.com/dcumem": 8000, "hygon.com/dcucores": 25},
        "hygon", 8000, 25, HYGON_FILES, "render",
        {**HYGON_MOUNTS, "/etc/vdev/docker": "ro"}, {}, "vdcu",
    ),
    "hygon whole": Asked(
        {"hygon.com/dcunum": 1}, "hygon", 0, 100, HYGON_FILES, "render", HYGON_MOUNTS, {}, "whole",
    ),
}  # fmt: skip
"""One row per way in which a device of a vendor can be given."""


def identities(cluster: Cluster, device_id: str) -> dict[str, str]:
    """What the inventory says a device is called."""
    device = next(device for device in cluster.inventory()["spec"]["devices"] if device["id"] == device_id)
    return dict(device["identities"])


def device_memory_mib(cluster: Cluster, device_id: str) -> int:
    """How much memory the device has."""
    spec = cluster.inventory()["spec"]
    device = next(device for device in spec["devices"] if device["id"] == device_id)
    return int(next(each for each in spec["classes"] if each["name"] == device["classRef"])["capacity"]["memoryBytes"]) >> 20


def without_instance(path: str) -> str:
    """An instance's file without its number, which the driver chose."""
    return path[: path.index("_mi")] + "_mi*" if "_mi" in path else path


def sees_its_own(inside: Inside, name: str) -> None:
    """The probe's own verdict, and its limits file read-only."""
    assert inside.status == "MATCH", (name, inside.problems)
    assert "ro" in inside.mounts[LIMITS].split(",")


@pytest.mark.parametrize("asked", SHARES.values(), ids=SHARES)
def test_container_sees_exactly_what_was_asked(cluster: Cluster, asked: Asked) -> None:
    cluster.create(pod("one", asked.limits, annotations=dict(asked.annotations)))
    cluster.running("one")

    inside = cluster.inside("one")
    sees_its_own(inside, "one")
    (device,) = inside.devices
    assert (device["vendor"], device["mode"]) == (asked.vendor, asked.mode)
    assert inside.memory_mib == [asked.memory_mib or device_memory_mib(cluster, device["id"])]
    assert inside.core_percent == [asked.core_percent]

    names = identities(cluster, device["id"])
    words = {"slot": names[asked.number], "id": device["id"], "card": names.get("card", "")}
    assert {without_instance(path) for path in inside.device_files} == {file.format_map(words) for file in asked.files}
    assert inside.closed_files == []
    for target, access in asked.mounts.items():
        assert access in inside.mounts.get(target, "not mounted").split(","), (target, sorted(inside.mounts))
    assert inside.report["preload"].split() == ([f"/run/hami/lib/libhami_{asked.vendor}.so"] if "/etc/ld.so.preload" in asked.mounts else [])
    assert {key: inside.env.get(key) for key in asked.env} == {key: value.format_map(words) for key, value in asked.env.items()}


def test_grant_on_the_pod_is_what_the_container_was_told(cluster: Cluster) -> None:
    cluster.create(pod("one", {"nvidia.com/gpu": 2, "nvidia.com/gpumem": 2000}))
    cluster.running("one")
    grant, inside = cluster.grant("one"), cluster.inside("one")
    assert grant["owner"]["uid"] == cluster.pod("one")["metadata"]["uid"] == inside.limits["owner"]["uid"]
    assert [device["deviceId"] for device in grant["containers"][0]["devices"]] == [device["id"] for device in inside.devices]


def test_two_slots_are_two_devices_of_one_container(cluster: Cluster) -> None:
    cluster.create(pod("two", {"nvidia.com/gpu": 2, "nvidia.com/gpumem": 2000, "nvidia.com/gpucores": 10}))
    cluster.running("two")
    inside = cluster.inside("two")
    sees_its_own(inside, "two")
    assert len({device["id"] for device in inside.devices}) == 2
    assert inside.memory_mib == [2000, 2000]
    assert (inside.env["CUDA_DEVICE_MEMORY_LIMIT_0"], inside.env["CUDA_DEVICE_MEMORY_LIMIT_1"]) == ("2000m", "2000m")
    assert inside.env["NVIDIA_VISIBLE_DEVICES"] == ",".join(device["id"] for device in inside.devices)
    assert sorted(name for name in inside.env if name.startswith("HAMI_SLOT_")) != []


def test_two_vendors_in_one_pod(cluster: Cluster) -> None:
    train = container("train", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 20000})
    encode = container("encode", {"hygon.com/dcunum": 1, "hygon.com/dcumem": 4000, "hygon.com/dcucores": 10})
    cluster.create(pod("two-vendors", [train, encode]))
    cluster.running("two-vendors")
    for name, vendor, amount in (("train", "nvidia", 20000), ("encode", "hygon", 4000)):
        inside = cluster.inside("two-vendors", name)
        sees_its_own(inside, name)
        assert ([device["vendor"] for device in inside.devices], inside.memory_mib) == ([vendor], [amount])
    assert "/dev/kfd" not in cluster.inside("two-vendors", "train").device_files


def test_two_vendors_in_one_container(cluster: Cluster) -> None:
    cluster.create(pod("both", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000, "cambricon.com/vmlu": 1, "cambricon.com/mlu.smlu.vmemory": 4}))
    cluster.running("both")
    inside = cluster.inside("both")
    sees_its_own(inside, "both")
    assert {device["vendor"]: device["limit"]["memoryBytes"] >> 20 for device in inside.devices} == {"nvidia": 1000, "cambricon": 1024}
    assert {"/dev/nvidiactl", "/dev/cambricon_ctl"} <= inside.device_files


def test_init_containers_sidecars_and_apps_each_see_their_own(cluster: Cluster) -> None:
    """kubelet gives an init container's slot on to a later container: the slot is the same, what is seen with it must not be."""

    def asks(mib: int) -> dict[str, int | str]:
        return {"nvidia.com/gpu": 1, "nvidia.com/gpumem": mib}

    manifest = pod(
        "phases",
        [container("app-a", asks(4000)), container("app-b", asks(5000))],
        init=[ending("fetch", asks(1000)), sidecar("cache", asks(2000)), ending("warm-up", asks(3000))],
    )
    cluster.create(manifest)
    cluster.running("phases", seconds=60)
    for name, amount in (("fetch", 1000), ("cache", 2000), ("warm-up", 3000), ("app-a", 4000), ("app-b", 5000)):
        inside = cluster.inside("phases", name)
        sees_its_own(inside, name)
        assert inside.memory_mib == [amount], name


def test_container_without_devices_beside_one_with_sees_none(cluster: Cluster) -> None:
    cluster.create(pod("mixed", [container("with", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000}), container("without")]))
    cluster.running("mixed")
    sees_its_own(cluster.inside("mixed", "with"), "with")
    without = cluster.inside("mixed", "without")
    assert (without.status, without.device_files, without.report["preload"]) == ("NONE", set(), "")


def test_neutral_request_is_served_by_some_vendor(cluster: Cluster) -> None:
    cluster.create(pod("any", {"hami.io/accelerator": 1, "hami.io/memory-mib": 6000}))
    cluster.running("any")
    inside = cluster.inside("any")
    sees_its_own(inside, "any")
    (amount,) = inside.memory_mib
    assert amount is not None
    assert amount >= 6000


def test_neutral_request_keeps_to_the_vendors_it_names(cluster: Cluster) -> None:
    limits = {"hami.io/accelerator": 1, "hami.io/memory-mib": 10000, "hami.io/core-percent": 20}
    cluster.create(pod("some", limits, annotations={"hami.io/vendors": "hygon,cambricon"}))
    cluster.running("some")
    inside = cluster.inside("some")
    sees_its_own(inside, "some")
    assert {device["vendor"] for device in inside.devices} <= {"hygon", "cambricon"}


def test_pod_that_nothing_can_hold_waits_with_an_event_that_says_why(cluster: Cluster) -> None:
    cluster.create(pod("never", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 500000}))
    assert "memory-too-large" in cluster.event("never", "FailedScheduling")
    assert "memory-too-large" in cluster.event("never", "DevicesUnavailable")
    assert phase(cluster.pod("never")) == "Pending"
    assert cluster.grant("never") == {}


def test_program_that_ends_gives_its_devices_back(cluster: Cluster) -> None:
    cluster.create(pod("work", [ending("main", {"cambricon.com/vmlu": 8})], restartPolicy="Never"))
    assert cluster.ended("work") == "Succeeded"
    cluster.create(pod("next", {"cambricon.com/vmlu": 8}))
    cluster.running("next")
    inside = cluster.inside("next")
    sees_its_own(inside, "next")
    assert len({device["id"] for device in inside.devices}) == 8


def test_deleted_pod_leaves_room_for_the_next(cluster: Cluster) -> None:
    for round_ in ("a", "b", "c"):
        cluster.create(pod(round_, {"hygon.com/dcunum": 8}))
        cluster.running(round_)
        sees_its_own(cluster.inside(round_), round_)
        cluster.delete(round_)
        cluster.gone(round_)
        cluster.until("nothing to be left on the node", lambda: not cluster.left_on_node(), 30, otherwise=lambda: "\n".join(cluster.left_on_node()))


def test_container_that_starts_again_sees_its_own_limits_again(cluster: Cluster) -> None:
    cluster.create(pod("again", [container("main", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 1500}, args=("--run", "1s"))]))

    def restarts() -> int:
        return sum(int(status["restartCount"]) for status in cluster.pod("again").get("status", {}).get("containerStatuses", ()))

    cluster.until("the container to start again", lambda: restarts() >= 1, 40, otherwise=lambda: cluster.explain("again"))
    cluster.until("its second look", lambda: len(looks_of(cluster, "again")) >= 2, 10, otherwise=lambda: cluster.explain("again"))
    for look in looks_of(cluster, "again"):
        sees_its_own(look, "again")
        assert look.memory_mib == [1500]


def looks_of(cluster: Cluster, name: str) -> list[Inside]:
    """Every look of the pod's only container."""
    from e2e.harness.inside import looks

    return looks(cluster.lab, cluster.pod(name), "main")


VENDORS = {"nvidia": "nvidia.com/gpu", "cambricon": "cambricon.com/vmlu", "hygon": "hygon.com/dcunum", "ascend": B3}


@pytest.mark.parametrize("vendor", VENDORS)
def test_device_that_fails_shows_in_the_pods_status_and_recovers(cluster: Cluster, vendor: str) -> None:
    resource = VENDORS[vendor]
    cluster.create(pod("one", {resource: 1}))
    cluster.running("one")
    (device,) = cluster.inside("one").devices
    number = index_of(cluster, vendor, device["id"])

    def health() -> str:
        """As kubelet tells it (KEP-4680): of the slot that the container holds."""
        statuses = cluster.pod("one")["status"]["containerStatuses"][0].get("allocatedResourcesStatus", ())
        return ",".join(sorted({each["health"] for status in statuses if status["name"] == resource for each in status["resources"]}))

    cluster.until("the healthy device in allocatedResourcesStatus", lambda: health() == "Healthy", 20, otherwise=lambda: cluster.explain("one"))
    try:
        cluster.installed.accelerators.fail(vendor, number)
        cluster.until("Unhealthy in allocatedResourcesStatus", lambda: health() == "Unhealthy", 30, otherwise=lambda: f"{health()}\n{cluster.explain('one')}")
    finally:
        cluster.installed.accelerators.recover(vendor, number)
    cluster.until("Healthy again in allocatedResourcesStatus", lambda: health() == "Healthy", 30, otherwise=lambda: f"{health()}\n{cluster.explain('one')}")
    assert phase(cluster.pod("one")) == "Running"


def index_of(cluster: Cluster, vendor: str, device_id: str) -> int:
    """Which section of the vendor's machine file is this device."""
    inventory = cluster.inventory()["spec"]["devices"]
    device = next(device for device in inventory if device["id"] == device_id)
    names = [
        device_id,
        device_id.removeprefix("DCU-").removeprefix("MLU-"),
        device.get("pciAddress") or device_id,
        *(value for kind, value in device["identities"] if kind == "serial"),
    ]
    section = cluster.installed.accelerators.file(vendor).find(names, int(device.get("index", 0)))
    assert section is not None, json.dumps(device)
    return int(section.removeprefix("device "))
