# SPDX-License-Identifier: Apache-2.0
"""What containers see, and what is said about who holds their limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hami_ascend import edits, enforce, partition

from hami_framework import ADVISORY, HARD, MIB, SOFT, Device, DeviceGrant, DeviceRequest, Grant, Isolation, Offer, Owner

Play = Callable[[str], Any]


def granted(devices: Sequence[Device], directory: str = "/var/lib/hami/c", **asked: Any) -> Grant:
    held = []
    for device in devices:
        (offer,) = partition.offers(device.device_class, DeviceRequest(**asked))
        assert isinstance(offer, Offer)
        held.append(DeviceGrant(device_id=device.id, device_name=device.name, vendor="ascend", resource="huawei.com/Ascend910B3", offer=offer))
    return Grant(owner=Owner(kind="pod", uid="u"), node="n", container="main", devices=tuple(held), directory=directory)


def test_whole_chips_are_named_by_their_phy_ids(play: Play) -> None:
    player = play("atlas-800t-a2")
    devices = player.discover()[:2]
    grant = granted(devices, count=2)
    result = player.allocate(grant)
    phy = [device.identity("phy-id") for device in devices]
    assert result.env == {"ASCEND_VISIBLE_DEVICES": ",".join(phy)}
    paths = [node.path for node in result.device_nodes]
    assert paths == ["/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc", *(f"/dev/davinci{number}" for number in phy)]
    assert "/usr/local/Ascend/driver/lib64" in {mount.host_path for mount in result.mounts}
    assert player.enforce(grant).isolation == HARD


def test_a_vnpu_is_left_to_the_container_runtime_and_the_chip_is_not_given_away(play: Play) -> None:
    player = play("atlas-800t-a2")
    device = player.discover()[3]
    grant = granted([device], memory_bytes=17000 * MIB)
    result = player.allocate(grant)
    assert result.env == {"ASCEND_VISIBLE_DEVICES": device.identity("phy-id"), "ASCEND_VNPU_SPECS": "vir10_3c_32g"}
    assert result.device_nodes == ()
    assert player.enforce(grant).isolation == Isolation(memory="hard", compute="hard", fault="advisory")


def test_the_runtime_makes_one_vnpu_only() -> None:
    device = Device(id="A", device_class=_class(), identities=(("phy-id", "0"),))
    one = granted([device], memory_bytes=16384 * MIB)
    two = Grant(owner=one.owner, node="n", container="main", devices=one.devices * 2)
    with pytest.raises(ValueError, match="one vNPU"):
        edits.for_grant(two, [device, device])


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The wheel came without our own library."""
    monkeypatch.setattr(enforce, "LIBRARY", tmp_path / "libhami_ascend.so")


@pytest.mark.usefixtures("no_library")
def test_a_soft_share_without_the_interceptor_is_called_advisory() -> None:
    device = Device(id="A", device_class=_class(), identities=(("phy-id", "0"),))
    enforcement = enforce.for_grant(granted([device], memory_bytes=8192 * MIB, mode="share"), [device])
    assert enforcement.isolation == ADVISORY
    assert enforcement.edits.empty
    assert "neither libhami_ascend.so" in enforcement.mechanism


@pytest.mark.usefixtures("no_library")
def test_a_soft_share_with_the_interceptor_is_told_its_quota() -> None:
    device = Device(id="A", device_class=_class(interceptor=True), identities=(("phy-id", "6"),))
    grant = granted([device], memory_bytes=8192 * MIB, core_percent=30, mode="share")
    enforcement = enforce.for_grant(grant, [device])
    assert enforcement.isolation == SOFT
    assert enforcement.edits.env == {
        "NPU_MEM_QUOTA": "8192",
        "NPU_PRIORITY": "30",
        "NPU_GLOBAL_SHM_PATH": f"/hami-shared-region/{device.identity('phy-id')}_global_registry",
        "NPU_LOCAL_SHM_PATH": "/hami-vnpu-shmem/vnpu_local_shmem",
    }
    places = {mount.container_path: mount.host_path for mount in enforcement.edits.mounts}
    assert places["/etc/ld.so.preload"] == "/usr/local/hami-vnpu-core/ld.so.preload"
    assert places["/hami-vnpu-shmem"] == "/var/lib/hami/c"


def test_our_own_library_goes_before_the_other_one(play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "libhami_ascend.so"
    library.touch()
    monkeypatch.setattr(enforce, "LIBRARY", library)
    player = play("atlas-800t-a2")
    device = player.discover()[0]
    grant = granted([device], memory_bytes=8192 * MIB, core_percent=30, mode="share")
    answer = enforce.for_grant(grant, [msgspec.structs.replace(device, device_class=_class(interceptor=True))])
    assert (answer.isolation, answer.edits.empty) == (SOFT, True)
    assert answer.interceptor is not None
    assert answer.interceptor.identities_of(device.id) == (("physical", device.identity("phy-id")),)


def _class(*, interceptor: bool = False) -> Any:
    from hami_ascend.discovery import device_class
    from hami_ascend.driver import Address, Chip

    return device_class(Chip(Address(0, 0), "910B3", 20, 7, "A", 0, 0, 65536, None, None, None), interceptor=interceptor)
