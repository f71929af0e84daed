# SPDX-License-Identifier: Apache-2.0
"""What a pod's author is told for every kind of wrong input: a stable code, on every node that was asked about, and what to write instead.

The pods go through the real door: HTTP to the API server, admission, kube-scheduler's filters, the extender's own process.
Those that the API server itself would refuse, or that admission would complete, are put to the extender's HTTP directly,
as they come from a cluster whose webhook did not run.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import pytest_asyncio

from hami_framework.kube import credentials
from hami_framework.kube.client import KubeClient, path
from hami_framework.kube.errors import ApiError
from hami_framework.plugins import load_registry
from hami_framework.sandbox.cluster import Cluster
from hami_framework.sandbox.nodes import parse_nodes
from hami_framework.testing.fakes import build_libraries

pytestmark = [pytest.mark.xdist_group("sandbox"), pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]

Json = dict[str, Any]

DGX, ATLAS = "dgx", "atlas"
"""8 A100 of 40 GB; 8 910B3 of 64 GB."""
MACHINES = {"nodes": [{"name": DGX, "machine": "dgx-a100-40g"}, {"name": ATLAS, "machine": "atlas-800t-a2"}]}

GPU: Json = {"nvidia.com/gpu": 1}
NPU: Json = {"huawei.com/Ascend910B3": 1}
ANY: Json = {"hami.io/accelerator": 1}
POLICIES = "write one of binpack, mutex, numa, numa-bind, spread, topology, topology-aware"

WRONG = [
    # id, what the pod says, the nodes that have its devices, the code, the hint
    ("percentage-over-100", GPU | {"nvidia.com/gpumem-percentage": 101}, {}, [DGX], "percent-invalid", "write a whole percentage from 1 to 100"),
    ("percentage-zero", GPU | {"nvidia.com/gpumem-percentage": 0}, {}, [DGX], "percent-invalid", "leave it out to have all memory"),
    ("cores-over-100", GPU | {"nvidia.com/gpucores": 101}, {}, [DGX], "percent-invalid", "leave it out to have no compute limit"),
    ("cores-over-100-any-vendor", ANY | {"hami.io/core-percent": 250}, {}, [DGX, ATLAS], "percent-invalid", "from 1 to 100"),
    ("memory-over-the-largest", GPU | {"nvidia.com/gpumem": "48Gi"}, {}, [DGX], "memory-too-large", "at most 40.0 GiB); ask for less memory per device"),
    ("memory-over-the-largest-npu", NPU | {"huawei.com/Ascend910B3-memory": 99_999_999}, {}, [ATLAS], "memory-too-large", "at most 64.0 GiB"),
    ("memory-over-the-largest-of-any", {"hami.io/memory-mib": "65Gi"}, {}, [DGX, ATLAS], "memory-too-large", "at most 64.0 GiB"),
    ("memory-zero", GPU | {"nvidia.com/gpumem": 0}, {}, [DGX], "quantity-invalid", "leave it out to have all memory"),
    ("count-over-any-node", {"nvidia.com/gpu": 9}, {}, [DGX], "count-too-large", "at most 8); ask for fewer devices per container"),
    ("count-over-any-node-shares", {"nvidia.com/gpu": 9, "nvidia.com/gpumem": 100}, {}, [DGX], "count-too-large", "at most 8"),
    ("count-over-any-node-any-vendor", {"hami.io/accelerator": 17}, {}, [DGX, ATLAS], "count-too-large", "at most 8"),
    ("count-zero-with-amounts", {"nvidia.com/gpu": 0, "nvidia.com/gpumem": 100}, {}, [DGX, ATLAS], "count-invalid", "write nvidia.com/gpu: 1"),
    (
        "share-of-several",
        {"huawei.com/Ascend910B3": 2, "huawei.com/Ascend910B3-memory": 2000},
        {},
        [ATLAS],
        "share-count-forbidden",
        "ask for whole devices (leave the memory out)",
    ),
    ("memory-twice", GPU | {"nvidia.com/gpumem": 100, "nvidia.com/gpumem-percentage": 10}, {}, [DGX], "request-conflict", "keep one of the two"),
    (
        "partition-with-amounts",
        {"nvidia.com/mig-3g.20gb": 1, "nvidia.com/gpumem": 100},
        {},
        [DGX],
        "request-conflict",
        "leave nvidia.com/gpumem out, or ask for it without nvidia.com/mig-3g.20gb",
    ),
    ("policy-unknown", GPU, {"hami.io/node-scheduler-policy": "binpak"}, [DGX], "policy-unknown", f"{POLICIES} (did you mean binpack?)"),
    ("policy-list", GPU, {"hami.io/gpu-scheduler-policy": "binpack,spread"}, [DGX], "policy-unknown", "one policy is meant, not a list"),
    ("vendor-unknown", {"hami.io/memory-mib": 100}, {"hami.io/vendors": "nvidai,ascend"}, [DGX, ATLAS], "vendor-unknown", "(did you mean nvidia?)"),
    ("annotation-list", GPU, {"hami.io/use-device-type": "A100,,H100"}, [DGX], "annotation-invalid", "names separated by single commas"),
    ("annotation-mode", GPU, {"nvidia.com/vgpu-mode": "hami-cor"}, [DGX], "annotation-invalid", "write one of hami-core, mig, or leave it out"),
    ("annotation-enforcement", GPU, {"hami.io/enforcement": "memory=tight"}, [DGX], "annotation-invalid", "write hard, soft, advisory or none"),
    (
        "annotations-disagree",
        GPU,
        {"hami.io/use-device-type": "A100", "nvidia.com/use-gputype": "H100"},
        [DGX],
        "annotation-invalid",
        "keep one of hami.io/use-device-type and nvidia.com/use-gputype",
    ),
]

UNSEEN_BY_ADMISSION = [
    # what only a pod says that our webhook, or the API server's own checks, have not seen
    ("count-missing", {"nvidia.com/gpumem": "100"}, "count-missing", "add nvidia.com/gpu: 1"),
    ("count-missing-any-vendor", {"hami.io/memory-mib": "100"}, "count-missing", "add hami.io/accelerator: 1"),
    ("count-missing-beside-another", {"nvidia.com/gpu": "1", "hami.io/memory-mib": "100"}, "count-missing", "or write the amount in the names that go with"),
    ("count-fraction", {"nvidia.com/gpu": "500m"}, "count-invalid", "write a whole number of devices, e.g. 1"),
    ("memory-fraction", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "500m"}, "quantity-invalid", "or bytes as Mi or Gi"),
    ("memory-garbage", {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "lots"}, "quantity-invalid", "'lots' is not a quantity"),
    ("count-negative", {"nvidia.com/gpu": "-1"}, "count-invalid", "write a whole number of devices, e.g. 1"),
]

REFUSED_BY_THE_API_SERVER = [
    ("fraction", GPU | {"nvidia.com/gpumem": "500m"}, 'resources.limits[nvidia.com/gpumem]: Invalid value: "500m": must be an integer'),
    ("negative", {"nvidia.com/gpu": -1}, "resources.limits[nvidia.com/gpu]: Invalid value: "),
    ("no-quantity", GPU | {"nvidia.com/gpumem": "lots"}, "'lots' is not a quantity"),
]


def pod(name: str, limits: Json, annotations: Json) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "main", "image": "x", "resources": {"limits": limits}}]},
    }


class Sandbox:
    """A running cluster, from outside."""

    def __init__(self, cluster: Cluster, client: KubeClient, warnings: list[str]) -> None:
        self.client, self.warnings = client, warnings
        self._extender = f"http://127.0.0.1:{cluster.extender_port}"

    async def create(self, body: Json) -> Json:
        self.warnings.clear()
        return await self.client.call(self.client.create, path("pods", namespace="default"), body)

    async def unschedulable(self, name: str) -> str:
        """kube-scheduler's message, as `kubectl describe pod` shows it."""
        async with asyncio.timeout(15):
            while True:
                found = await self.client.call(self.client.get, path("pods", namespace="default", name=name))
                for condition in found["status"].get("conditions", ()):
                    if condition["type"] == "PodScheduled":
                        assert condition["reason"] == "Unschedulable"
                        return str(condition["message"])
                await asyncio.sleep(0.02)

    async def extender(self, address: str, body: Json | None = None) -> Json:
        def fetch() -> Json:
            data = None if body is None else json.dumps(body).encode()
            with urlopen(Request(f"{self._extender}{address}", data, {"Content-Type": "application/json"}), timeout=10) as answer:
                found: Json = json.loads(answer.read())
                return found

        return await asyncio.to_thread(fetch)

    async def explain(self, name: str) -> Json:
        return await self.extender(f"/explain?{urlencode({'namespace': 'default', 'name': name})}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    registry = load_registry()
    nodes = parse_nodes(MACHINES, registry.machines())
    async with Cluster(nodes, build=build_libraries, registry=registry) as cluster:
        warnings: list[str] = []
        client = await asyncio.to_thread(lambda: KubeClient(credentials.load(str(cluster.kubeconfig)), on_warning=warnings.append))
        yield Sandbox(cluster, client, warnings)
        client.close()


def refused_everywhere(explained: Json, nodes: list[str], code: str, hint: str) -> None:
    """Each of these nodes and no other has the code, for good, with the hint in its sentence."""
    assert sorted(explained["nodes"]) == sorted(nodes)
    for name in nodes:
        node = explained["nodes"][name]
        assert (name, node["code"], node["final"]) == (name, code, True)
        assert hint in " ".join(rejection["sentence"] for rejection in node["rejections"])


@pytest.mark.parametrize(("limits", "annotations", "nodes", "code", "hint"), [pytest.param(*case[1:], id=case[0]) for case in WRONG])
async def test_a_wrong_pod_is_refused_on_every_node(
    sandbox: Sandbox, request: pytest.FixtureRequest, limits: Json, annotations: Json, nodes: list[str], code: str, hint: str
) -> None:
    name = request.node.callspec.id
    await sandbox.create(pod(name, limits, annotations))
    assert f"{len(nodes)} {code}" in await sandbox.unschedulable(name)
    explained = await sandbox.explain(name)
    refused_everywhere(explained, nodes, code, hint)
    assert hint in explained["summary"]  # which is what the event says


@pytest.mark.parametrize(("limits", "code", "hint"), [pytest.param(*case[1:], id=case[0]) for case in UNSEEN_BY_ADMISSION])
async def test_a_pod_that_admission_has_not_seen_is_refused_not_completed(
    sandbox: Sandbox, request: pytest.FixtureRequest, limits: Json, code: str, hint: str
) -> None:
    name = f"unseen-{request.node.callspec.id}"
    body = pod(name, limits, {})
    body["metadata"] |= {"namespace": "default", "uid": f"uid-{name}"}
    answer = await sandbox.extender("/filter", {"Pod": body, "NodeNames": [DGX, ATLAS]})
    assert answer["FailedAndUnresolvableNodes"] == {DGX: code, ATLAS: code}
    assert not answer.get("NodeNames")
    assert not answer.get("FailedNodes")
    refused_everywhere(await sandbox.explain(name), [DGX, ATLAS], code, hint)


@pytest.mark.parametrize(("limits", "said"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED_BY_THE_API_SERVER])
async def test_what_is_no_whole_number_does_not_get_past_the_api_server(sandbox: Sandbox, limits: Json, said: str) -> None:
    with pytest.raises(ApiError, match=re.escape(said)):
        await sandbox.create(pod("refused", limits, {}))


async def test_the_author_is_warned_at_once(sandbox: Sandbox) -> None:
    await sandbox.create(pod("warned", GPU | {"nvidia.com/gpucores": 101}, {}))
    assert len(sandbox.warnings) == 1
    assert sandbox.warnings[0].startswith("no node will take this pod: container main, nvidia.com/gpucores: '101' is not a percentage")


async def test_admission_completes_amounts_without_a_count(sandbox: Sandbox) -> None:
    """The counterpart of count-missing: seen by admission, the same pod runs, and its author is told what was added."""
    created = await sandbox.create(pod("completed", {"nvidia.com/gpumem": 100}, {}))
    assert created["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert any("nvidia.com/gpu: 1 was added" in warning for warning in sandbox.warnings)
