# SPDX-License-Identifier: Apache-2.0
"""From a grant and a vendor's declaration to policy, files and mounts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec import structs

from hami_framework.deviceplugin import enforcing
from hami_framework.enforcement import container as containers
from hami_framework.errors import FormatError, PluginError
from hami_framework.model import (
    ADVISORY,
    GIB,
    HARD,
    SOFT,
    Capacity,
    ContainerEdits,
    ContainerGrant,
    Device,
    DeviceClass,
    DeviceGrant,
    Enforcement,
    Interceptor,
    Isolation,
    Offer,
    Owner,
    PodGrant,
    share,
    whole,
)

DEVICES = {
    name: Device(id=name, name=name, device_class=DeviceClass(model="X", vendor="acme", capacity=Capacity(memory_bytes=8 * GIB))) for name in ("x0", "x1", "z0")
}


def held(device: str, offer: Offer, vendor: str = "acme") -> DeviceGrant:
    return DeviceGrant(device_id=device, device_name=device, vendor=vendor, resource=f"{vendor}.com/xpu", offer=offer)


def granted(*devices: DeviceGrant) -> tuple[PodGrant, ContainerGrant]:
    container = ContainerGrant(container="main", devices=devices)
    return PodGrant(owner=Owner(kind="pod", uid="u1", namespace="ns", name="p"), node="n1", containers=(container,)), container


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    place = tmp_path / "package" / "libacme.so"
    place.write_bytes(b"code")
    return place


def interceptor(library: Path, *devices: str) -> Interceptor:
    return Interceptor(library=str(library), identities=tuple((name, (("uuid", name.upper()),)) for name in devices), context_bytes=(("x1", 300),))


def put(tmp_path: Path, grant: tuple[PodGrant, ContainerGrant], enforced: Mapping[str, Enforcement]) -> ContainerEdits:
    return enforcing.put(tmp_path / "c" / "enforcement", *grant, enforced, DEVICES, "fixed", tmp_path / "lib")


def test_a_share_is_held_to_its_grant(tmp_path: Path, library: Path) -> None:
    grant = granted(held("x1", share(3 * GIB, 30)), held("x0", share(2 * GIB)))
    put(tmp_path, grant, {"acme": Enforcement(isolation=SOFT, interceptor=interceptor(library, "x0", "x1"))})
    policy = containers.policy_of(tmp_path / "c" / "enforcement")
    first, second = policy.devices
    assert policy.container == "u1/main"
    assert (first.identities, first.memory_bytes, first.core_milli, first.capacity_bytes, first.context_bytes, first.weight) == (
        (("uuid", "X1"),),
        3 * GIB,
        30_000,
        8 * GIB,
        300,
        30,
    )
    assert (second.identities, second.memory_bytes, second.core_milli, second.context_bytes) == ((("uuid", "X0"),), 2 * GIB, None, None)


@pytest.mark.parametrize(
    ("offer", "memory", "milli"),
    [
        pytest.param(whole(8 * GIB), None, None, id="a whole device has its own limits"),
        pytest.param(share(8 * GIB, 50), 8 * GIB, 50_000, id="all of the memory"),
        pytest.param(structs.replace(share(4 * GIB, 100), exclusive=True), 4 * GIB, None, id="all of the time is no limit"),
    ],
)
def test_what_the_offer_says(library: Path, offer: Offer, memory: int | None, milli: int | None) -> None:
    pod, container = granted(held("x0", offer))
    (device,) = enforcing.policy_of(pod, container, {"acme": interceptor(library, "x0")}, DEVICES).devices
    assert (device.memory_bytes, device.core_milli) == (memory, milli)


def test_a_limit_above_the_device_is_not_written(tmp_path: Path, library: Path) -> None:
    with pytest.raises(PluginError, match="on a device that has"):
        put(tmp_path, granted(held("x0", share(12 * GIB))), {"acme": Enforcement(isolation=SOFT, interceptor=interceptor(library, "x0"))})


def test_without_a_declaration_nothing_is_written(tmp_path: Path) -> None:
    assert put(tmp_path, granted(held("x0", share(GIB))), {"acme": Enforcement(isolation=HARD)}).empty
    assert not (tmp_path / "c").exists()


def test_two_vendors_one_after_the_other(tmp_path: Path, library: Path) -> None:
    grant = granted(held("x0", share(GIB)), held("z0", share(GIB), "zeta"))
    put(tmp_path, grant, {"acme": Enforcement(interceptor=interceptor(library, "x0"))})
    other = library.with_name("libzeta.so")
    other.write_bytes(b"other code")
    edits = put(tmp_path, grant, {"zeta": Enforcement(interceptor=interceptor(other, "z0"))})
    directory = tmp_path / "c" / "enforcement"
    assert [device.vendor for device in containers.policy_of(directory).devices] == ["acme", "zeta"]
    assert set(enforcing.declaration(directory).by_vendor) == {"acme", "zeta"}
    (preload,) = [Path(mount.host_path) for mount in edits.mounts if mount.container_path == "/etc/ld.so.preload"]
    assert preload.read_text().split() == ["/run/hami/lib/libacme.so", "/run/hami/lib/libzeta.so"]


def test_the_library_is_mounted_from_a_copy_that_a_new_package_does_not_change(tmp_path: Path, library: Path) -> None:
    grant = granted(held("x0", share(GIB)))
    enforced = {"acme": Enforcement(interceptor=interceptor(library, "x0"))}

    def mounted() -> Path:
        return next(Path(mount.host_path) for mount in put(tmp_path, grant, enforced).mounts if mount.container_path.endswith("libacme.so"))

    first = mounted()
    assert mounted() == first
    library.write_bytes(b"newer code")
    second = mounted()
    assert (first.read_bytes(), second.read_bytes()) == (b"code", b"newer code")
    assert first != second


def test_a_library_that_is_not_there_is_the_vendors_fault(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"/nowhere/lib\.so is not there; install the vendor's package anew"):
        put(tmp_path, granted(held("x0", share(GIB))), {"acme": Enforcement(interceptor=interceptor(Path("/nowhere/lib.so"), "x0"))})


def test_a_device_without_a_name_is_the_vendors_fault(tmp_path: Path, library: Path) -> None:
    with pytest.raises(PluginError, match=r"container 'main'.*0 identities"):
        put(tmp_path, granted(held("x0", share(GIB))), {"acme": Enforcement(interceptor=interceptor(library))})


def test_who_opts_out_is_held_by_the_driver_only(library: Path) -> None:
    declared = interceptor(library, "x0")
    soft = enforcing.opted_out(Enforcement(isolation=SOFT, mechanism="libacme.so", interceptor=declared))
    assert (soft.isolation, soft.interceptor) == (ADVISORY, None)
    assert "the pod opted out" in soft.mechanism
    mixed = Isolation(memory="hard", compute="soft")
    assert enforcing.opted_out(Enforcement(isolation=mixed, interceptor=declared)).isolation == Isolation(memory="hard")
    plain = Enforcement(isolation=HARD, mechanism="the driver")
    assert enforcing.opted_out(plain) is plain


def test_a_damaged_declaration_is_named(tmp_path: Path) -> None:
    (tmp_path / enforcing.FILE).write_text("{")
    with pytest.raises(FormatError, match=enforcing.FILE):
        enforcing.declaration(tmp_path)
