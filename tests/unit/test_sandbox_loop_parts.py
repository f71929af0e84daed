# SPDX-License-Identifier: Apache-2.0
"""The scheduling loop's parts: in-tree filters, the queue, the preemption dry run, and the files nodes are made from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hami_framework.errors import ConfigError
from hami_framework.model import Machine
from hami_framework.sandbox import preemption
from hami_framework.sandbox.fit import CORDONED, SELECTOR, NodeState, check, requests
from hami_framework.sandbox.machine_file import MachineFile
from hami_framework.sandbox.nodes import load_nodes, parse_nodes
from hami_framework.sandbox.pod_queue import Backoff, SchedulingQueue, Waiting

Json = dict[str, Any]


def node(name: str = "n", allocatable: Json | None = None, labels: Json | None = None, **spec: Any) -> NodeState:
    return NodeState(
        {"metadata": {"name": name, "labels": labels or {}}, "spec": spec, "status": {"allocatable": {"cpu": "4", "pods": "10", **(allocatable or {})}}}
    )


def container(**given: Any) -> Json:
    return {"name": "c", "resources": {"requests": {key.replace("_", "/"): value for key, value in given.items()}}}


def pod(name: str = "p", *containers: Json, **spec: Any) -> Json:
    metadata = {"name": name, "uid": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "spec": {"containers": list(containers) or [container(cpu="1")], **spec}}


def test_a_pod_needs_the_largest_of_its_start_up_phases() -> None:
    """KEP-753: init containers beside earlier sidecars, then all sidecars with the app containers."""
    sidecar = {**container(cpu="1", x_gpu="1"), "restartPolicy": "Always"}
    wanted = requests(pod("p", container(cpu="2"), container(cpu="1"), initContainers=[container(cpu="9"), sidecar, container(cpu="3", x_gpu="4")]))
    assert wanted == {"cpu": 9, "x/gpu": 5}


FITS: list[tuple[str, Json, NodeState, tuple[str, ...] | None]] = [
    ("fits", pod(), node(), None),
    ("cpu", pod("p", container(cpu="5")), node(), ("Insufficient cpu",)),
    ("extended resource nobody has", pod("p", container(x_gpu="1")), node(), ("Insufficient x/gpu",)),
    ("extended resource ignored", pod("p", container(x_mem="4k")), node(), None),
    ("pods", pod(), node(allocatable={"pods": "0"}), ("Too many pods",)),
    ("selector", pod(nodeSelector={"zone": "a"}), node(labels={"zone": "b"}), (SELECTOR,)),
    ("cordon", pod(), node(unschedulable=True), (CORDONED,)),
    ("taint", pod(), node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]), ("node(s) had untolerated taint {k: v}",)),
    ("soft taint", pod(), node(taints=[{"key": "k", "effect": "PreferNoSchedule"}]), None),
    ("tolerated", pod(tolerations=[{"key": "k", "operator": "Equal", "value": "v"}]), node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]), None),
    ("tolerates all", pod(tolerations=[{"operator": "Exists"}]), node(taints=[{"key": "k", "value": "v", "effect": "NoExecute"}]), None),
    (
        "affinity",
        pod(
            affinity={
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "g", "operator": "Gt", "values": ["3"]}]}]
                    }
                }
            }
        ),
        node(labels={"g": "4"}),
        None,
    ),
]


@pytest.mark.parametrize(("wish", "state", "reasons"), [row[1:] for row in FITS], ids=[row[0] for row in FITS])
def test_in_tree_filters(wish: Json, state: NodeState, reasons: tuple[str, ...] | None) -> None:
    verdict = check(wish, requests(wish), state, frozenset({"x/mem"}))
    assert (verdict.reasons if verdict else None) == reasons


def test_pods_on_a_node_and_nominated_ones_use_it_up() -> None:
    state = node()
    state.add(pod("a", container(cpu="3")))
    state.nominated["b"] = pod("b", container(cpu="1"), priority=5)
    wish = pod("c", container(cpu="1"))
    assert check(wish, requests(wish), state, frozenset()) is not None
    vip = pod("d", container(cpu="1"), priority=9)
    assert check(vip, requests(vip), state, frozenset()) is None
    state.remove("a")
    assert check(wish, requests(wish), state, frozenset()) is None


def test_preemption_takes_the_least_important_and_no_more_than_needed() -> None:
    full, other, equal = node("full"), node("other"), node("equal")
    for name, cpu, priority in (("low", "2", 1), ("mid", "1", 2), ("high", "1", 3)):
        full.add(pod(name, container(cpu=cpu), priority=priority))
    other.add(pod("precious", container(cpu="4"), priority=4))
    equal.add(pod("same", container(cpu="4"), priority=5))
    wish = pod("vip", container(cpu="2"), priority=5)
    victims = preemption.candidates(wish, requests(wish), [full, other, equal], frozenset())
    assert victims == {"full": ["low"], "other": ["precious"]}
    assert preemption.best(victims, {"full": full, "other": other}) == "full"


async def test_the_queue_serves_priority_first_and_age_among_equals() -> None:
    queue = SchedulingQueue(Backoff(first=0.01, longest=0.02, flush=10))
    for name, priority in (("old", 0), ("young", 0), ("vip", 9)):
        queue.add(Waiting(name, "default", name, priority))
    assert [(await queue.take())[0].uid for _ in range(3)] == ["vip", "old", "young"]


async def test_an_unschedulable_pod_waits_for_a_change_and_one_that_missed_it_does_not() -> None:
    queue = SchedulingQueue(Backoff(first=0.01, longest=0.02, flush=10))
    queue.add(Waiting("a", "default", "a", 0))
    taken, moves = await queue.take()
    queue.failed(taken, moves, retry=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.05)
    queue.move_all()
    again, moves = await asyncio.wait_for(queue.take(), 1)
    assert (again.uid, again.attempts) == ("a", 2)
    queue.move_all()  # during the cycle
    queue.failed(again, moves, retry=False)
    assert (await asyncio.wait_for(queue.take(), 1))[0].uid == "a"


async def test_a_forgotten_pod_is_never_served_and_a_stuck_one_is_flushed() -> None:
    queue = SchedulingQueue(Backoff(first=0.01, longest=0.02, flush=0.05))
    for name in ("gone", "stuck"):
        queue.add(Waiting(name, "default", name, 0))
    queue.forget("gone")
    taken, moves = await queue.take()
    assert taken.uid == "stuck"
    queue.failed(taken, moves, retry=False)
    assert (await asyncio.wait_for(queue.take(), 1))[0].uid == "stuck"


def test_backoff_doubles_up_to_its_longest() -> None:
    """kube-scheduler: podInitialBackoffSeconds 1, podMaxBackoffSeconds 10."""
    assert [Backoff().seconds(attempts) for attempts in range(1, 7)] == [1, 2, 4, 8, 10, 10]


MACHINES = {
    "box-a": ("one", Machine(name="box-a", description="", state="[device 0]\nhealth = ok\n")),
    "box-b": ("two", Machine(name="box-b", description="", state="")),
}


def test_a_node_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.ini").write_text("[device 0]\nuuid = U\n")
    file = tmp_path / "nodes.yaml"
    file.write_text("nodes: [{name: a, machine: [box-a, box-b], cpu: 8, taints: [{key: k}]}, {name: b, machine: ./mine.ini, vendor: one}, {name: c}]")
    first, second, third = load_nodes(file, MACHINES)
    assert [placed.machine.name for placed in first.machines] == ["box-a", "box-b"]
    assert (first.cpu, first.taints) == ("8", ({"key": "k", "effect": "NoSchedule"},))
    assert second.machines[0].machine.state == "[device 0]\nuuid = U\n"
    assert third.machines == ()


WRONG_FILES = [
    ({"nodes": [{"name": "a", "machine": "box-aa"}]}, "did you mean 'box-a'"),
    ({"nodes": [{"name": "a", "machine": "dgx"}]}, "Known: box-a, box-b"),
    ({"nodes": [{"name": "a", "machin": "box-a"}]}, "nodes.0.machin"),
    ({"nodes": [{"name": "A_B"}]}, "lower-case"),
    ({"nodes": [{"name": "a"}, {"name": "a"}]}, "two nodes are called a"),
    ({"nodes": [{"name": "a", "machine": ["box-a", "box-a"]}]}, "two machines of vendor one"),
    ({"nodes": [{"name": "a", "machine": "./x.ini"}]}, "name one of one, two"),
    ({"nodes": [{"name": "a", "machine": "./x.ini", "vendor": "one"}]}, "cannot be read"),
    ({"nodes": [{"name": "a", "cpu": "many"}]}, "not a quantity"),
    ({"nodes": []}, "nodes"),
    ([], "write `nodes:`"),
]


@pytest.mark.parametrize(("data", "said"), WRONG_FILES)
def test_a_wrong_node_file_is_explained(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as wrong:
        parse_nodes(data, MACHINES, tmp_path / "nodes.yaml")
    assert said in str(wrong.value)


MACHINE_FILE = """# a machine
[machine]
driver = 1.2
[device 0]   # the first
uuid = GPU-a
health = ok  # or lost
[device 1]
uuid = GPU-b
"""


def test_a_device_fails_by_one_line_of_its_machine_file(tmp_path: Path) -> None:
    file = MachineFile(tmp_path / "m.ini")
    file.path.write_text(MACHINE_FILE)
    before = file.path.stat().st_ino
    assert file.find(["gpu-A"], 7) == "device 0"
    assert file.find(["unheard of"], 1) == "device 1"
    assert file.find(["unheard of"], 7) is None
    file.set("device 0", {"health": "lost"})
    assert file.path.stat().st_ino != before, "the fake must never read half a file"
    file.set("device 1", {"health": "ecc", "busy": "40"})
    sections = file.sections()
    assert sections["machine"] == {"driver": "1.2"}
    assert sections["device 0"] == {"uuid": "GPU-a", "health": "lost"}
    assert sections["device 1"] == {"uuid": "GPU-b", "health": "ecc", "busy": "40"}
    assert file.path.read_text().startswith("# a machine\n")
    with pytest.raises(ConfigError, match="device 1"):
        file.set("device 9", {"health": "ok"})
