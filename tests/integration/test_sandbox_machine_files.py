# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a machine's devices lies below the node's root, where the vendor's hooks read it."""

from __future__ import annotations

from pathlib import Path

from hami_framework.model import Machine
from hami_framework.sandbox.cluster import INVENTORIES, Cluster
from hami_framework.sandbox.nodes import parse_nodes

ACME = Path(__file__).parents[2] / "examples" / "vendor-acme" / "hami_acme" / "__init__.py"
CARDS = "[card 0]\nserial = XPU-K1\nmodel = Acme XPU\nminor = 4\nmemory_mib = 16384\nnuma = 1\nhealth = ok\n"


async def test_a_vendor_reads_the_kernels_files_of_its_own_node(tmp_path: Path) -> None:
    machine = Machine(name="from-proc", description="1 x Acme XPU, as /proc has it", state="", files={"/proc/acme/cards": CARDS})
    nodes = parse_nodes({"nodes": [{"name": "a", "machine": "from-proc"}, {"name": "plain"}]}, {"from-proc": ("acme", machine)})
    async with Cluster(nodes, build=lambda machine: tmp_path, plugin_files=[ACME], allow=["acme"]) as cluster:
        devices = {name: cluster.server.store.get(INVENTORIES, "", name)["spec"].get("devices", []) for name in ("a", "plain")}
    assert [(device["id"], device["numaNode"]) for device in devices["a"]] == [("XPU-K1", 1)]
    assert devices["plain"] == []
