# SPDX-License-Identifier: Apache-2.0
"""Discovery and health against the facts of the machine (research/vendors.md §4a, §4e, §4f)."""

from __future__ import annotations

import shutil

import pytest

from hami_framework import MIB


def test_k100_ai(stage):
    devices = stage.devices()
    assert len(devices) == 8
    first, own = devices[0], devices[0].device_class
    assert (first.id, first.identity("hcu"), first.identity("unique-id")) == ("DCU-TRCW340004110601", "HCU-TRCW340004110601", "7137d9b2a08a4841")
    assert (own.model, own.capacity.memory_bytes, own.capacity.units, own.capacity.shares) == ("K100_AI", 65520 * MIB, 120, 20)
    assert all(own.answers_to(name) for name in ("K100_AI", "DCU-K100_AI", "dcu-k100_ai", "HCU-K100_AI"))
    assert not own.answers_to("K100")
    assert first.pci_address == "0000:33:00.0"


def test_render_node_is_not_the_index(stage):
    devices = stage.devices()
    assert (devices[0].identity("render"), devices[1].identity("render")) == ("130", "129")


def test_files_under_dev_dri_go_by_pci_address(stage):
    shutil.rmtree(stage.root / "sys/bus/pci/devices/0000:36:00.0/drm")
    told, silent = stage.devices(), stage.devices({"device": {"unsupported": "render"}})
    for devices in (told, silent):
        assert (devices[0].identity("card"), devices[0].identity("render")) == ("2", "130")
    assert (told[1].identity("card"), told[1].identity("render")) == (None, "129")
    assert silent[1].identity("render") is None


def test_links_by_numa_node_and_xgmi(stage):
    change = {"device 0": {"xgmi_hive": "a"}, "device 4": {"xgmi_hive": "a"}}
    devices = stage.devices(change)
    kinds = {link.peer: link.kind for link in devices[0].links}
    assert (kinds[devices[1].id], kinds[devices[4].id], kinds[devices[5].id]) == ("numa", "xgmi", "system")


def test_a_card_of_amd_is_not_ours(stage):
    assert len(stage.devices({"device 3": {"pci_vendor_id": "0x1002"}})) == 7


def test_an_unknown_model_counts_the_units_the_library_knows(stage):
    device = stage.devices({"device": {"pci_device_id": "0x7777", "name": "BW1000", "compute_units": "80"}})[0]
    assert (device.device_class.model, device.device_class.capacity.units) == ("BW1000", 80)


def test_without_known_units_a_card_is_had_whole(stage):
    device = stage.devices({"device": {"pci_device_id": "0x7777", "compute_units": "0"}})[0]
    assert [mode.name for mode in device.device_class.modes] == ["whole"]


def test_the_published_table_helps_an_older_library(stage):
    device = stage.devices({"device": {"pci_device_id": "0x55b7", "compute_units": "0"}})[0]
    assert (device.device_class.model, device.device_class.capacity.units) == ("Z100L", 60)


def test_what_is_not_supported_is_left_out(stage):
    device = stage.devices({"device": {"unsupported": "numa,unique_id,ecc,utilization"}})[0]
    assert device.health.ok
    assert (device.numa_node, device.identity("unique-id")) == (None, None)


@pytest.mark.parametrize(("health", "word"), [("lost", "does not answer"), ("ecc", "ECC")])
def test_a_card_that_fails_is_still_there_and_recovers(stage, health, word):
    before, bad, back = stage.after({}, {"device 2": {"health": health}}, {})
    failed = before.devices[2].id
    assert [device.id for device in bad.devices] == [device.id for device in before.devices]
    assert word in bad.health[failed].reason
    assert [name for name, state in bad.health.items() if not state.ok] == [failed]
    assert back.devices == before.devices


def test_usage_is_read_at_run_time(stage):
    idle, busy = stage.after({}, {"device 0": {"memory_used_mib": "3000", "utilization": "87"}})
    assert (idle.usage[0].memory_used_bytes, idle.usage[0].core_busy_percent) == (0, 0)
    assert (busy.usage[0].memory_used_bytes, busy.usage[0].core_busy_percent) == (3000 << 20, 87)


def test_no_library_is_no_devices_and_a_broken_driver_is_an_error(stage):
    script = "import hami_hygon; from hami_framework import Host; print(list(hami_hygon.hami_discover(host=Host(node='n'))))"
    working = dict(stage.environment)
    stage.environment = {}
    assert stage.python(script).strip() == "[]"
    stage.environment = working | {"HAMI_FAKE_HYGON": "/does/not/exist"}
    with pytest.raises(AssertionError, match="INIT_ERROR"):
        stage.python(script)
