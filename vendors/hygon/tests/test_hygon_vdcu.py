# SPDX-License-Identifier: Apache-2.0
"""vDCUs: what is offered, what is written for the driver, and who holds which number (research/vendors.md §4b, §6d)."""

from __future__ import annotations

from pathlib import Path

import hami_hygon
import pytest
from hami_hygon import vdevs

from hami_framework import GIB, HARD, MIB, Device, DeviceGrant, DeviceRequest, Grant, Host, Isolation, Offer, Owner, Reason, Rejection


@pytest.fixture
def cards(stage) -> tuple[Device, ...]:
    """The machine's cards; the hooks of this process work on its files."""
    devices = stage.devices()
    vdevs.use(Host(node="n", root=str(stage.root)))
    return devices


def partition(card: Device, **request: object) -> list[Offer | Rejection]:
    return list(hami_hygon.hami_partition(device_class=card.device_class, request=DeviceRequest(**request)))


def grant(tmp_path: Path, uid: str, card: Device, offer: Offer, units: str | None = None) -> Grant:
    directory = tmp_path / uid
    directory.mkdir(exist_ok=True)
    held = DeviceGrant(device_id=card.id, device_name=card.name, vendor="hygon", resource="hygon.com/dcunum", offer=offer, units=units)
    return Grant(owner=Owner(kind="pod", uid=uid), node="n", container="main", devices=(held,), directory=str(directory))


@pytest.mark.parametrize(
    ("percent", "units"),
    [pytest.param(25, 30, id="25 %"), pytest.param(33, 39, id="rounded down"), pytest.param(1, 1, id="one"), pytest.param(99, 118, id="nearly all")],
)
def test_compute_units(cards, percent, units):
    (offer,) = partition(cards[0], memory_bytes=8 * GIB, core_percent=percent)
    assert (offer.mode, offer.cost.units, offer.cost.memory_bytes, offer.cost.core_percent) == ("vdcu", units, 8 * GIB, percent)


@pytest.mark.parametrize(
    ("request_", "mode", "memory_mib", "percent"),
    [
        pytest.param({}, "whole", 65520, 100, id="nothing: the whole card"),
        pytest.param({"memory_bytes": 65520 * MIB}, "whole", 65520, 100, id="all memory: the whole card"),
        pytest.param({"memory_bytes": 65520 * MIB, "core_percent": 100, "count": 2}, "whole", 65520, 100, id="all of two cards"),
        pytest.param({"memory_bytes": 8000 * MIB}, "vdcu-memory", 8000, None, id="memory alone: no compute limit"),
        pytest.param({"core_percent": 50}, "vdcu", 65520, 50, id="cores alone: all memory"),
        pytest.param({"memory_bytes": 1}, "vdcu-memory", 1, None, id="rounded up to a MiB"),
    ],
)
def test_offers(cards, request_, mode, memory_mib, percent):
    (offer,) = partition(cards[0], **request_)
    assert (offer.mode, offer.cost.memory_bytes // MIB, offer.limit.core_percent) == (mode, memory_mib, percent)
    assert offer.exclusive is (mode == "whole")


@pytest.mark.parametrize(
    ("request_", "reason", "hint"),
    [
        pytest.param({"count": 2, "memory_bytes": GIB}, Reason.SHARE_COUNT_FORBIDDEN, "one card", id="two parts"),
        pytest.param({"memory_bytes": 64 * GIB}, Reason.NOT_OFFERED, "less memory", id="more memory than it has"),
        pytest.param({"profile": "1g.5gb"}, Reason.PROFILE_UNKNOWN, "memory and cores", id="a profile"),
        pytest.param({"mode": "share"}, Reason.MODE_UNSUPPORTED, "whole, vdcu, vdcu-memory", id="a mode it lacks"),
    ],
)
def test_refusals_say_what_to_write(cards, request_, reason, hint):
    (rejection,) = partition(cards[0], **request_)
    assert rejection.reason is reason
    assert hint in rejection.hint


def test_less_than_one_compute_unit_is_refused(stage):
    card = stage.devices({"device": {"compute_units": "60"}})[0]
    (rejection,) = partition(card, memory_bytes=GIB, core_percent=1)
    assert rejection.reason is Reason.NOT_OFFERED
    assert "at least 2 %" in rejection.hint


@pytest.mark.parametrize(
    ("units", "low", "high", "count"),
    [
        pytest.param((1 << 30) - 1, "0x000000003fffffff", "0x0000000000000000", 30, id="30 units"),
        pytest.param((1 << 100) - 1, "0xffffffffffffffff", "0x0000000fffffffff", 100, id="100 units: 36 in the second word"),
        pytest.param(((1 << 4) - 1) << 62, "0xc000000000000000", "0x0000000000000003", 4, id="across the words"),
    ],
)
def test_the_file_that_the_driver_reads(cards, stage, tmp_path, units, low, high, count):
    (offer,) = partition(cards[3], memory_bytes=8192 * MIB, core_percent=25)
    held = grant(tmp_path, "a", cards[3], offer, hex(units))
    edits = hami_hygon.hami_allocate(grant=held, devices=[cards[3]])
    expected = f"PciBusId: 0000:3f:00.0\ncu_mask: {low}\ncu_mask: {high}\ncu_count: {count}\nmem: 8192 MiB\ndevice_id: 0\nvdev_id: 0\npipe_id: 0\nenable: 1\n"
    assert (tmp_path / "a/vdev/vdev0.conf").read_text() == expected
    assert (stage.root / "etc/vdev/vdev0.conf").read_text() == expected.replace("device_id: 0", "device_id: 3")
    assert ("/etc/vdev/docker/", str(tmp_path / "a/vdev"), True) in {(mount.container_path, mount.host_path, mount.read_only) for mount in edits.mounts}


def test_what_the_container_sees(cards, stage, tmp_path):
    (offer,) = partition(cards[0])
    card = cards[0]
    edits = hami_hygon.hami_allocate(grant=grant(tmp_path, "a", card, offer), devices=[card])
    assert [node.path for node in edits.device_nodes] == ["/dev/kfd", "/dev/mkfd", "/dev/dri/card2", "/dev/dri/renderD130"]
    assert {node.permissions for node in edits.device_nodes} == {"rwm"}
    assert [mount.container_path for mount in edits.mounts] == ["/opt/hygondriver", "/opt/hyhal"]
    hami_hygon.hami_release(grant=grant(tmp_path, "a", card, offer))
    assert list((tmp_path / "a").iterdir()) == []
    assert not (stage.root / "etc").exists()


def test_numbers_are_unique_kept_and_given_back(cards, stage, tmp_path):
    """vdev ids count over the node and pipes over the card; a repeated allocate changes nothing; foreign files stay."""
    host = stage.root / "etc/vdev"
    host.mkdir(parents=True)
    (host / "vdev0.conf").write_text("PciBusId: 0000:33:00.0\npipe_id: 0\n")
    (offer,) = partition(cards[0], memory_bytes=GIB)
    holders = [(grant(tmp_path, uid, card, offer), card) for uid, card in (("a", cards[0]), ("b", cards[0]), ("c", cards[1]))]

    def numbers() -> list[tuple[str, str]]:
        for held, card in holders:
            hami_hygon.hami_allocate(grant=held, devices=[card])
        lines = [(Path(held.directory) / "vdev/vdev0.conf").read_text().splitlines() for held, _ in holders]
        return [(line[6], line[7]) for line in lines]

    first = numbers()
    assert first == [("vdev_id: 1", "pipe_id: 1"), ("vdev_id: 2", "pipe_id: 2"), ("vdev_id: 3", "pipe_id: 0")]
    assert numbers() == first
    for _ in range(2):
        hami_hygon.hami_release(grant=holders[0][0])
    assert sorted(file.name for file in host.iterdir()) == ["vdev0.conf", "vdev2.conf", "vdev2.owner", "vdev3.conf", "vdev3.owner"]
    assert numbers() == first


def test_a_claim_survives_a_crash_before_the_files(cards, stage, tmp_path):
    host = stage.root / "etc/vdev"
    host.mkdir(parents=True)
    (host / "vdev0.owner").write_text("a/main\n")
    (offer,) = partition(cards[0], memory_bytes=GIB)
    for uid, number in (("b", 1), ("a", 0)):
        hami_hygon.hami_allocate(grant=grant(tmp_path, uid, cards[0], offer), devices=[cards[0]])
        assert f"vdev_id: {number}\n" in (tmp_path / uid / "vdev/vdev0.conf").read_text()


def test_a_card_has_twenty_pipes(cards, stage, tmp_path):
    (offer,) = partition(cards[0], memory_bytes=GIB)
    for number in range(20):
        hami_hygon.hami_allocate(grant=grant(tmp_path, f"p{number}", cards[0], offer), devices=[cards[0]])
    with pytest.raises(RuntimeError, match="all 20 pipes"):
        hami_hygon.hami_allocate(grant=grant(tmp_path, "one-more", cards[0], offer), devices=[cards[0]])


@pytest.mark.parametrize(
    ("request_", "isolation"),
    [
        pytest.param({}, HARD, id="whole"),
        pytest.param({"memory_bytes": GIB, "core_percent": 10}, Isolation(memory="hard", compute="hard"), id="masked"),
        pytest.param({"memory_bytes": GIB}, Isolation(memory="hard"), id="memory only"),
    ],
)
def test_isolation_is_what_the_driver_holds(cards, tmp_path, request_, isolation):
    (offer,) = partition(cards[0], **request_)
    assert hami_hygon.hami_enforce(grant=grant(tmp_path, "a", cards[0], offer), devices=[cards[0]]).isolation == isolation
    assert cards[0].device_class.mode(offer.mode).isolation == isolation
