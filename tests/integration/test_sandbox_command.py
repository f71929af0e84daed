# SPDX-License-Identifier: Apache-2.0
"""Sandbox pods with a `command`: real processes that see exactly their container's edits."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec import inventories
from hami_framework.local import ledger
from hami_framework.model import ContainerGrant, DeviceGrant, Inventory, Machine, Owner, PodGrant, whole
from hami_framework.plugins import load_registry
from hami_framework.sandbox.cluster import INVENTORIES, Cluster
from hami_framework.sandbox.nodes import parse_nodes
from hami_framework.sandbox.resources import PODS

ACME = Path(__file__).parents[2] / "examples" / "vendor-acme" / "hami_acme" / "__init__.py"
Json = dict[str, Any]

pytestmark = [pytest.mark.xdist_group("sandbox"), pytest.mark.timeout(90)]


def no_libraries(machine: Machine) -> Path:
    assert not machine.libraries
    return Path("/nonexistent")


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    nodes = parse_nodes({"nodes": [{"name": "a", "machine": "acme-box"}]}, load_registry([], [ACME]).machines())
    async with Cluster(nodes, build=no_libraries, plugin_files=[ACME], allow=["acme"]) as cluster:
        yield cluster


def create(cluster: Cluster, name: str, script: str, *, grace: int = 2, policy: str = "Never", **container: Any) -> None:
    given = {"name": "c", "command": ["sh", "-c", script], "resources": {"limits": {"acme.example/xpu": 1, "acme.example/xpumem": 1000}}, **container}
    spec = {"restartPolicy": policy, "terminationGracePeriodSeconds": grace, "containers": [given]}
    cluster.server.operations.create(PODS, "default", {"metadata": {"name": name}, "spec": spec})


async def until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    for _ in range(int(seconds / 0.05)):
        if found := condition():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def status(cluster: Cluster, name: str) -> Json:
    found: Json = cluster.server.store.get(PODS, "default", name)["status"]
    return found


def container(cluster: Cluster, name: str) -> Json:
    return next(view for view in cluster.containers() if view["pod"] == name)


def published(cluster: Cluster, node: str) -> Inventory:
    return inventories.from_object(cluster.server.store.get(INVENTORIES, "", node))


async def printed(cluster: Cluster, name: str, phase: str) -> str:
    await until(lambda: status(cluster, name)["phase"] == phase, f"{name} {phase}: {status(cluster, name)}")
    return Path(container(cluster, name)["log"]).read_text()


async def test_a_program_sees_its_edits_and_nothing_can_be_written_that_is_read_only(cluster: Cluster) -> None:
    script = (
        'cat /run/hami/limits.json; echo; echo "$HAMI_GRANT"; echo $MINE; echo "$0 $1"; pwd; echo forged > /run/hami/limits.json || echo refused; '
        "ls /dev/xpu0 2>&1 | tail -1; echo done"
    )
    create(cluster, "sees", script, args=["word", "$(MINE)"], workingDir="/usr", env=[{"name": "MINE", "value": "mine"}])
    lines = (await printed(cluster, "sees", "Succeeded")).splitlines()
    view = container(cluster, "sees")
    limits = json.loads(lines[0])
    assert [device["vendor"] for device in limits["devices"]] == ["acme"]
    assert lines[1:5] == [f"{view['podUID']}/c", "mine", "word mine", "/usr"]
    assert "Read-only file system" in lines[5]
    assert lines[6] == "refused"
    assert "No such file" in lines[7]
    assert lines[8] == "done"
    assert not Path("/run/hami/limits.json").exists()
    ended = status(cluster, "sees")["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (0, "Completed")


async def test_the_exit_status_and_the_restart_policy_are_the_programs(cluster: Cluster) -> None:
    create(cluster, "fails", "exit 7")
    create(cluster, "killed", "kill -9 $$$$")
    create(cluster, "again", "echo attempt; exit 3", policy="OnFailure")
    create(cluster, "absent", "", command=["/no/such/program"])
    await printed(cluster, "fails", "Failed")
    assert status(cluster, "fails")["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 7
    await printed(cluster, "killed", "Failed")
    assert status(cluster, "killed")["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    await until(lambda: status(cluster, "again")["containerStatuses"][0]["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff", "a back-off")
    await until(lambda: container(cluster, "again")["attempt"] >= 2, "a third attempt")
    assert Path(container(cluster, "again")["log"]).read_text().splitlines()[:3] == ["attempt"] * 3
    waiting = await until(lambda: status(cluster, "absent")["containerStatuses"][0]["state"].get("waiting"), "a refusal")
    await until(lambda: status(cluster, "absent")["containerStatuses"][0]["state"].get("waiting", {}).get("reason") == "RunContainerError", f"{waiting}")
    assert "'/no/such/program'" in status(cluster, "absent")["containerStatuses"][0]["state"]["waiting"]["message"]


async def test_deletion_says_sigterm_first_and_leaves_nothing(cluster: Cluster) -> None:
    create(cluster, "polite", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    create(cluster, "deaf", "trap '' TERM; sleep 1000 & echo up; while :; do sleep 0.05; done", grace=1)
    for name in ("polite", "deaf"):
        await until(lambda name=name: status(cluster, name).get("phase") == "Running", f"{name} running")  # type: ignore[misc]
        await until(lambda name=name: "up" in Path(container(cluster, name)["log"]).read_text(), f"{name} up")  # type: ignore[misc]
    views = {name: container(cluster, name) for name in ("polite", "deaf")}
    for name in views:
        cluster.server.operations.delete(PODS, "default", name)
    await until(lambda: not cluster.containers(), "both gone")
    assert Path(views["polite"]["log"]).read_text() == "up\nbye\n"
    for view in views.values():
        assert not Path(f"/proc/{view['pid']}").exists()
        assert not _in_session(view["pid"])


def _in_session(session: int) -> list[str]:
    """Processes of a session that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
async def test_a_user_of_its_own_and_a_read_only_root(cluster: Cluster) -> None:
    script = (
        "id -u; id -g; touch /run/hami/here 2>/dev/null || echo no; touch /usr/here 2>/dev/null || echo no; "
        "cat /run/hami/limits.json | head -c 1; ls / > /dev/null && echo yes"
    )
    create(cluster, "user", script, securityContext={"runAsUser": 12345, "runAsGroup": 54321})
    create(cluster, "frozen", "touch /usr/here 2>&1 | tail -1; touch /tmp/here 2>&1 | tail -1; true", securityContext={"readOnlyRootFilesystem": True})
    assert (await printed(cluster, "user", "Succeeded")).split() == ["12345", "54321", "no", "no", "{yes"]
    assert (await printed(cluster, "frozen", "Succeeded")).count("Read-only file system") == 2


async def test_what_a_local_run_holds_on_a_node_is_not_given_to_pods(cluster: Cluster) -> None:
    node = cluster.node("a")
    devices = published(cluster, "a").devices
    held = tuple(
        DeviceGrant(device_id=device.id, device_name=device.name, vendor="acme", resource="acme.example/xpu", offer=whole(1 << 30)) for device in devices
    )
    grant = PodGrant(owner=Owner(kind="local", uid="local-1"), node="x", containers=(ContainerGrant(container="main", devices=held),))
    ticks = ledger.start_ticks(os.getpid())
    assert ticks is not None
    record = ledger.LocalGrant(
        grant=grant, pid=os.getpid(), start_ticks=ticks, boot=ledger.boot_id(), at=1.0, command=("x",), level="soft", directory=str(node.directory)
    )
    state = node.directory / "s"
    with ledger.locked(state):
        ledger.write(state, record)
    await until(lambda: published(cluster, "a").held, "the run being published")
    create(cluster, "waits", "true")
    await until(lambda: any(one.get("reason") == "Unschedulable" for one in status(cluster, "waits").get("conditions", ())), "being refused")
    ledger.remove(state, record)
    await printed(cluster, "waits", "Succeeded")


async def test_without_a_command_nothing_runs(cluster: Cluster) -> None:
    spec = {"containers": [{"name": "c", "resources": {"limits": {"acme.example/xpu": 1}}, "args": ["x"]}], "terminationGracePeriodSeconds": 1}
    cluster.server.operations.create(PODS, "default", {"metadata": {"name": "plain"}, "spec": spec})
    await until(lambda: status(cluster, "plain").get("phase") == "Running", "plain running")
    view = container(cluster, "plain")
    assert (view["pid"], view["log"], view["command"]) == (None, None, [])


async def test_two_real_programs_share_a_device_and_only_the_greedy_one_is_refused() -> None:
    """The demo's act by itself, where the interceptor library and the fake driver have been built."""
    from hami_framework.cli.demo_limits import LimitsAct
    from hami_framework.kube import credentials
    from hami_framework.kube.client import KubeClient
    from hami_framework.testing.fakes import build_libraries

    registry = load_registry(["nvidia"])
    machines = registry.machines()
    libraries = await asyncio.to_thread(build_libraries, machines["dgx-a100-40g"][1])
    if not (libraries / "libcuda.so.1").exists():
        pytest.fail("the fake CUDA driver was not built: is the interceptor SDK installed? `make venv` does it")
    examples = Path(__file__).parents[2] / "examples" / "demo"
    nodes = parse_nodes({"nodes": [{"name": "dgx-1", "machine": "dgx-a100-40g"}]}, machines)
    async with Cluster(nodes, build=build_libraries, allow=["nvidia"], registry=registry) as cluster:
        client = KubeClient(credentials.load(str(cluster.kubeconfig)))
        try:
            findings = await LimitsAct(cluster, client, examples).play()
        finally:
            client.close()
    assert [finding.what for finding in findings if not finding.holds] == []
    assert len(findings) == 3
