# SPDX-License-Identifier: Apache-2.0
"""The real extender in a process of its own, asked over HTTP as kube-scheduler asks: filter, then prioritize of what passed.

Only list+watch is left out: the cluster is put into the engine directly. Every pod asked about leaves its tentative entry,
so each decision meets a changed cluster.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import random
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.cluster import CLASSES, build, shapes
from hami_framework.codec.resources import ResourceCatalog
from hami_framework.kube.client import KubeClient
from hami_framework.kube.credentials import Credentials
from hami_framework.model import MIB, ContainerRequest
from hami_framework.scheduler.server import Scheduler, serving

START_SECONDS = 120


class Size(NamedTuple):
    """Of the cluster."""

    nodes: int
    devices: int
    pods: int
    seed: int


class Loaded(Scheduler):
    """An extender whose engine has the cluster from the start."""

    async def run(self) -> None:
        self._now_ready()
        await self._expire()


async def _serve(link: Connection, size: Size) -> None:
    engine, _ = build(size.nodes, size.devices, size.pods, random.Random(size.seed))
    client = KubeClient(Credentials(server="http://127.0.0.1:9"))  # nobody there: filter and prioritize ask no API server
    catalog = ResourceCatalog(vendors=sorted({device_class.vendor for device_class in CLASSES}))
    sock = socket.create_server(("127.0.0.1", 0))
    async with serving(Loaded(engine, catalog, client), sock):
        link.send(sock.getsockname()[1])
        await asyncio.to_thread(link.recv)
    link.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    client.close()


def _main(link: Connection, size: Size) -> None:
    asyncio.run(_serve(link, size))


class Asker:
    """kube-scheduler's side: one connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._asked = 0

    def decide(self, containers: Sequence[ContainerRequest], names: Sequence[str]) -> float:
        """Seconds that both answers took, from the first byte sent to the last one read."""
        self._asked += 1
        pod = _pod(f"new-{self._asked}", containers)
        filtered, filtering = self._post("/filter", pod, names)
        if filtered["Error"]:
            raise SystemExit(f"the extender gave no answer: {filtered['Error']}")
        passed = filtered["NodeNames"] or []
        if not passed:
            return filtering
        ranked, ranking = self._post("/prioritize", pod, passed)
        if not ranked:
            raise SystemExit("the extender ranked no node")
        return filtering + ranking

    def _post(self, verb: str, pod: dict[str, Any], names: Sequence[str]) -> tuple[Any, float]:
        body = json.dumps({"Pod": pod, "Nodes": None, "NodeNames": names}, separators=(",", ":")).encode()
        begin = time.perf_counter()
        self._connection.request("POST", verb, body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse().read()
        seconds = time.perf_counter() - begin
        return json.loads(answer), seconds


def _pod(name: str, containers: Sequence[ContainerRequest]) -> dict[str, Any]:
    """The pod as JSON, in the vendor-neutral resource names."""
    vendors = containers[0].requests[0].selector.vendors
    annotations = {"hami.io/vendors": ",".join(vendors)} if vendors else {}
    return {
        "metadata": {"name": name, "namespace": "default", "uid": name, "annotations": annotations},
        "spec": {"containers": [{"name": container.name, "image": "x", "resources": {"limits": _limits(container)}} for container in containers]},
        "status": {"phase": "Pending"},
    }


def _limits(container: ContainerRequest) -> dict[str, str]:
    request = container.requests[0].request
    amounts = {"hami.io/accelerator": request.count, "hami.io/memory-mib": (request.memory_bytes or 0) // MIB, "hami.io/core-percent": request.core_percent}
    return {resource_name: str(amount) for resource_name, amount in amounts.items() if amount}


@contextmanager
def extender(size: Size, peak_kib: list[int]) -> Iterator[Asker]:
    """A running extender; `peak_kib` gets its largest resident set when it has ended."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, size), daemon=True)
    process.start()
    try:
        if not ours.poll(START_SECONDS):
            raise SystemExit(f"the extender did not start within {START_SECONDS} s")
        yield Asker(ours.recv())
        ours.send("stop")
        peak_kib.append(ours.recv())
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()


def ask(size: Size, decisions: int) -> tuple[list[float], list[float], float]:
    """Seconds of decisions with the same list of nodes, and with one that starts elsewhere every time; and the peak of its memory in MiB."""
    rng = random.Random(size.seed)
    requests = shapes(40, rng)
    names = [f"node-{number:05d}" for number in range(size.nodes)]
    peak_kib: list[int] = []
    with extender(size, peak_kib) as asker:
        for containers in requests:
            asker.decide(containers, names)
        same = [asker.decide(rng.choice(requests), names) for _ in range(decisions)]
        rotated = []
        for _ in range(decisions):
            start = rng.randrange(size.nodes)
            rotated.append(asker.decide(rng.choice(requests), names[start:] + names[:start]))
    return same, rotated, peak_kib[0] / 1024
