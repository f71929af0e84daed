# SPDX-License-Identifier: Apache-2.0
"""The last fence adds up what grants say, at each pod's worst start-up phase."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from hami_framework.deviceplugin.fence import Overcommit, check
from hami_framework.model import (
    GIB,
    Capacity,
    ContainerGrant,
    Cost,
    Counter,
    Device,
    DeviceClass,
    DeviceGrant,
    Interval,
    Mode,
    Offer,
    Owner,
    PodGrant,
    Reason,
    share,
    whole,
)
from hami_framework.model.request import ContainerKind

CAPACITY = Capacity(memory_bytes=10 * GIB, shares=3, counters=(Counter(name="aicpu", amount=7),), line=8, units=64)
DEVICE = Device(
    id="d1",
    name="acme-d1",
    device_class=DeviceClass(model="X", vendor="acme", capacity=CAPACITY, modes=(Mode(name="share", coexists=("pipe",)), Mode(name="cut"), Mode(name="pipe"))),
)
DEVICES = {"d1": DEVICE}
FAIR = Overcommit()


def on(offer: Offer, *, start: int | None = None, units: str | None = None) -> DeviceGrant:
    return DeviceGrant(device_id="d1", device_name="acme-d1", vendor="acme", resource="r", offer=offer, start=start, units=units)


def pod(uid: str, *grants: DeviceGrant, kinds: tuple[ContainerKind, ...] = ()) -> PodGrant:
    all_kinds: Iterator[ContainerKind] = itertools.chain(kinds, itertools.repeat("app"))
    containers = tuple(ContainerGrant(container=f"c{n}", kind=next(all_kinds), devices=(grant,)) for n, grant in enumerate(grants))
    return PodGrant(owner=Owner(kind="pod", uid=uid), node="n1", containers=containers)


def cut(size: int) -> Offer:
    return Offer(mode="cut", cost=Cost(interval=Interval(size=size, starts=(0,)), shares=1))


PIPE = Offer(mode="pipe", cost=Cost(units=4))
CPU = Offer(mode="share", cost=Cost(counters=(Counter(name="aicpu", amount=4),)))


@pytest.mark.parametrize(
    ("new", "live", "reasons"),
    [
        pytest.param(on(share(4 * GIB)), [on(share(6 * GIB))], [], id="exactly full"),
        pytest.param(on(share(4 * GIB + 1)), [on(share(6 * GIB))], ["memory"], id="one byte over"),
        pytest.param(on(share(GIB, 60)), [on(share(GIB, 50))], ["cores"], id="compute over"),
        pytest.param(on(share(1)), [on(share(1))] * 3, ["shares"], id="one sharer too many"),
        pytest.param(on(share(1)), [on(whole(10 * GIB))], ["memory", "exclusive"], id="beside a whole device"),
        pytest.param(on(whole(10 * GIB)), [], [], id="a whole device alone"),
        pytest.param(on(CPU), [on(CPU)], ["counter"], id="a named counter over"),
        pytest.param(on(cut(4), start=4), [on(cut(4), start=0)], [], id="intervals side by side"),
        pytest.param(on(cut(4), start=2), [on(cut(4), start=0)], ["placement"], id="intervals that overlap"),
        pytest.param(on(PIPE, units="0xf0"), [on(PIPE, units="0x0f")], [], id="unit bitmaps side by side"),
        pytest.param(on(PIPE, units="0x1e"), [on(PIPE, units="0x0f")], ["units"], id="unit bitmaps that overlap"),
        pytest.param(on(cut(1), start=0), [on(share(1))], ["mode-taken"], id="modes that exclude each other"),
        pytest.param(on(share(1)), [on(PIPE, units="0x1")], [], id="modes that may coexist"),
        pytest.param(on(PIPE, units="0x1"), [on(share(1))], [], id="whichever of them says so"),
    ],
)  # fmt: skip
def test_nothing_passes_that_exceeds_the_device(new: DeviceGrant, live: list[DeviceGrant], reasons: list[str]) -> None:
    others = [pod(f"other-{n}", grant) for n, grant in enumerate(live)]

    assert [one.reason.value for one in check(pod("new", new), others, DEVICES, FAIR)] == reasons


def test_a_refusal_says_what_was_wanted_and_what_is_free() -> None:
    (refusal,) = check(pod("new", on(share(5 * GIB))), [pod("old", on(share(6 * GIB)))], DEVICES, FAIR)

    assert (refusal.device, refusal.dimension, refusal.wanted, refusal.free) == ("acme-d1", "memory_bytes", 5 * GIB, 4 * GIB)


def test_a_pod_counts_at_its_worst_phase_not_at_the_sum() -> None:
    init_then_app = pod("new", on(share(6 * GIB)), on(share(5 * GIB)), kinds=("init", "app"))
    beside_a_sidecar = pod("new", on(share(6 * GIB)), on(share(5 * GIB)), kinds=("sidecar", "app"))

    assert check(init_then_app, [pod("old", on(share(4 * GIB)))], DEVICES, FAIR) == ()
    assert [one.reason.value for one in check(beside_a_sidecar, [], DEVICES, FAIR)] == ["memory"]


def test_a_pod_does_not_stand_in_its_own_way() -> None:
    own = pod("new", on(share(6 * GIB)))

    assert check(own, [own], DEVICES, FAIR) == ()


def test_overcommitment_is_the_nodes_to_allow() -> None:
    live = [pod("old", on(share(10 * GIB, 100)))]

    assert check(pod("new", on(share(5 * GIB, 50))), live, DEVICES, Overcommit(memory_percent=150, core_percent=150)) == ()
    assert check(pod("new", on(share(5 * GIB + 1))), live, DEVICES, Overcommit(memory_percent=150)) != ()


def test_no_overcommitment_makes_a_device_larger_for_one() -> None:
    (refused,) = check(pod("a", on(share(11 * GIB))), [], DEVICES, Overcommit(memory_percent=200))
    assert refused.reason is Reason.MEMORY
    assert "above the device" in refused.message


def test_a_device_that_is_not_here_is_refused_by_id() -> None:
    (refusal,) = check(pod("new", on(share(1))), [], {}, FAIR)

    assert (refusal.reason.value, refusal.device) == ("id", "d1")
