# SPDX-License-Identifier: Apache-2.0
"""What discovery says of eight MLU370-X8 chips on four boards, and what it makes of cards in trouble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hami_framework import MIB

Play = Callable[[str], Any]


def test_x8_has_eight_chips_on_four_boards(play: Play) -> None:
    devices = play("mlu370-x8").discover()
    assert len(devices) == 8
    assert {device.device_class for device in devices} == {devices[0].device_class}
    known = devices[0].device_class
    assert known.capacity.memory_bytes == 24576 * MIB
    assert all(known.answers_to(name) for name in ("MLU370-X8", "mlu370", "370", "MLU"))
    assert not known.answers_to("MLU37")
    assert known.group_rule.prefer == ("board",)
    boards = [device.group("board") for device in devices]
    assert all(boards.count(board) == 2 for board in boards)
    assert all(device.id.startswith("MLU-") and len(device.id) == len("MLU-") + 36 for device in devices)
    assert [device.numa_node for device in devices] == [0] * 4 + [1] * 4


def test_slots_are_asked_for_and_differ_from_the_index(play: Play) -> None:
    devices = play("mlu370-x8").discover()
    slots = [device.identity("slot") for device in devices]
    assert sorted(slots) == [str(number) for number in range(8)]
    assert slots != [str(device.index) for device in devices]


def test_mlu_links_name_their_far_end_and_count_lanes(play: Play) -> None:
    player = play("mlu370-x8")
    devices = player.discover()
    lanes = {link.peer: link.lanes for link in devices[0].links}
    assert lanes[devices[1].id] == 2  # the other chip of the board
    assert sum(lanes.values()) == 4
    player.change(0, links="1:up,1:down,2:up,3:down")
    assert {link.peer: link.lanes for link in player.discover()[0].links} == {devices[1].id: 1, devices[2].id: 1}


def test_a_fact_that_is_not_supported_is_left_out_and_nothing_else(play: Play) -> None:
    player = play("mlu370-x8")
    player.change(2, unsupported="numa,sn,smlu,utilization")
    device = player.discover()[2]
    assert device.health.ok
    assert (device.numa_node, device.identity("serial"), device.group("board")) == (None, None, None)
    assert [mode.name for mode in device.device_class.modes] == ["whole"]
    usage = player.usage()[device.id]
    assert (usage.memory_used_bytes, usage.core_busy_percent) == (0, None)


def test_a_lost_card_keeps_its_identity_and_comes_back(play: Play) -> None:
    player = play("mlu370-x8")
    before = player.discover()
    player.change(6, health="lost")
    lost = player.health()[before[6].id]
    assert (lost.state, "does not answer" in lost.reason) == ("unhealthy", True)
    assert [device.id for device in player.discover()] == [device.id for device in before]
    player.change(6, health="error")
    assert "device state 2" in player.health()[before[6].id].reason
    player.change(6, health="ok")
    assert player.discover() == before


def test_usage_follows_the_machine(play: Play) -> None:
    player = play("mlu370-x8")
    devices = player.discover()
    player.change(0, memory_used_mib="4321", utilization="12")
    usage = player.usage()[devices[0].id]
    assert (usage.memory_used_bytes, usage.core_busy_percent) == (4321 * MIB, 12.0)


def test_a_card_that_was_never_seen_is_left_out_until_it_answers(play: Play) -> None:
    player = play("mlu370-x8")
    player.change(7, health="lost")
    assert len(player.discover()) == 7
    player.change(7, health="ok")
    assert len(player.discover()) == 8


def test_usage_of_a_card_just_lost_is_unknown_and_the_others_are_read(play: Play) -> None:
    player = play("mlu370-x8")
    devices = player.discover()
    player.change(0, health="lost")
    usage = player.usage()
    assert [usage[device.id].memory_used_bytes for device in devices[:2]] == [None, 0]
