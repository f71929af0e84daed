# SPDX-License-Identifier: Apache-2.0
"""The extender as the program that is deployed: flags, kubeconfig, a one-file plugin, signals, exit status."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: c, cluster: {{server: "{server}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{token: t}}}}]
"""

PLUGIN = """
from hami_framework import ResourceNames, hookimpl
from hami_framework.model import share, whole

HAMI_SPEC_VERSION = "1"


@hookimpl
def hami_resources():
    return ResourceNames(count="acme.com/xpu", memory="acme.com/xpumem", cores="acme.com/xpucores")


@hookimpl
def hami_partition(device_class, request):
    if request.whole:
        return [whole(device_class.capacity.memory_bytes)]
    return [share(request.memory_bytes or device_class.capacity.memory_bytes, request.core_percent)]
"""


@asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "hami_framework.scheduler", "--port", "0", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def kubeconfig(api: Any, tmp_path: Path) -> str:
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG.format(server=api.url))
    return str(file)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_it_serves_and_stops_in_good_order(api: Any, cluster: Any, kubeconfig: str, tmp_path: Path, number: signal.Signals) -> None:
    cluster.node("n1")
    plugin, settings = tmp_path / "hami_acme.py", tmp_path / "settings.yaml"
    plugin.write_text(PLUGIN)
    settings.write_text("plugins: {allow: []}\nnodes: [{match: 'n*', memoryOvercommit: 2.0}]\n")
    async with program("--kubeconfig", kubeconfig, "--plugin", str(plugin), "--settings", str(settings)) as process:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        cluster.port = int(line.rpartition(":")[2])
        for _ in range(200):
            if (await cluster.request("GET", "/readyz"))[0] == 200:
                break
            await asyncio.sleep(0.05)
        for name in ("a", "b"):
            assert await cluster.place(cluster.pod(name, 12 * 1024), "n1") == "", "twice the memory may be promised"
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--kubeconfig", "/nowhere/config"], "/nowhere/config"), (["--settings", "/nowhere/settings.yaml"], "/nowhere/settings.yaml")],
    ids=["kubeconfig", "settings"],
)
async def test_a_wrong_configuration_ends_it_with_2_and_the_reason(arguments: list[str], said: str) -> None:
    async with program(*arguments) as process:
        _, problems = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 2
        assert said in problems.decode()
        assert "Traceback" not in problems.decode()
