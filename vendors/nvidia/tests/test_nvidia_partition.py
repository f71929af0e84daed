# SPDX-License-Identifier: Apache-2.0
"""Which offers a GPU makes, with their exact cost; and what the container then sees."""

from __future__ import annotations

import hami_nvidia
import msgspec
import pytest
from hami_nvidia import enforce

from hami_framework import ADVISORY, GIB, HARD, MIB, SOFT, Device, DeviceGrant, DeviceRequest, Grant, Mode, Offer, Owner, Reason, Rejection
from hami_framework.codec.pods import read_pod
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.model import Inventory
from hami_framework.placement.engine import Engine


@pytest.fixture
def gpus(stage) -> tuple[Device, ...]:
    return stage.devices()


def partition(gpu: Device, *, creating: bool = False, **request: object) -> list[Offer | Rejection]:
    own = gpu.device_class
    if creating:
        own = msgspec.structs.replace(own, facts=(*own.facts, ("mig-creation", "yes")))
    return list(hami_nvidia.hami_partition(device_class=own, request=DeviceRequest(**request)))


def test_offers(gpus):
    (whole,) = partition(gpus[0])
    assert (whole.mode, whole.exclusive, whole.cost.memory_bytes) == ("whole", True, 40 * GIB)
    (share,) = partition(gpus[0], memory_bytes=3000 * MIB)
    assert (share.mode, share.cost.memory_bytes, share.cost.core_percent, share.limit.core_percent) == ("share", 3000 * MIB, 0, None)
    (cores,) = partition(gpus[0], core_percent=30)
    assert (cores.cost.memory_bytes, cores.limit.core_percent, cores.exclusive) == (40 * GIB, 30, False)
    (odd,) = partition(gpus[0], memory_bytes=1 * MIB + 1)
    assert odd.cost.memory_bytes == 2 * MIB
    (all_cores,) = partition(gpus[0], memory_bytes=1 * GIB, core_percent=100)
    assert all_cores.exclusive
    (both,) = partition(gpus[0], memory_bytes=40 * GIB, core_percent=100)
    assert (both.mode, both.exclusive) == ("whole", True)
    (no_limit,) = partition(gpus[0], memory_bytes=1 * GIB, core_percent=0)
    assert no_limit.limit.core_percent is None
    (everything,) = partition(gpus[0], mode="share")
    assert (everything.mode, everything.cost.memory_bytes) == ("share", 40 * GIB)


def test_all_memory_of_a_gpu_whose_memory_is_no_multiple_of_a_mib(gpus):
    odd = msgspec.structs.replace(gpus[0].device_class.capacity, memory_bytes=40 * GIB - 1000)
    gpu = msgspec.structs.replace(gpus[0], device_class=msgspec.structs.replace(gpus[0].device_class, capacity=odd))
    (share,) = partition(gpu, memory_bytes=odd.memory_bytes)
    assert share.cost.memory_bytes == odd.memory_bytes


@pytest.mark.parametrize(
    ("request_", "reason", "hint"),
    [
        pytest.param({"memory_bytes": 41 * GIB}, Reason.NOT_OFFERED, "less memory", id="more memory than it has"),
        pytest.param({"profile": "3g.40gb"}, Reason.PROFILE_UNKNOWN, "3g.20gb", id="a profile of another GPU"),
        pytest.param({"mode": "mps"}, Reason.MODE_UNSUPPORTED, "whole, share, mig", id="a mode it lacks"),
        pytest.param({"profile": "3g.20gb"}, Reason.MODE_UNSUPPORTED, "without MIG", id="a profile, which cannot be made yet"),
        pytest.param({"mode": "mig", "memory_bytes": 5 * GIB}, Reason.MODE_UNSUPPORTED, "without MIG", id="MIG, which cannot be made yet"),
    ],
)
def test_refusals_say_what_to_write(gpus, request_, reason, hint):
    (rejection,) = partition(gpus[0], **request_)
    assert rejection.reason is reason
    assert hint in rejection.hint


def test_a_gpu_in_mig_mode_says_how_to_get_it_back(stage):
    (rejection,) = partition(stage.devices({"device": {"mig": "on"}})[0])
    assert rejection.reason is Reason.MODE_UNSUPPORTED
    assert "-mig 0" in rejection.hint


def test_memory_alone_finds_the_smallest_mig_profile_that_holds_it(gpus):
    names = [offer.profile for offer in partition(gpus[0], creating=True, mode="mig", memory_bytes=8 * GIB)]
    assert names == ["1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"]
    with_cores = [offer.profile for offer in partition(gpus[0], creating=True, mode="mig", memory_bytes=8 * GIB, core_percent=40)]
    assert with_cores == ["3g.20gb", "4g.20gb", "7g.40gb"]
    (nothing,) = partition(gpus[0], creating=True, mode="mig", memory_bytes=40 * GIB)
    assert nothing.reason is Reason.NOT_OFFERED


def test_a_named_mig_profile_costs_its_slices(gpus):
    (offer,) = partition(gpus[0], creating=True, profile="3g.20gb")
    assert (offer.cost.memory_bytes, offer.cost.interval.size, offer.cost.interval.starts) == (19968 * MIB, 4, (4, 0))
    (media,) = partition(gpus[0], creating=True, profile="1g.5gb+me")
    assert media.profile == "1g.5gb+me"


def test_after_3g_at_4_the_placements_left_are_nvidias(gpus):
    """research/vendors.md §6d: 4g@0, 3g@0, 2g@{0,2}, 1g@{0..3}; 7g nowhere."""
    left = {}
    for profile in gpus[0].device_class.profiles:
        interval = profile.cost.interval
        left[profile.name] = {start for start in interval.starts if start + interval.size <= 4}
    assert left == {"4g.20gb": {0}, "3g.20gb": {0}, "2g.10gb": {0, 2}, "1g.10gb": {0, 2}, "1g.5gb": {0, 1, 2, 3}, "1g.5gb+me": {0, 1, 2, 3}, "7g.40gb": set()}


def grant(*held: tuple[Device, Offer]) -> Grant:
    devices = tuple(DeviceGrant(device_id=gpu.id, device_name=gpu.name, vendor="nvidia", resource="nvidia.com/gpu", offer=offer) for gpu, offer in held)
    return Grant(owner=Owner(kind="pod", uid="u"), node="n", container="c", devices=devices)


def test_a_share_sees_its_gpus_by_minor_number_and_hamis_variables(gpus):
    (share,) = partition(gpus[0], memory_bytes=3000 * MIB, core_percent=30)
    edits = hami_nvidia.hami_allocate(grant=grant((gpus[4], share), (gpus[0], share)), devices=(gpus[4], gpus[0]))
    assert edits.env == {
        "NVIDIA_VISIBLE_DEVICES": f"{gpus[4].id},{gpus[0].id}",
        "CUDA_DEVICE_MEMORY_LIMIT_0": "3000m",
        "CUDA_DEVICE_MEMORY_LIMIT_1": "3000m",
        "CUDA_DEVICE_SM_LIMIT": "30",
    }
    paths = [node.path for node in edits.device_nodes]
    assert paths == ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/nvidia6", "/dev/nvidia2"]


def test_a_whole_gpu_has_no_limits_and_is_held_hard(gpus):
    (whole,) = partition(gpus[0])
    held = grant((gpus[0], whole))
    assert hami_nvidia.hami_allocate(grant=held, devices=gpus[:1]).env == {"NVIDIA_VISIBLE_DEVICES": gpus[0].id}
    enforcement = hami_nvidia.hami_enforce(grant=held, devices=gpus[:1])
    assert (enforcement.isolation, enforcement.interceptor) == (HARD, None)


def test_without_the_library_a_share_is_said_to_be_measured_only(gpus, monkeypatch, tmp_path):
    monkeypatch.setattr(enforce, "LIBRARY", tmp_path / "libhami_nvidia.so")
    (share,) = partition(gpus[0], memory_bytes=1 * GIB)
    enforcement = hami_nvidia.hami_enforce(grant=grant((gpus[0], share)), devices=gpus[:1])
    assert (enforcement.isolation, enforcement.interceptor) == (ADVISORY, None)
    assert "libhami_nvidia.so is not installed" in enforcement.mechanism
    assert enforce.share_isolation() == ADVISORY


def test_with_the_library_a_share_is_held_softly_on_every_gpu_by_its_names(gpus, monkeypatch, tmp_path):
    library = tmp_path / "libhami_nvidia.so"
    library.touch()
    monkeypatch.setattr(enforce, "LIBRARY", library)
    (share,) = partition(gpus[0], memory_bytes=1 * GIB)
    enforcement = hami_nvidia.hami_enforce(grant=grant((gpus[4], share), (gpus[0], share)), devices=(gpus[4], gpus[0]))
    assert (enforcement.isolation, enforce.share_isolation()) == (SOFT, SOFT)
    assert enforcement.interceptor.library == str(library)
    for gpu in (gpus[0], gpus[4]):
        assert enforcement.interceptor.identities_of(gpu.id) == (("uuid", gpu.id), ("pci", gpu.pci_address))


@pytest.mark.parametrize(
    ("installed", "level", "reason"),
    [
        pytest.param(True, "soft", None, id="soft, and the library is there"),
        pytest.param(True, "hard", Reason.ISOLATION, id="hard: a library is not enough"),
        pytest.param(False, "soft", Reason.ISOLATION, id="soft, and there is no library"),
        pytest.param(False, "advisory", None, id="measured is enough"),
    ],
)
def test_a_pod_is_placed_where_its_limits_are_held_as_it_demands(gpus, monkeypatch, tmp_path, installed, level, reason):
    if installed:
        (tmp_path / "libhami_nvidia.so").touch()
    monkeypatch.setattr(enforce, "LIBRARY", tmp_path / "libhami_nvidia.so")
    gpu = gpus[0]
    modes = tuple(Mode(name=mode.name, isolation=enforce.share_isolation() if mode.name == "share" else mode.isolation) for mode in gpu.device_class.modes)
    device = msgspec.structs.replace(gpu, device_class=msgspec.structs.replace(gpu.device_class, vendor="nvidia", modes=modes))
    engine = Engine(lambda device_class, request: tuple(hami_nvidia.hami_partition(device_class=device_class, request=request)))
    engine.set_inventory(Inventory(node="n", devices=(device,)))
    spec = {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3000"}}}]}
    metadata = {"uid": "u", "namespace": "d", "name": "p", "annotations": {"hami.io/enforcement": level}}
    wanted = read_pod({"metadata": metadata, "spec": spec}, ResourceCatalog([("nvidia", hami_nvidia.hami_resources())]))
    verdict = engine.filter(wanted, None)
    assert (verdict.feasible == ["n"]) == (reason is None)
    assert reason is None or verdict.code("n") is reason
