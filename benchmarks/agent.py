# SPDX-License-Identifier: Apache-2.0
"""The node agent: time to the first registration, memory, and a burst of pods on one node.

`python -m benchmarks.agent [--pods 40] [--json]`. The agent is the real process, with a one-file vendor; API server and
kubelet are the sandbox's. Budgets (design): ≤ 0.3 s to the first registration, ≤ 45 MB resident.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hami_framework.codec import inventories
from hami_framework.codec.grants import GRANT_ANNOTATION, encode_grant
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.credentials import Credentials
from hami_framework.model import ContainerGrant, DeviceGrant, Owner, PodGrant, share
from hami_framework.sandbox.apiserver import ApiServer
from hami_framework.sandbox.kubelet.node import KubeletDouble
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.kubelet.paths import KubeletPaths

NODE = "bench"
RESOURCE = "acme.com/xpu"
DEVICES = 8
BUDGET = {"registration_s": 0.3, "rss_mb": 45.0}

AGENT_ENVIRONMENT = {"PYTHONOPTIMIZE": "2", "MALLOC_ARENA_MAX": "1"}
"""As `docs/agent.md` advises for a node: no docstrings in memory, one heap for all threads."""

VENDOR = f"""
from hami_framework import Capacity, ContainerEdits, Device, DeviceClass, ResourceNames, hookimpl
HAMI_SPEC_VERSION = "1"
CLASS = DeviceClass(model="Xpu", capacity=Capacity(memory_bytes=80 * 2**30, shares=10))

@hookimpl
def hami_resources():
    return ResourceNames(count="{RESOURCE}")

@hookimpl
def hami_discover(host):
    return [Device(id=f"x{{n}}", index=n, device_class=CLASS) for n in range({DEVICES})]

@hookimpl
def hami_allocate(grant, devices):
    return ContainerEdits(env={{"ACME_DEVICES": ",".join(d.id for d in devices)}})
"""

KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{{name: bench, cluster: {{server: "{url}"}}}}]
users: [{{name: bench, user: {{}}}}]
contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]
current-context: bench
"""


async def measure(pods: int) -> dict[str, Any]:
    """All figures, with the budgets beside them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        api = ApiServer(definitions=(inventories.CRD,))
        await api.start()
        paths = KubeletPaths(
            plugin_dir=directory / "k" / "device-plugins", pod_resources_socket=directory / "k" / "pr.sock", cdi_dirs=(directory / "cdi",),
            root=directory / "root", real_dirs=(directory / "state",),
        )  # fmt: skip
        kubelet = KubeletDouble(NODE, api.url, paths, options=KubeletOptions(time_scale=0.1))
        await kubelet.start()
        try:
            return await _with_agent(directory, api, kubelet, pods)
        finally:
            await kubelet.stop()
            await api.stop()


async def _with_agent(directory: Path, api: ApiServer, kubelet: KubeletDouble, pods: int) -> dict[str, Any]:
    (directory / "acme.py").write_text(VENDOR)
    (directory / "kubeconfig").write_text(KUBECONFIG.format(url=api.url))
    options = {
        "--node": NODE,
        "--kubeconfig": directory / "kubeconfig",
        "--kubelet-dir": directory / "k",
        "--pod-resources-socket": directory / "k" / "pr.sock",
        "--cdi-dir": directory / "cdi",
        "--state-dir": directory / "state",
        "--root": directory / "root",
        "--plugin": directory / "acme.py",
        "--allow": "acme",
    }
    command = [sys.executable, "-m", "hami_framework.deviceplugin", *(str(part) for option in options.items() for part in option)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= AGENT_ENVIRONMENT
    environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "hami-bench-pycache")
    for warm in (False, True):  # the first start compiles; an installed package is compiled
        started = time.monotonic()
        with (directory / "agent.log").open("wb") as log:
            agent = await asyncio.create_subprocess_exec(*command, env=environment, stderr=log)
        registration_s = await _until(lambda: b"registered" in (directory / "agent.log").read_bytes(), started)
        all_registered_s = await _until(lambda: kubelet.registered().get(RESOURCE), started)
        if not warm:
            agent.terminate()
            await agent.wait()
            await _until(lambda: not any(kubelet.registered().values()), time.monotonic())
            await kubelet.restart()
    await asyncio.sleep(2.0)
    idle_mb = _rss_mb(agent.pid)
    burst = await _burst(api, kubelet, pods)
    result = {
        "registration_s": round(registration_s, 3),
        "all_resources_s": round(all_registered_s, 3),
        "rss_idle_mb": idle_mb,
        "rss_mb": _rss_mb(agent.pid),
        **burst,
        "budget": BUDGET,
    }
    agent.terminate()
    await agent.wait()
    return result


async def _burst(api: ApiServer, kubelet: KubeletDouble, pods: int) -> dict[str, Any]:
    """Bind all pods at once; how long until each runs, and whose edits each sees."""
    client = KubeClient(Credentials(server=api.url))
    views: list[dict[str, Any]] = []
    ready: list[float] = []
    began = time.monotonic()

    def on_start(view: dict[str, Any]) -> None:
        views.append(view)
        ready.append(time.monotonic() - began)

    kubelet.on_container_start = on_start
    await asyncio.gather(*(_pod(client, number) for number in range(pods)))
    bound_s = time.monotonic() - began
    await _until(lambda: len(views) >= pods, began)
    client.close()
    wrong = sum(view["env"].get("HAMI_GRANT") != f"{view['podUID']}/main" for view in views)
    return {
        "pods": pods,
        "bound_s": round(bound_s, 3),
        "ready_p50_s": round(statistics.median(ready), 3),
        "ready_max_s": round(max(ready), 3),
        "wrong": wrong,
    }


async def _pod(client: KubeClient, number: int) -> None:
    name = f"p{number}"
    spec = {"containers": [{"name": "main", "image": "x", "resources": {"limits": {RESOURCE: "1"}}}]}
    made = await client.call(client.create, path("pods", namespace="default"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    uid = made["metadata"]["uid"]
    device = DeviceGrant(device_id=f"x{number % DEVICES}", device_name=f"acme-x{number % DEVICES}", vendor="acme", resource=RESOURCE, offer=share(2**30, 5))
    owner = Owner(kind="pod", uid=uid, namespace="default", name=name)
    grant = PodGrant(owner=owner, node=NODE, containers=(ContainerGrant(container="main", devices=(device,)),))
    metadata = {"name": name, "uid": uid, "annotations": {GRANT_ANNOTATION: encode_grant(grant)}}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": {"kind": "Node", "name": NODE}}
    await client.call(client.create, path("pods", namespace="default", name=name, subresource="binding"), binding)


async def _until(holds: Callable[[], Any], since: float, seconds: float = 30.0) -> float:
    while not holds():
        if time.monotonic() - since > seconds:
            raise TimeoutError(f"not within {seconds} s; is the machine busy?")
        await asyncio.sleep(0.002)
    return time.monotonic() - since


def _rss_mb(pid: int) -> float:
    """Resident set as `ps` and `top` count it, in units of 2^20 bytes."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent", description="The node agent: start, memory, a burst of pods.")
    parser.add_argument("--pods", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = asyncio.run(measure(options.pods))
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:16} {value}")


if __name__ == "__main__":
    main()
