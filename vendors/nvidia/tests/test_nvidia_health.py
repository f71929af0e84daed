# SPDX-License-Identifier: Apache-2.0
"""GPUs that fail, and come back, while the worker runs."""

from __future__ import annotations

import pytest

LOST = {"device 2": {"health": "lost"}}


def test_a_lost_gpu_is_still_there_and_recovers(stage):
    before, lost, back = stage.after({}, LOST, {})
    gone = before.devices[2]
    assert [device.id for device in lost.devices] == [device.id for device in before.devices]
    assert not lost.devices[2].health.ok
    assert "GPU is lost" in lost.health[gone.id].reason
    assert [device.health.ok for device in lost.devices].count(False) == 1
    assert gone.id not in {usage.device_id for usage in lost.usage}
    assert back.devices == before.devices


@pytest.mark.parametrize(("health", "word"), [("ecc", "ECC"), ("remap-failed", "remapped"), ("reset-required", "lost")])
def test_errors_of_the_gpu(stage, health, word):
    _, bad, good = stage.after({}, {"device 5": {"health": health}}, {})
    assert word in bad.health[bad.devices[5].id].reason
    assert all(state.ok for state in good.health.values())


def test_a_critical_xid_lasts_until_the_gpu_was_reset(stage):
    """Event 79 is seen once NVML is asked again; the value going away in the file is no reset, being lost and found is."""
    moments = stage.after({}, {"device 1": {"xid": "79"}}, {}, {"device 1": {"health": "lost"}}, {})
    reasons = [moment.health[moments[0].devices[1].id].reason for moment in moments]
    assert reasons[0] == ""
    assert "XID 79" in reasons[1]
    assert "XID 79" in reasons[2]
    assert "lost" in reasons[3]
    assert reasons[4] == ""


def test_an_xid_of_a_faulty_program_is_not_the_gpus(stage):
    _, after = stage.after({}, {"device 1": {"xid": "31"}})
    assert all(state.ok for state in after.health.values())


def test_usage_is_read_at_run_time(stage):
    idle, busy = stage.after({}, {"device 0": {"memory_used_mib": "3000", "utilization": "87"}})
    assert (idle.usage[0].memory_used_bytes, idle.usage[0].core_busy_percent) == (0, 0.0)
    assert (busy.usage[0].memory_used_bytes, busy.usage[0].core_busy_percent) == (3000 << 20, 87.0)


def test_falling_off_the_bus_comes_with_an_xid_of_its_own(stage):
    """The driver's last words about a lost GPU must not take its neighbours down."""
    change = {"device": {"nvswitch_links": "0"}, "device 1": {"xid": "79", "health": "lost"}}
    before, after = stage.after({}, change)
    assert [name for name, state in after.health.items() if not state.ok] == [before.devices[1].id]
    assert after.devices[1].links == ()
