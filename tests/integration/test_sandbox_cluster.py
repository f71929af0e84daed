# SPDX-License-Identifier: Apache-2.0
"""A whole sandbox with an outside vendor: the product's own agents and extender as processes, killed on the way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant
from hami_framework.errors import ConfigError
from hami_framework.model import Machine
from hami_framework.plugins import load_registry
from hami_framework.sandbox.children import Child, environment
from hami_framework.sandbox.cluster import INVENTORIES, Cluster
from hami_framework.sandbox.nodes import parse_nodes
from hami_framework.sandbox.resources import JOBS, NODES, PODS

ACME = Path(__file__).parents[2] / "examples" / "vendor-acme" / "hami_acme" / "__init__.py"
Json = dict[str, Any]


def no_libraries(machine: Machine) -> Path:
    assert not machine.libraries
    return Path("/nonexistent")


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    names = {"nodes": [{"name": "a", "machine": "acme-box"}, {"name": "b", "machine": "acme-box"}, {"name": "plain"}]}
    nodes = parse_nodes(names, load_registry([], [ACME]).machines())
    async with Cluster(nodes, build=no_libraries, plugin_files=[ACME], allow=["acme"]) as cluster:
        yield cluster


def pod(name: str, limits: Json) -> Json:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}], "terminationGracePeriodSeconds": 1}}


async def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def phase(cluster: Cluster, name: str) -> str | None:
    found = cluster.server.store.find(PODS, "default", name)
    return found["status"]["phase"] if found else None


async def call(url: str, body: Json | None = None) -> Any:
    def fetch() -> Any:
        with urllib.request.urlopen(urllib.request.Request(url, data=json.dumps(body).encode() if body is not None else None), timeout=10) as answer:
            return json.loads(answer.read())

    return await asyncio.to_thread(fetch)


async def test_pods_get_their_own_grant_whatever_dies_on_the_way(cluster: Cluster) -> None:
    operations, pids = cluster.server.operations, [cluster.extender.pid if cluster.extender else None]
    for number in range(3):
        operations.create(PODS, "default", pod(f"share-{number}", {"acme.example/xpu": 1, "acme.example/xpumem": 3000 + 64 * number}))
    operations.create(PODS, "default", pod("neutral", {"hami.io/memory-mib": "2Gi"}))
    operations.create(PODS, "default", pod("never", {"acme.example/xpu": 1, "acme.example/xpumem": 99_999_999}))
    names = ("share-0", "share-1", "share-2", "neutral")
    await until(lambda: all(phase(cluster, name) == "Running" for name in names), "all pods running")
    containers = {view["pod"]: view for view in cluster.containers()}
    for name in names:
        held = cluster.server.store.get(PODS, "default", name)
        grant = decode_grant(held["metadata"]["annotations"][GRANT_ANNOTATION])
        device = grant.containers[0].devices[0]
        assert grant.node == held["spec"]["nodeName"] == containers[name]["node"]
        assert containers[name]["env"]["ACME_QUOTA_MIB"] == f"{device.device_id}:{device.offer.cost.memory_bytes >> 20}"
    assert phase(cluster, "never") == "Pending"

    assert cluster.kill_agent("a") is not None
    assert cluster.kill_extender() == pids[0]
    await cluster.restart_kubelet("b")
    operations.create(PODS, "default", pod("after", {"acme.example/xpu": 1, "acme.example/xpumem": 1000}))
    await until(lambda: phase(cluster, "after") == "Running", "a pod after all the killing")


async def test_a_device_fails_and_recovers_and_people_can_look(cluster: Cluster) -> None:
    def healthy() -> str:
        node = cluster.server.store.get(NODES, "", "b")
        return str(node["status"]["allocatable"]["acme.example/xpu"])

    def inventory() -> list[str]:
        return [device.get("health", {}).get("state", "healthy") for device in cluster.server.store.get(INVENTORIES, "", "b")["spec"]["devices"]]

    all_well = healthy()
    url = cluster.server.url
    assert (await call(f"{url}/sandbox/nodes/b/devices/acme%2F0", {"health": "fell off"}))["device"] == "XPU-0A1"
    await until(lambda: healthy() != all_well and inventory() == ["unhealthy", "healthy"], "the failure being seen")
    cluster.recover_device("b", "XPU-0A1")
    await until(lambda: healthy() == all_well and inventory() == ["healthy", "healthy"], "the recovery being seen")
    info = await call(f"{url}/sandbox/info")
    assert (info["waitingFor"], info["pid"]) == ([], os.getpid())
    assert [node["name"] for node in await call(f"{url}/sandbox/nodes")] == ["a", "b", "plain"]
    with pytest.raises(ConfigError, match="XPU-0B2"):
        cluster.fail_device("b", "nothing of the sort")
    with pytest.raises(ConfigError, match="a, b, plain"):
        cluster.kill_agent("elsewhere")


SERVED = """
import asyncio, sys
from pathlib import Path
from hami_framework.sandbox.cluster import Cluster
from hami_framework.sandbox.nodes import NodeSpec

async def main():
    async with Cluster([NodeSpec(name="plain")], build=lambda machine: Path("/"), plugin_files=[Path(sys.argv[1])], allow=["acme"]) as cluster:
        print(cluster.directory, cluster.extender.pid, cluster.nodes["plain"].agent.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_sigterm_takes_everything_down() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVED, str(ACME), stdout=pipe, stderr=pipe, env=environment())
    assert process.stdout is not None
    directory, *pids = (await process.stdout.readline()).decode().split()
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 20)
    assert not Path(directory).exists()
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


async def test_jobs_run_to_their_end(cluster: Cluster) -> None:
    template = {"metadata": {"annotations": {"sandbox.hami.io/run-seconds": "0.1"}}, "spec": pod("x", {"hami.io/accelerator": 1})["spec"]}
    cluster.server.operations.create(JOBS, "default", {"metadata": {"name": "j"}, "spec": {"template": template}})
    await until(lambda: cluster.server.store.get(JOBS, "default", "j").get("status", {}).get("succeeded") == 1, "the job's end")


async def test_a_child_is_started_again_and_never_left_behind(tmp_path: Path) -> None:
    child = Child("sleeper", "http.server", ["0", "--bind", "127.0.0.1"], tmp_path / "log", restart_s=0.01)
    await child.start()
    first = child.kill()
    await until(lambda: child.pid not in (None, first), "the restart")
    second = child.pid
    await child.stop()
    assert child.pid is None
    assert second is not None
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


async def test_children_die_with_us(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from hami_framework.sandbox.children import Child\n"
        "async def main():\n"
        "    child = Child('c', 'http.server', ['0', '--bind', '127.0.0.1'], Path(sys.argv[1]) / 'log'); await child.start(); print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(tmp_path), stdout=asyncio.subprocess.PIPE, env=environment())
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    await asyncio.sleep(0.3)  # the tether sets its death signal first thing
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes(), "the child's death", 5)
