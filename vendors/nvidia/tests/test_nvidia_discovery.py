# SPDX-License-Identifier: Apache-2.0
"""Discovery against the facts of the machines (research/vendors.md §1b, §1f)."""

from __future__ import annotations

import pytest

from hami_framework import MIB

FACTS = [
    pytest.param("dgx-a100-40g", "NVIDIA A100-SXM4-40GB", 40960, 12, "8.0", {"1g.5gb": 4864, "3g.20gb": 19968, "7g.40gb": 40192}, id="a100-40"),
    pytest.param("dgx-a100-80g", "NVIDIA A100-SXM4-80GB", 81920, 12, "8.0", {"1g.10gb": 9856, "1g.20gb": 19968, "4g.40gb": 40192}, id="a100-80"),
    pytest.param("dgx-h100", "NVIDIA H100 80GB HBM3", 81559, 18, "9.0", {"1g.10gb+me": 9984, "3g.40gb": 40448, "7g.80gb": 81152}, id="h100"),
    pytest.param("hgx-h200", "NVIDIA H200", 143771, 18, "9.0", {"1g.18gb": 16384, "1g.35gb": 33024, "3g.71gb": 71168}, id="h200"),
]


@pytest.mark.parametrize(("stage", "model", "memory_mib", "lanes", "capability", "profiles"), FACTS, indirect=["stage"])
def test_machine_is_discovered_as_it_is(stage, model, memory_mib, lanes, capability, profiles):
    devices = stage.devices()
    assert len(devices) == 8
    for device in devices:
        own = device.device_class
        assert (own.model, own.capacity.memory_bytes, own.fact("compute-capability")) == (model, memory_mib * MIB, capability)
        assert own.capacity.line == 8
        assert {link.peer for link in device.links} == {other.id for other in devices} - {device.id}
        assert {(link.kind, link.lanes) for link in device.links} == {("nvswitch", lanes)}
        known = {profile.name: profile.cost.memory_bytes // MIB for profile in own.profiles}
        assert profiles.items() <= known.items()


def test_every_mig_profile_has_its_placements(stage):
    """7 compute and 8 memory slices: {starts}:size, and one instance only of a profile with a media engine."""
    profiles = {profile.name: profile for profile in stage.devices()[0].device_class.profiles}
    places = {name: (set(profile.cost.interval.starts), profile.cost.interval.size, profile.max_instances) for name, profile in profiles.items()}
    assert places == {
        "1g.5gb": ({0, 1, 2, 3, 4, 5, 6}, 1, 7),
        "1g.5gb+me": ({0, 1, 2, 3, 4, 5, 6}, 1, 1),
        "1g.10gb": ({0, 2, 4, 6}, 2, 4),
        "2g.10gb": ({0, 2, 4}, 2, 3),
        "3g.20gb": ({0, 4}, 4, 2),
        "4g.20gb": ({0}, 4, 1),
        "7g.40gb": ({0}, 8, 1),
    }


def test_identity_is_not_the_index(stage):
    devices = stage.devices()
    assert devices[0].identity("minor") == "2"
    assert devices[0].pci_address == "0000:07:00.0"
    assert devices[0].numa_node == 3
    assert len({device.identity("minor") for device in devices}) == 8
    assert any(device.identity("minor") != str(device.index) for device in devices)


@pytest.mark.parametrize(
    ("product", "name", "answers"),
    [
        pytest.param("NVIDIA A100-SXM4-80GB", "A100", True, id="chip"),
        pytest.param("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb", True, id="board, any case"),
        pytest.param("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", True, id="full name"),
        pytest.param("NVIDIA A100-SXM4-80GB", "NVIDIA-A100-SXM4-80GB", True, id="as a node label"),
        pytest.param("NVIDIA A100-SXM4-80GB", "A10", False, id="no part of a name"),
        pytest.param("NVIDIA A100-SXM4-80GB", "NVIDIA", False, id="not the brand"),
        pytest.param("NVIDIA GeForce RTX 4090", "RTX 4090", True, id="two words"),
        pytest.param("NVIDIA GeForce RTX 4090", "RTX", False, id="not the family"),
        pytest.param("Tesla V100-SXM2-32GB", "V100", True, id="old brand"),
    ],
)
def test_type_names(stage, product, name, answers):
    device = stage.devices({"device": {"name": product}})[0]
    assert device.device_class.answers_to(name) is answers


def test_nvlinks_without_a_switch_are_counted_per_pair(stage):
    """Two links to GPU 1, one to GPU 2; the rest by PCI Express: 0 and 1 share a switch, 4 is across the socket."""
    change = {"device": {"nvswitch_links": "0"}, "device 0": {"nvlink_peers": "1,1,2"}, "device 1": {"nvlink_peers": "0,0"}}
    devices = stage.devices(change)
    links = {link.peer: (link.kind, link.lanes) for link in devices[0].links}
    assert links[devices[1].id] == ("nvlink", 2)
    assert links[devices[2].id] == ("nvlink", 1)
    assert links[devices[4].id] == ("system", 1)
    assert devices[0].groups == ()


def test_what_is_not_supported_is_left_out(stage):
    unsupported = "serial,numa,utilization,ecc,remapped-rows,events,nvlink,mig"
    moment = stage.after({"device": {"unsupported": unsupported}, "device 3": {"memory_used_mib": "512"}})[0]
    device = moment.devices[3]
    assert device.health.ok
    assert device.identity("serial") is None
    assert device.numa_node is None
    assert device.device_class.profiles == ()
    assert [mode.name for mode in device.device_class.modes] == ["whole", "share"]
    assert (moment.usage[3].memory_used_bytes, moment.usage[3].core_busy_percent) == (512 * MIB, None)


def test_numa_node_of_the_kernel_where_nvml_is_silent(stage):
    for bus, node in (("07", "5"), ("0f", "-1")):
        directory = stage.root / f"sys/bus/pci/devices/0000:{bus}:00.0"
        directory.mkdir(parents=True)
        (directory / "numa_node").write_text(node + "\n")
    devices = stage.devices({"device": {"unsupported": "numa"}})
    assert (devices[0].numa_node, devices[1].numa_node) == (5, None)


def test_a_gpu_without_memory_of_its_own_works_in_the_systems(stage):
    (stage.root / "proc").mkdir(parents=True)
    (stage.root / "proc/meminfo").write_text("MemTotal:       125829120 kB\nMemFree: 1 kB\n")
    device = stage.devices({"device": {"name": "NVIDIA GB10", "unsupported": "memory,mig"}})[0]
    assert device.device_class.capacity.memory_bytes == 125829120 * 1024


def test_a_gpu_in_mig_mode_has_no_other_mode(stage):
    devices = stage.devices({"device 1": {"mig": "on"}})
    assert [mode.name for mode in devices[1].device_class.modes] == ["mig"]
    assert [mode.name for mode in devices[0].device_class.modes] == ["whole", "share", "mig"]


def test_no_driver_is_no_devices_and_a_broken_one_is_an_error(stage):
    script = "import hami_nvidia; from hami_framework import Host; print(list(hami_nvidia.hami_discover(host=Host(node='n'))))"
    working = dict(stage.environment)
    stage.environment = {}
    assert stage.python(script).strip() == "[]"
    stage.environment = working | {"HAMI_FAKE_NVIDIA": "/does/not/exist"}
    with pytest.raises(AssertionError, match="Driver Not Loaded"):
        stage.python(script)
