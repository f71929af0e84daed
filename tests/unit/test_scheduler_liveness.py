# SPDX-License-Identifier: Apache-2.0
"""Who is silent, on a clock of the test's own; and that the engine sends nothing there."""

from __future__ import annotations

from typing import Any

import pytest

from hami_framework.model import (
    GIB,
    Capacity,
    ContainerRequest,
    Device,
    DeviceClass,
    DeviceRequest,
    Inventory,
    PodGrant,
    PodRequest,
    Reason,
    ResourceRequest,
    share,
)
from hami_framework.placement.engine import Engine
from hami_framework.scheduler.liveness import Signs, _LeaseSpec


def sign(renewed: str = "r1", holder: str = "n", seconds: int | None = 30) -> _LeaseSpec:
    return _LeaseSpec(holder_identity=holder, lease_duration_seconds=seconds, renew_time=renewed)


def test_a_sign_is_good_for_as_long_as_it_says_counted_from_when_we_saw_it() -> None:
    signs = Signs(0.0)
    signs.saw("n", sign("written long ago by its own clock"), 100.0)
    assert signs.late(130.0) == set()
    assert signs.late(130.1) == {"n"}
    signs.saw("n", sign("r2"), 131.0)
    assert signs.late(160.0) == set()


def test_a_write_that_renews_nothing_is_no_sign() -> None:
    signs = Signs(0.0)
    signs.saw("n", sign("r1"), 0.0)
    signs.saw("n", sign("r1"), 29.0)
    assert signs.late(31.0) == {"n"}


def test_an_empty_holder_means_that_the_agent_stops() -> None:
    signs = Signs(0.0)
    assert not signs.saw("n", sign(), 0.0)
    assert signs.saw("n", sign("r2", holder=""), 1.0)
    assert signs.stopped(1.0) == {"n"}
    assert signs.saw("n", sign("r3"), 2.0)
    assert signs.stopped(2.0) == set()


def test_a_goodbye_counts_until_the_node_itself_must_have_said_it() -> None:
    """After a rollback the Lease of the newer agent stays behind with its goodbye, and the older agent gives no signs."""
    signs = Signs(0.0)
    signs.saw("n", sign("r1", holder=""), 100.0)
    assert signs.stopped(130.0) == {"n"}
    assert (signs.stopped(130.1), signs.late(1e6), signs.known("n")) == (set(), set(), False)


def test_after_deafness_everybody_has_the_full_time_again() -> None:
    signs = Signs(0.0)
    signs.saw("n", sign(), 0.0)
    signs.deaf(1000.0)
    assert signs.late(1029.0) == set()
    assert signs.late(1031.0) == {"n"}


def test_a_node_without_a_sign_is_never_late() -> None:
    signs = Signs(0.0)
    signs.saw("n", sign(), 0.0)
    signs.gone("n")
    assert (signs.late(1e6), signs.stopped(1e6), signs.known("n")) == (set(), set(), False)


@pytest.mark.parametrize(("seconds", "late_at"), [(604_800, 700_000.0), (None, 31.0)])
def test_the_sign_says_how_long(seconds: int | None, late_at: float) -> None:
    signs = Signs(0.0)
    signs.saw("n", sign(seconds=seconds), 0.0)
    assert signs.late(late_at - (2 if seconds is None else 200_000)) == set()
    assert signs.late(late_at) == {"n"}


CLASS = DeviceClass(model="X", vendor="one", capacity=Capacity(memory_bytes=16 * GIB, shares=4))


def engine(*nodes: str) -> Engine:
    made = Engine(lambda device_class, request: (share(request.memory_bytes or GIB),))
    for node in nodes:
        made.set_inventory(inventory(node))
    return made


def inventory(node: str) -> Inventory:
    return Inventory(node=node, devices=(Device(id=f"{node}-0", name=f"{node}-0", index=0, device_class=CLASS),))


def pod(uid: str = "p", gib: int = 4, **more: Any) -> PodRequest:
    request = ResourceRequest(resource="x/count", request=DeviceRequest(memory_bytes=gib * GIB))
    return PodRequest(uid=uid, namespace="d", name=uid, containers=(ContainerRequest(name="main", requests=(request,)),), **more)


class TestTheMask:
    def test_nothing_new_goes_to_a_silent_node_and_the_reason_says_so(self) -> None:
        made = engine("a", "b")
        made.filter(pod("warm"), None)
        made.set_silent({"a"})
        verdict = made.filter(pod(), None)
        assert verdict.feasible == ["b"]
        assert (verdict.code("a"), verdict.by_reason()) == (Reason.NODE_SILENT, {Reason.NODE_SILENT: ["a"]})
        assert verdict.rejections["a"][0].reason is Reason.NODE_SILENT

    def test_it_is_back_at_once(self) -> None:
        made = engine("a")
        made.set_silent({"a"})
        assert made.filter(pod(), None).feasible == []
        made.set_silent(set())
        assert made.filter(pod(), None).feasible == ["a"]

    def test_a_node_that_was_silent_before_its_inventory_came(self) -> None:
        made = engine()
        made.set_silent({"late"})
        made.set_inventory(inventory("late"))
        assert made.filter(pod(), None).feasible == []

    def test_a_node_that_falls_silent_between_filter_and_bind_is_refused(self) -> None:
        made = engine("a")
        made.filter(pod(), None)
        made.set_silent({"a"})
        assert not isinstance(made.reserve(pod(), "a"), PodGrant)

    def test_what_is_there_stays(self) -> None:
        made = engine("a")
        made.reserve(pod(), "a")
        made.commit("p")
        made.set_silent({"a"})
        assert [grant.node for grant in made.grants()] == ["a"]

    def test_many_nodes(self) -> None:
        made = engine(*(f"n{number}" for number in range(100)))
        made.set_silent({f"n{number}" for number in range(0, 100, 2)})
        assert len(made.filter(pod(), None).feasible) == 50
