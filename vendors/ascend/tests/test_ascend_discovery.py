# SPDX-License-Identifier: Apache-2.0
"""What discovery says of the three machines, against what is known of them (not against the machine files alone)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hami_framework import MIB, ProcessUsage

Play = Callable[[str], Any]


def test_a2_has_eight_910b3_joined_by_hccs(play: Play) -> None:
    devices = play("atlas-800t-a2").discover()
    assert len(devices) == 8
    assert {device.device_class for device in devices} == {devices[0].device_class}
    known = devices[0].device_class
    assert known.model == "Ascend910B3"
    assert known.answers_to("910b3")
    assert not known.answers_to("910B")
    assert known.capacity.memory_bytes == 65536 * MIB
    assert {counter.name: counter.amount for counter in known.capacity.counters} == {"aicore": 20, "aicpu": 7}
    assert all(len(device.links) == 7 and {link.kind for link in device.links} == {"hccs"} for device in devices)
    assert devices[0].pci_address == "0000:c1:00.0"


def test_phy_ids_are_asked_for_and_differ_from_logic_ids(play: Play) -> None:
    devices = play("atlas-800t-a2").discover()
    assert [device.index for device in devices] == list(range(8))
    assert sorted(device.identity("phy-id") for device in devices) == [str(number) for number in range(8)]
    assert devices[0].identity("phy-id") != devices[0].identity("logic-id")


def test_the_id_is_the_vdie_and_the_serial_comes_beside_it(play: Play) -> None:
    player = play("atlas-800t-a2")
    player.change(0, vdie="0000ABCD-00000001-FFFFFFFF-12345678-0A0B0C0D", serial="SN-1")
    first = player.discover()[0]
    assert first.id == "0000ABCD-00000001-FFFFFFFF-12345678-0A0B0C0D"
    assert first.identity("serial") == "SN-1"


def test_duo_has_two_chips_on_a_card_and_ddr_only(play: Play) -> None:
    devices = play("atlas-300i-duo").discover()
    assert {device.identity("card") for device in devices} == {"1", "2", "4", "5"}
    assert all(sum(other.group("card") == device.group("card") for other in devices) == 2 for device in devices)
    assert devices[0].device_class.capacity.memory_bytes == 43693 * MIB
    assert devices[0].device_class.group_rule.prefer == ("card",)
    assert devices[0].device_class.answers_to("Ascend310P")
    near = [link for link in devices[0].links if link.peer == devices[1].id]
    assert [link.kind for link in near] == ["pcie-switch"]


def test_a3_has_modules_of_two_dies_joined_by_sio(play: Play) -> None:
    devices = play("atlas-a3").discover()
    assert len(devices) == 16
    assert devices[0].device_class.model == "Ascend910C"
    assert devices[0].device_class.group_rule.whole == ("module",)
    for device in devices:
        kinds = {link.peer: link.kind for link in device.links}
        siblings = [other.id for other in devices if other.group("module") == device.group("module") and other is not device]
        assert [peer for peer, kind in kinds.items() if kind == "sio"] == siblings
        assert len(siblings) == 1


def test_value_6_between_cards_is_an_old_driver_saying_it_does_not_know(play: Play) -> None:
    player = play("atlas-800t-a2")
    player.state.write_text(player.state.read_text().replace("same_ring = 3", "same_ring = 6"))
    assert all(device.links == () for device in player.discover())


def test_a_fact_that_is_not_supported_is_left_out_and_nothing_else(play: Play) -> None:
    player = play("atlas-800t-a2")
    player.change(3, unsupported="elabel,pcie,cpus,utilization,vnpu")
    device = player.discover()[3]
    assert device.health.ok
    assert device.pci_address is None
    assert device.identity("serial") is None
    assert {counter.name: counter.amount for counter in device.device_class.capacity.counters} == {"aicore": 20, "aicpu": 7}
    assert player.usage()[device.id].core_busy_percent is None


def test_ai_cpus_are_the_drivers_own_count(play: Play) -> None:
    player = play("atlas-800t-a2")
    player.change(0, aicpus="6")
    counters = {counter.name: counter.amount for counter in player.discover()[0].device_class.capacity.counters}
    assert counters["aicpu"] == 6


def test_numa_from_the_pci_device_then_from_the_cpus(play: Play) -> None:
    player = play("atlas-800t-a2")
    assert [device.numa_node for device in player.discover()] == [6, 6, 4, 4, 0, 0, 2, 2]
    player.write("/sys/bus/pci/devices/0000:01:00.0/numa_node", "-1\n")  # the kernel does not know
    player.write("/sys/bus/pci/devices/0000:41:00.0/numa_node", "-1\n")
    player.write("/sys/devices/system/node/node3/cpulist", "0-23\n")
    numa = {device.pci_address: device.numa_node for device in player.discover()}
    assert (numa["0000:c1:00.0"], numa["0000:01:00.0"], numa["0000:41:00.0"]) == (6, 3, None)
    assert [device.numa_node for device in play("atlas-a3").discover()] == [number // 4 for number in range(16)]


def test_a_lost_chip_keeps_its_identity_and_comes_back(play: Play) -> None:
    player = play("atlas-a3")
    before = player.discover()
    player.change(5, health="lost")
    lost = player.health()[before[5].id]
    assert (lost.state, "gone" in lost.reason) == ("unhealthy", True)
    during = player.discover()
    assert [device.id for device in during] == [device.id for device in before]
    assert [device.health.ok for device in during].count(False) == 1
    player.change(5, health="gone")
    assert [device.health.ok for device in player.discover()].count(False) == 1
    player.change(5, health="ok")
    assert player.discover() == before


def test_alarms_carry_their_codes_and_a_general_one_is_a_warning(play: Play) -> None:
    player = play("atlas-800t-a2")
    devices = player.discover()
    player.change(1, health="general", error_codes="0x80CD8008")
    player.change(2, health="critical", error_codes="0x80E01801,0x80E18402")
    state = player.health()
    assert state[devices[1].id].ok
    assert "0x80CD8008" in state[devices[1].id].reason
    assert not state[devices[2].id].ok
    assert "critical alarm, error codes 0x80E01801, 0x80E18402" in state[devices[2].id].reason


def test_usage_follows_the_machine(play: Play) -> None:
    player = play("atlas-300i-duo")
    devices = player.discover()
    player.change(0, memory_used_mib="1234", utilization="57", processes="71:1000,72:234")
    usage = player.usage()[devices[0].id]
    assert (usage.memory_used_bytes, usage.core_busy_percent) == (1234 * MIB, 57.0)
    assert usage.processes == (ProcessUsage(pid=71, memory_bytes=1000 * MIB), ProcessUsage(pid=72, memory_bytes=234 * MIB))
    assert player.usage()[devices[1].id].processes == ()


def test_rings_of_the_910a(play: Play) -> None:
    player = play("atlas-800t-a2")
    player.state.write_text(player.state.read_text().replace("name = 910B3", "name = 910A").replace("hbm_mib = 65536", "hbm_mib = 32768"))
    devices = player.discover()
    rings = {device.identity("phy-id"): device.group("ring") for device in devices}
    assert len({rings[str(phy)] for phy in range(4)}) == 1
    assert len({rings[str(phy)] for phy in range(8)}) == 2
    assert devices[0].device_class.group_rule.allowed_counts == (1, 2, 4, 8)
    assert devices[0].device_class.group_rule.same == ("ring",)


def test_a_chip_that_was_never_seen_is_left_out_until_it_answers(play: Play) -> None:
    player = play("atlas-800t-a2")
    player.change(7, health="lost")
    assert len(player.discover()) == 7
    player.change(7, health="ok")
    assert len(player.discover()) == 8


def test_usage_of_a_chip_just_lost_is_unknown_and_the_others_are_read(play: Play) -> None:
    player = play("atlas-800t-a2")
    devices = player.discover()
    player.change(0, health="lost")
    usage = player.usage()
    assert [usage[device.id].memory_used_bytes for device in devices[:2]] == [None, 0]
