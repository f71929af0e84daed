# SPDX-License-Identifier: Apache-2.0
"""What an operator writes in the settings reaches the node: renamed resources are admitted, scheduled, counted and allocated."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hami_framework.codec.grants import GRANT_ANNOTATION, decode_grant
from hami_framework.deviceplugin.__main__ import renames
from hami_framework.deviceplugin.__main__ import settings as vendor_settings
from hami_framework.errors import ConfigError
from hami_framework.plugins import load_registry
from hami_framework.sandbox.cluster import Cluster
from hami_framework.sandbox.nodes import parse_nodes
from hami_framework.sandbox.resources import NODES, PODS

ACME = Path(__file__).parents[2] / "examples" / "vendor-acme" / "hami_acme" / "__init__.py"
RENAMES = {"acme.example/xpu": "example.com/accel", "acme.example/xpumem": "example.com/accel-memory"}

LISTENER = """
from hami_framework import hookimpl, Capacity, Device, DeviceClass
HAMI_SPEC_VERSION = "1"

@hookimpl
def hami_discover(host):
    capacity = Capacity(memory_bytes=1 << 34, shares=int(host.settings["shares"]))
    return [Device(id="L-0", device_class=DeviceClass(model="Listener", capacity=capacity))]
"""


async def until(condition: Any, what: str, seconds: float = 20) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} s")


async def test_a_renamed_resource_is_served_under_its_new_name_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"plugins: {{allow: [acme], files: ['{ACME}']}}\nresources: {{rename: {{{', '.join(f'{a}: {b}' for a, b in RENAMES.items())}}}}}\n")
    nodes = parse_nodes({"nodes": [{"name": "a", "machine": "acme-box"}]}, load_registry([], [ACME]).machines())
    limits = {"example.com/accel": 1, "example.com/accel-memory": 3072}
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}}
    async with Cluster(nodes, build=lambda machine: tmp_path, settings=file) as cluster:
        allocatable = cluster.server.store.get(NODES, "", "a")["status"]["allocatable"]
        assert "acme.example/xpu" not in allocatable
        assert int(allocatable["example.com/accel"]) > 0
        cluster.server.operations.create(PODS, "default", pod)
        await until(lambda: cluster.server.store.get(PODS, "default", "p")["status"]["phase"] == "Running", "the pod running")
        held = decode_grant(cluster.server.store.get(PODS, "default", "p")["metadata"]["annotations"][GRANT_ANNOTATION]).containers[0].devices[0]
        assert (held.resource, held.offer.cost.memory_bytes) == ("example.com/accel", 3072 << 20)
        (container,) = cluster.containers("a")
        assert container["env"]["ACME_QUOTA_MIB"] == f"{held.device_id}:3072"


async def test_a_vendors_own_section_reaches_its_hooks(tmp_path: Path) -> None:
    plugin, file = tmp_path / "listener.py", tmp_path / "settings.yaml"
    plugin.write_text(LISTENER)
    file.write_text(f"plugins: {{allow: [listener], files: ['{plugin}']}}\nvendors: {{listener: {{shares: 7}}}}\n")
    nodes = parse_nodes({"nodes": [{"name": "a"}]}, {})
    async with Cluster(nodes, build=lambda machine: tmp_path, settings=file) as cluster:
        await until(lambda: int(cluster.server.store.get(NODES, "", "a")["status"]["allocatable"].get("hami.io/accelerator", 0)), "the device")
        assert cluster.server.store.get(NODES, "", "a")["status"]["allocatable"]["hami.io/accelerator"] == "7"


@pytest.mark.parametrize(
    ("parse", "given", "complaint"),
    [
        pytest.param(renames, ["acme.example/xpu"], "write FROM=TO", id="rename without a target"),
        pytest.param(vendor_settings, ["acme={"], "not JSON", id="settings that are not JSON"),
        pytest.param(vendor_settings, ["acme=[1]"], "with a JSON object", id="settings that are no object"),
    ],
)
def test_flags_that_say_nothing_are_refused(parse: Any, given: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(given)
