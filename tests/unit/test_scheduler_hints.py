# SPDX-License-Identifier: Apache-2.0
"""Which waiting pods are told to try again, and the agent's sign of life."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from hami_framework.deviceplugin.ports import Json
from hami_framework.deviceplugin.sign_of_life import SignOfLife
from hami_framework.errors import Unavailable
from hami_framework.model import PodRequest
from hami_framework.scheduler.hints import MOST_UNANSWERED, UNANSWERED_SECONDS, condition, worth_telling
from hami_framework.scheduler.waiting import Waiting, WaitingPods


def request(uid: str, priority: int = 0) -> PodRequest:
    return PodRequest(uid=uid, namespace="d", name=uid, containers=(), priority=priority)


def told(pods: Iterable[Waiting], fit: set[str], *, freed_at: float = 100.0, now: float = 101.0) -> list[str]:
    return [pod.request.uid for pod in worth_telling(pods, lambda eligible: fit & {pod.request.uid for pod in eligible}, freed_at, now)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["a"]),
        ({"asked_at": 100.5}, []),
        ({"hinted_at": 101.0 - UNANSWERED_SECONDS / 2, "hints": 1}, []),
        ({"hinted_at": 101.0 - UNANSWERED_SECONDS, "hints": 1}, ["a"]),
        ({"hinted_at": 0.0, "hints": MOST_UNANSWERED}, []),
    ],
    ids=["refused before", "asked about since", "told lately", "told long ago", "told in vain too often"],
)
def test_who_is_told(changes: dict[str, Any], expected: list[str]) -> None:
    assert told([Waiting(request("a"), **{"asked_at": 50.0, **changes})], {"a"}) == expected


def test_who_does_not_fit_is_not_told() -> None:
    assert told([Waiting(request("a"), 0.0), Waiting(request("b"), 0.0)], {"b"}) == ["b"]


def test_waiting_pods_come_by_priority_and_then_by_how_long_they_wait() -> None:
    pods = WaitingPods()
    for number, (uid, priority) in enumerate([("old", 1), ("high", 5), ("young", 1), ("old", 1)]):
        pods.refused(request(uid, priority), {"spec": {}}, float(number))
    assert [pod.request.uid for pod in pods] == ["high", "old", "young"]
    pods.done("high")
    assert [pod.request.uid for pod in pods] == ["old", "young"]


def test_the_patch_is_for_this_very_pod() -> None:
    assert condition("u", "why")["metadata"] == {"uid": "u"}


class FakeLeases:
    """Leases with the rule of resourceVersions."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.reads = 0

    async def lease(self, name: str) -> Json | None:
        self.reads += 1
        return self.stored

    async def write_lease(self, body: Json) -> Json:
        known = body["metadata"].get("resourceVersion")
        if known != (self.stored or {"metadata": {}})["metadata"].get("resourceVersion"):
            raise Unavailable("conflict")
        self.stored = {**body, "metadata": {**body["metadata"], "resourceVersion": str(int(known or 0) + 1)}}
        return self.stored


async def test_a_sign_costs_one_write_and_is_emptied_at_the_end() -> None:
    leases = FakeLeases()
    sign = SignOfLife("n", leases)
    for _ in range(3):
        await sign._write("n")
    assert leases.stored is not None
    assert (leases.reads, leases.stored["spec"]["holderIdentity"], leases.stored["metadata"]["labels"]) == (1, "n", {"hami.io/sign-of-life": "true"})
    await sign.stop()
    assert leases.stored["spec"]["holderIdentity"] == ""
    await sign._write("n")
    assert leases.stored["spec"]["holderIdentity"] == ""


async def test_after_somebody_elses_write_it_is_read_again() -> None:
    leases = FakeLeases()
    sign = SignOfLife("n", leases)
    await sign._write("n")
    assert leases.stored is not None
    leases.stored["metadata"] = {**leases.stored["metadata"], "resourceVersion": "77"}
    leases.stored = dict(leases.stored)
    sign._lease = {"metadata": {"name": "node-n", "resourceVersion": "1"}}
    with pytest.raises(Unavailable):
        await sign._write("n")
    await sign._write("n")
    assert leases.stored["metadata"]["resourceVersion"] == "78"
