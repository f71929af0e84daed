# SPDX-License-Identifier: Apache-2.0
"""sMLU instances made, found again and undone; and what containers see of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hami_cambricon import partition

from hami_framework import HARD, MIB, Device, DeviceGrant, DeviceRequest, Grant, Isolation, Offer, Owner

Play = Callable[[str], Any]


def granted(devices: Sequence[Device], uid: str = "u", **asked: Any) -> Grant:
    held = []
    for device in devices:
        (offer,) = partition.offers(device.device_class, DeviceRequest(**asked))
        assert isinstance(offer, Offer)
        held.append(DeviceGrant(device_id=device.id, device_name=device.name, vendor="cambricon", resource="cambricon.com/vmlu", offer=offer))
    return Grant(owner=Owner(kind="pod", uid=uid), node="n", container="main", devices=tuple(held))


def standing(player: Any) -> list[list[str]]:
    """What the driver holds: [card, id, profile (-1 for a profile), quota, bytes, name] of each profile and instance."""
    file = Path(f"{player.state}.smlu")
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_whole_cards_are_named_by_their_slots(play: Play) -> None:
    player = play("mlu370-x8")
    (player.root / "dev").mkdir(parents=True)
    (player.root / "dev/cambr-msgq:4").touch()
    devices = player.discover()[:2]
    grant = granted(devices, count=2)
    result = player.allocate(grant)
    assert result.env == {"CAMBRICON_VISIBLE_DEVICES": "4,5"}
    assert [node.path for node in result.device_nodes] == [
        "/dev/cambricon_ctl",
        "/dev/cambricon_dev4",
        "/dev/cambricon_ipcm4",
        "/dev/cambr-msgq:4",
        "/dev/cambricon_dev5",
        "/dev/cambricon_ipcm5",
    ]
    assert player.enforce(grant).isolation == HARD
    assert standing(player) == []


def test_an_instance_is_made_once_and_undone_with_its_profile(play: Play) -> None:
    player = play("mlu370-x8")
    device = player.discover()[3]
    grant = granted([device], memory_bytes=3000 * MIB, core_percent=30)
    result = player.allocate(grant)
    assert player.allocate(grant) == result
    assert [(line[0], line[3], line[4]) for line in standing(player)] == [("3", "30", str(3072 * MIB))] * 2  # a profile and an instance
    assert [node.path for node in result.device_nodes] == [
        "/dev/cambricon_ctl",
        "/dev/cambricon_dev7",
        "/dev/cambricon_ipcm7",
        "/dev/cambricon-caps/cap_dev7_mi1",
    ]
    assert result.env == {"VIRTUAL_DEVICES": "/dev/cambricon_dev7,/dev/cambricon_ipcm7,/dev/cambricon-caps/cap_dev7_mi1"}
    assert player.enforce(grant).isolation == Isolation(memory="hard", compute="hard", fault="advisory")
    player.release(grant)
    player.release(grant)
    assert standing(player) == []


def test_a_profile_is_shared_and_goes_with_its_last_instance(play: Play) -> None:
    player = play("mlu370-x8")
    device = player.discover()[0]
    grants = [granted([device], uid=str(number), memory_bytes=1024 * MIB) for number in range(20)]
    edits = [player.allocate(grant) for grant in grants]  # more instances than the first buffer holds: the second call of the two-call protocol
    assert len({edit.device_nodes for edit in edits}) == 20
    assert sum(line[2] == "-1" for line in standing(player)) == 1
    for grant in grants[:-1]:
        player.release(grant)
    assert len(standing(player)) == 2
    player.release(grants[-1])
    assert standing(player) == []


def test_an_instance_outlives_the_worker_that_made_it(play: Play) -> None:
    first = play("mlu370-x8")
    grant = granted(first.discover()[:1], memory_bytes=1024 * MIB)
    before = first.allocate(grant)
    second = play("mlu370-x8")
    Path(f"{second.state}.smlu").write_text(Path(f"{first.state}.smlu").read_text())
    second.discover()
    assert second.allocate(grant) == before
    second.release(grant)
    assert standing(second) == []


def test_releasing_on_a_lost_card_does_not_fail(play: Play) -> None:
    player = play("mlu370-x8")
    grant = granted(player.discover()[:1], memory_bytes=1024 * MIB)
    player.allocate(grant)
    player.change(0, health="lost")
    player.release(grant)
    player.change(0, health="ok")
    player.release(grant)
    assert standing(player) == []
