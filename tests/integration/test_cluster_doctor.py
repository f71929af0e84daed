# SPDX-License-Identifier: Apache-2.0
"""`hami doctor --cluster` over HTTP: a cluster with nothing of ours in it, one that does not answer, and nothing is changed by looking."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hami_framework.codec import inventories
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.doctor import examine, reading
from hami_framework.errors import Unavailable
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import Credentials
from hami_framework.model import Inventory
from hami_framework.sandbox.apiserver import ApiServer
from hami_framework.sandbox.surroundings import kubeconfig

HAMI = [sys.executable, "-c", "from hami_framework.cli.main import main; main()"]


async def test_a_cluster_is_read_and_left_as_it_is() -> None:
    api = ApiServer(definitions=(inventories.CRD,))
    await api.start()
    client = KubeClient(Credentials(server=api.url), read_attempts=2)
    try:
        await client.call(client.create, reading.INVENTORIES, inventories.to_object(Inventory(node="n1")))
        before = api.store.version
        cluster = await reading.read(client, ResourceCatalog([]), "hami-system")
        assert api.store.version == before, "looking changed something"
        assert [item["metadata"]["name"] for item in cluster.list("inventories")] == ["n1"]
        assert cluster.server_ahead_seconds is None or abs(cluster.server_ahead_seconds) < 2
        found = examine(cluster, ResourceCatalog([]))
        assert [one.state for one in found if one.what == "CRD"] == ["ok"]
        assert [one.state for one in found if one.what == "extender"] == ["fail"]
    finally:
        client.close()
        await api.stop()


async def test_the_command_prints_json_and_ends_with_status_1_where_something_is_broken(tmp_path: Path) -> None:
    api = ApiServer()
    await api.start()
    try:
        (tmp_path / "config").write_text(kubeconfig(api.url))
        words = ["doctor", "--cluster", "--kubeconfig", str(tmp_path / "config"), "-o", "json"]
        child = await asyncio.create_subprocess_exec(*HAMI, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            out, err = await child.communicate()
        assert child.returncode == 1, err.decode()
        found = {(one["what"], one["state"]) for one in json.loads(out)}
        assert ("CRD", "fail") in found
        assert all(one["do"] for one in json.loads(out) if one["state"] != "ok")
    finally:
        await api.stop()


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (tmp_path / "config").write_text(kubeconfig(f"http://127.0.0.1:{port}"))
    words = [*HAMI, "doctor", "--cluster", "--kubeconfig", str(tmp_path / "config")]
    done = subprocess.run(words, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("hami: the API server at")
    assert len(done.stderr.splitlines()) == 1


async def test_an_answer_that_never_comes_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "DEADLINE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = KubeClient(Credentials(server=f"http://127.0.0.1:{silent.getsockname()[1]}"), timeout_seconds=1.0, read_attempts=1)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="does not answer"):
            await reading.read(client, ResourceCatalog([]), "hami-system")
        assert time.monotonic() - began < 5
        client.close()


def test_cluster_options_need_the_cluster() -> None:
    done = subprocess.run([*HAMI, "doctor", "--kubeconfig", "x"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "add --cluster" in done.stderr
