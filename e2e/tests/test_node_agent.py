# SPDX-License-Identifier: Apache-2.0
"""The node agent as kubelet's device plugin, on a real kubelet and containerd: pods see their own devices whatever is restarted under them.

The tests bind their pods themselves (grant in the Binding); scheduler and extender have their own tests. The agent runs as a host
service; `test_reboot.py` has power cuts, the chart's tests the DaemonSet.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from e2e.harness.node_agent import AGENT, XPU, Node, ready, until, waiting
from e2e.lab import Lab

ALL = 128
"""Slots of the vendor in `harness/acme.py`."""

CONTAINER_WAITS = 60.0
"""kubelet's second retry of a container that could not start comes after 10 to 15 s, the third as late again."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab.up("node-agent", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES"), gates=("ResourceHealthStatus=true",)) as lab, Node(lab) as own:
        own.prepare()
        own.start()
        own.wait_allocatable(ALL)
        yield own


@pytest.fixture(autouse=True)
def clean(node: Node) -> Iterator[None]:
    """Every test begins with agent, kubelet and slots as they should be, and without pods."""
    yield
    if not node.lab.node.alive("containerd"):
        node.lab.start("containerd")
    if not node.lab.node.alive("kubelet"):
        node.lab.start("kubelet")
    if not node.lab.node.alive(AGENT):
        node.start()
    node.told("acme-sick", "")
    node.clear()
    node.wait_allocatable(ALL)


def test_a_container_sees_the_devices_it_was_granted(node: Node) -> None:
    uid = node.pod("p", ("x0", "x2"))

    seen = node.wait_report("p", uid)

    assert (seen["status"], seen["problems"]) == ("MATCH", [])
    assert seen["env"]["ACME_DEVICES"] == "x0,x2"
    assert {one["id"] for one in seen["limits"]["devices"]} == {"x0", "x2"}


def test_init_container_sidecar_and_app_see_each_their_own(node: Node) -> None:
    uid = node.pod("p", ("x1",), init=("x3",), sidecar=("x2",))

    seen = {name: node.wait_report("p", uid, name) for name in ("init", "sidecar", "main")}

    assert {name: (one["status"], one["env"]["ACME_DEVICES"]) for name, one in seen.items()} == {
        "init": ("MATCH", "x3"),
        "sidecar": ("MATCH", "x2"),
        "main": ("MATCH", "x1"),
    }


def test_a_grant_of_another_pod_is_refused_with_an_event(node: Node) -> None:
    uid = node.pod("p", owner="00000000-0000-0000-0000-000000000000")

    until("refused", lambda: [one for one in node.events("p") if one.startswith("GrantRefused") and "another owner" in one])

    assert node.reports("p", uid) == []


def test_a_pod_bound_without_a_grant_waits_and_says_why(node: Node) -> None:
    from e2e.harness.node_agent import container, pod

    uid = node.create(pod("p", [container("main")]))
    node.bind("p", uid)

    until("waiting", lambda: "has no annotation hami.io/grant" in " ".join(node.events("p")), 40)

    assert node.reports("p", uid) == []


# -- restarts -----------------------------------------------------------------------------------------------------


def test_kubelet_is_killed_and_started_again(node: Node) -> None:
    before = node.pod("before", ("x0",))
    node.wait_running("before")
    seen = node.registrations()

    node.lab.kill("kubelet")
    node.lab.start("kubelet")
    took = node.lab.wait("the agent to register again", lambda: node.registrations() > seen, 20, every=0.02)
    after = node.pod("after", ("x1",))
    node.wait_running("before", "after")

    assert took < 5
    assert node.wait_report("after", after)["status"] == "MATCH"
    assert len(node.reports("before", before)) == 1, "the running pod was not touched"


def test_the_agent_is_killed_and_running_pods_do_not_notice(node: Node) -> None:
    uid = node.pod("p", ("x0",))
    node.wait_running("p")

    node.kill()
    node.wait_allocatable(0)
    assert ready(node.get("p"))
    node.start()
    node.wait_allocatable(ALL)

    other = node.pod("q", ("x1",))
    assert node.wait_report("q", other)["status"] == "MATCH"
    assert len(node.reports("p", uid)) == 1


def test_the_agent_is_restarted_many_times_in_a_row(node: Node) -> None:
    """kubelet 1.37 refuses a socket path for ever that was registered twice too quickly; the agent never uses one twice."""
    for turn in range(8):
        node.kill(signal.SIGKILL if turn % 2 else signal.SIGTERM)
        node.start()
    node.wait_allocatable(ALL)

    uid = node.pod("p", ("x3",))

    assert node.wait_report("p", uid)["status"] == "MATCH"
    assert len([name for name in node.files("/var/lib/kubelet/device-plugins") if name.startswith("hami-")]) == 2, (
        "one socket for each resource, none left over"
    )


def test_a_container_that_dies_while_the_agent_is_away_starts_when_it_is_back(node: Node) -> None:
    uid = node.pod("p", ("x0",))
    node.wait_report("p", uid)

    node.kill()
    until("kubelet noticed", lambda: node.allocatable() == 0)
    node.lab.node.run(["sh", "-c", "kill -TERM $(pidof probe)"])
    words = until("said on the pod", lambda: next((one for one in node.events("p") if "has been stopped" in one), None), CONTAINER_WAITS)
    assert XPU in words or "endpoint" in words
    node.start()
    seen = node.wait_report("p", uid, count=2, seconds=CONTAINER_WAITS)

    assert seen["status"] == "MATCH"


def test_a_pod_that_kubelet_admits_while_the_agent_is_away_is_told_what_to_do(node: Node) -> None:
    """kubelet fails it for good; that is said in its own words, and in ours as soon as the agent is back, once."""
    node.kill()
    time.sleep(0.3)
    node.pod("p", ("x0",))
    failed = until("failed", lambda: (node.get("p")["status"].get("phase") == "Failed" and node.get("p")["status"]) or None)
    assert failed["reason"] == "UnexpectedAdmissionError"
    assert XPU in failed["message"]

    node.start()
    until("told", lambda: [one for one in node.events("p") if one.startswith("NotAdmitted") and "must be created again" in one])
    node.kill()
    node.start()
    time.sleep(2)

    assert len([one for one in node.events("p") if one.startswith("NotAdmitted")]) == 1


def test_containerd_is_killed_and_started_again(node: Node) -> None:
    before = node.pod("before", ("x0",))
    node.wait_running("before")

    node.lab.kill("containerd")
    node.lab.start("containerd")
    after = node.pod("after", ("x1",))
    seen = node.wait_report("after", after, seconds=CONTAINER_WAITS)

    assert seen["status"] == "MATCH"
    assert len(node.reports("before", before)) == 1


def test_the_cdi_directory_disappears_while_pods_run(node: Node) -> None:
    first = node.pod("first", ("x0",))
    node.wait_report("first", first)

    node.lab.node.run(["rm", "-rf", "/run/cdi"])
    second = node.pod("second", ("x1",))
    node.lab.node.run(["sh", "-c", "kill -TERM $(pidof probe)"])

    assert node.wait_report("second", second, seconds=CONTAINER_WAITS)["status"] == "MATCH"
    assert node.wait_report("first", first, count=2, seconds=CONTAINER_WAITS)["status"] == "MATCH"


def test_a_second_agent_waits_for_the_first_one_and_takes_over(node: Node) -> None:
    node.start(wait=False, name="second-agent")
    until("waiting", lambda: "waiting for its end" in node.log.read_text())
    seen = node.registrations()
    uid = node.pod("p", ("x0",))
    assert node.wait_report("p", uid)["status"] == "MATCH"
    assert node.registrations() == seen

    node.kill(signal.SIGTERM)
    took = node.lab.wait("the second agent to be registered", lambda: node.registrations() > seen, 10, every=0.02)
    other = node.pod("q", ("x1",))

    assert took < 3
    assert node.wait_report("q", other)["status"] == "MATCH"
    node.kill(signal.SIGTERM, name="second-agent")


# -- the plugin watcher -------------------------------------------------------------------------------------------


def test_kubelet_finds_the_agent_by_its_plugin_watcher(node: Node) -> None:
    node.kill(signal.SIGTERM)
    node.wait_allocatable(0)
    node.start("--register-by", "watcher")
    node.wait_allocatable(ALL)
    first = node.pod("first", ("x0",))
    assert node.wait_report("first", first)["status"] == "MATCH"

    seen = node.registrations()
    node.lab.kill("kubelet")
    node.lab.start("kubelet")
    until("found again", lambda: node.registrations() > seen)
    node.kill()
    node.start("--register-by", "watcher")
    node.wait_allocatable(ALL)
    second = node.pod("second", ("x1",))

    assert node.wait_report("second", second)["status"] == "MATCH"
    assert not [name for name in node.files("/var/lib/kubelet/device-plugins") if name.startswith("hami-")]
    node.kill(signal.SIGTERM)


# -- health -------------------------------------------------------------------------------------------------------


def test_the_health_of_a_device_is_shown_in_the_status_of_its_pods(node: Node) -> None:
    node.pod("on-x1", ("x1",))
    node.pod("on-x0", ("x0",))
    node.wait_running("on-x1", "on-x0")

    def health(name: str) -> set[str]:
        (one,) = node.get(name)["status"]["containerStatuses"]
        return {each["health"] for row in one.get("allocatedResourcesStatus") or () for each in row["resources"] if row["name"] == XPU}

    until("healthy at first", lambda: health("on-x1") == {"Healthy"} and health("on-x0") == {"Healthy"})
    node.told("acme-sick", "x1")
    until("unhealthy", lambda: health("on-x1") == {"Unhealthy"})
    assert health("on-x0") == {"Healthy"}, "a pod on a healthy device is not blamed"
    node.wait_allocatable(ALL * 3 // 4)
    node.told("acme-sick", "")

    until("well again", lambda: health("on-x1") == {"Healthy"})


# -- what the node must be able to do -----------------------------------------------------------------------------


def test_a_runtime_without_cdi_is_found_out_and_nothing_more_is_given_away() -> None:
    with Lab.up("no-cdi", kubernetes=os.environ.get("HAMI_E2E_KUBERNETES"), cdi=False) as lab, Node(lab) as node:
        node.prepare()
        node.start()
        node.wait_allocatable(ALL)
        uid = node.pod("p", ("x0",))

        (said,) = until("said on the pod", lambda: [one for one in node.events("p") if one.startswith("CdiNotApplied")])

        assert "enable_cdi = true" in said
        assert "enable_cdi = true" in node.log.read_text()
        node.wait_allocatable(0)
        assert "CDI" in waiting(node.get("p"))
        assert node.reports("p", uid) == []
