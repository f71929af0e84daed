# SPDX-License-Identifier: Apache-2.0
"""A whole cluster in one process tree: API server, kubelet doubles, scheduling loop and controllers here; the product's
agents and extender as child processes, started with nothing but their command line, as they would be anywhere.

The sandbox names no vendor: machines come from the packages' `hami_machines`, their libraries from a builder handed in.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hami_framework.codec import inventories, mutation
from hami_framework.config import load_settings
from hami_framework.errors import ConfigError, Unavailable
from hami_framework.model import Device, Machine
from hami_framework.plugins import Registry, load_registry
from hami_framework.sandbox import surroundings
from hami_framework.sandbox.apiserver import ApiServer
from hami_framework.sandbox.children import Child
from hami_framework.sandbox.control import Control
from hami_framework.sandbox.controllers import Controllers
from hami_framework.sandbox.extender import Extender
from hami_framework.sandbox.jsonhttp import JsonClient
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.loop import LoopOptions, SchedulingLoop
from hami_framework.sandbox.node import LOST, WELL, SandboxNode
from hami_framework.sandbox.nodes import NodeSpec, all_machines
from hami_framework.sandbox.pod_queue import Backoff
from hami_framework.sandbox.resources import NODES, Kind

log = logging.getLogger(__name__)

Json = dict[str, Any]
Builder = Callable[[Machine], Path]
"""Machine → the directory with its built fake libraries (`testing.fakes.build_libraries`)."""

SCHEDULER = "hami_framework.scheduler"
INVENTORIES = Kind(group=inventories.GROUP, version=inventories.VERSION, plural=inventories.PLURAL, kind=inventories.KIND, namespaced=False)
POLL_SECONDS = 0.1
MISCONFIGURED = 2
"""Exit status with which our processes say that they were told something wrong: starting them again is of no use."""
QUICK = Backoff(first=0.2, longest=2.0, flush=10.0)
"""A tenth or so of kube-scheduler's waits: nobody tries things out at a production cluster's pace."""


class Cluster:
    """Everything that runs. `await up()`, use, `await down()`; also an async context manager."""

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        directory: Path | None = None,
        *,
        build: Builder,
        api_port: int = 0,
        plugin_files: Sequence[Path] = (),
        allow: Sequence[str] | None = None,
        settings: Path | None = None,
        backoff: Backoff = QUICK,
        seed: int = 0,
        registry: Registry | None = None,
    ) -> None:
        """`directory`: for sockets, logs and machine files; must be short, and is removed by `down` only when it was made here (None)."""
        chosen = load_settings(settings)
        self._temporary = directory is None
        self.directory = surroundings.short(directory or Path(tempfile.mkdtemp(prefix="hami-", dir="/tmp")))
        self._build, self._settings = build, settings
        self._plugin_files = tuple(path.resolve() for path in (*chosen.plugins.files, *plugin_files))
        self._allow = chosen.plugins.allow if allow is None else tuple(allow)
        self._chosen = chosen.model_copy(update={"plugins": chosen.plugins.model_copy(update={"allow": self._allow})})
        self.registry = registry or load_registry(self._allow, self._plugin_files, chosen.resources.rename)
        self.catalog = catalog = self.registry.catalog()
        self.server = ApiServer(port=api_port, webhook=partial(mutation.review, catalog=catalog), definitions=(inventories.CRD,))
        self.extender_port = surroundings.free_port()
        extender = Extender(f"http://127.0.0.1:{self.extender_port}", frozenset(catalog.extended_resources()), weight=1)
        options = LoopOptions(ignored=frozenset(catalog.amount_resources()), backoff=backoff, seed=seed)
        self.loop = SchedulingLoop(self.server.operations, extender, options)
        self.controllers = Controllers(self.server.operations)
        self._specs, self._seed = tuple(nodes), seed
        self.nodes: dict[str, SandboxNode] = {}
        self.extender: Child | None = None
        self._probe = JsonClient(f"http://127.0.0.1:{self.extender_port}", timeout_s=1.0)
        self._extender_ready = False
        self._prober: asyncio.Task[None] | None = None
        self._handles_sigterm = False

    # -- life

    async def __aenter__(self) -> Cluster:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def up(self, timeout_s: float = 60.0) -> None:
        """Start everything and wait until it is ready. Whatever goes wrong, nothing is left running.

        Raises `ConfigError` when a fake cannot be built, `Unavailable` when something does not come up in time.
        """
        self._end_on_sigterm()
        starting = asyncio.create_task(self._start(), name="sandbox start")
        try:
            await asyncio.shield(starting)
            await self.wait_ready(timeout_s)
        except BaseException:
            await asyncio.gather(starting, return_exceptions=True)  # what is half started (a gRPC server) cannot be stopped cleanly
            await self.down()
            raise

    def _end_on_sigterm(self) -> None:
        """SIGTERM cancels whoever called `up`, so that `down` is reached; asyncio does the same for SIGINT."""
        owner = asyncio.current_task()
        if owner is not None and threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, owner.cancel)
            self._handles_sigterm = True

    async def _start(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the sandbox cannot live in {self.directory}: {error.strerror}; name a directory that you may write to") from error
        libraries = {machine.name: await asyncio.to_thread(self._build, machine) for machine in all_machines(self._specs)}
        self.server.ready = self.waiting_for
        self.server.extra["/sandbox"] = Control(self).answer
        await self.server.start()
        self.kubeconfig.write_text(surroundings.kubeconfig(self.server.url))
        await self._start_extender()
        for number, spec in enumerate(self._specs):
            await self._start_node(number, spec, libraries)
        await self.controllers.start()
        await self.loop.start()
        self._prober = asyncio.create_task(self._watch_extender(), name="extender probe")

    async def _start_extender(self) -> None:
        arguments = ["--kubeconfig", str(self.kubeconfig), "--host", "127.0.0.1", "--port", str(self.extender_port)]
        arguments += [part for file in self._plugin_files for part in ("--plugin", str(file))]
        settings = surroundings.with_allow_list(self._settings, self._allow, self.directory)
        arguments += ["--settings", str(settings)] if settings else []
        self.extender = Child("extender", SCHEDULER, arguments, self.directory / "extender.log")
        await self.extender.start()

    async def _start_node(self, number: int, spec: NodeSpec, libraries: dict[str, Path]) -> None:
        labels = {"kubernetes.io/hostname": spec.name, **spec.labels}
        body = {"metadata": {"name": spec.name, "labels": labels}, "spec": {"taints": list(spec.taints)} if spec.taints else {}}
        self.server.operations.create(NODES, "", body)
        capacity = {"cpu": spec.cpu, "memory": spec.memory, "pods": spec.pods}
        options = KubeletOptions(seed=self._seed + number, time_scale=0.1, capacity=capacity, labels=spec.labels)
        self.nodes[spec.name] = node = SandboxNode(spec, self.directory / "n" / str(number), self.server.url, options)
        await node.start(self.kubeconfig, node.prepare(libraries), self._plugin_files, self._chosen)

    async def down(self) -> None:
        """Stop everything, in the order in which nothing complains about a missing neighbour."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        await self.loop.stop()
        await self.controllers.stop()
        await asyncio.gather(*(node.stop() for node in self.nodes.values()), *([self.extender.stop()] if self.extender else []))
        await self._probe.close()
        await self.server.stop()
        if self._handles_sigterm:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
            self._handles_sigterm = False
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    async def run_until_signal(self) -> None:
        """Wait for SIGTERM or SIGINT, then `down`."""
        stop = asyncio.Event()
        running = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            running.add_signal_handler(number, stop.set)
        try:
            await stop.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                running.remove_signal_handler(number)
            self._handles_sigterm = False
            await self.down()

    # -- readiness

    def waiting_for(self) -> list[str]:
        """What is not up yet, in words; empty when everything is."""
        waiting = [] if self._extender_ready else ["the extender does not answer /readyz yet"]
        return waiting + [f"node {name}: {missing}" for name, node in self.nodes.items() for missing in self._missing(name, node)]

    def _missing(self, name: str, node: SandboxNode) -> Iterator[str]:
        held = self.server.store.find(INVENTORIES, "", name)
        if held is None:
            yield "its agent has published no inventory yet"
            return
        inventory = inventories.from_object(held)
        allocatable = (self.server.store.get(NODES, "", name).get("status") or {}).get("allocatable") or {}
        for vendor in (placed.vendor for placed in node.spec.machines):
            slots = [slot for family in self.catalog.families if family.vendor == vendor for slot in family.names.slot_resources]
            if not any(device.vendor == vendor for device in inventory.devices):
                reason = next((info.reason for info in inventory.vendors if info.name == vendor), "")
                yield f"vendor {vendor} has found no device yet{f' ({reason})' if reason else ''}"
            elif slots and not any(allocatable.get(slot, "0") != "0" for slot in slots):
                yield f"kubelet has no slots of vendor {vendor} yet"

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Raises `Unavailable` with what is missing and the last lines of its log, `ConfigError` at once with what a child refused to start for."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while waiting := self.waiting_for():
            for child in self._children():
                if child.exit_status == MISCONFIGURED:
                    raise ConfigError(f"{child.name} does not start: {child.last_words(1)}")
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"the sandbox is not up after {timeout_s:g} s: {'; '.join(waiting)}\n{self.last_words()}")
            await asyncio.sleep(POLL_SECONDS)

    def last_words(self) -> str:
        """The last lines of every child's log."""
        return "\n".join(f"--- {child.name} ({child.log_file}):\n{child.last_words()}" for child in self._children())

    def _children(self) -> list[Child]:
        """The product's processes that have been started."""
        return [child for child in (self.extender, *(node.agent for node in self.nodes.values())) if child is not None]

    async def _watch_extender(self) -> None:
        while True:
            self._extender_ready = await self._probe.answers_ok("/readyz")
            await asyncio.sleep(1.0 if self._extender_ready else POLL_SECONDS)

    # -- what can be done to it

    def node(self, name: str) -> SandboxNode:
        """Raises `ConfigError` naming the nodes there are."""
        if name not in self.nodes:
            raise ConfigError(f"there is no node {name!r}; the sandbox has {', '.join(self.nodes)}")
        return self.nodes[name]

    def kill_agent(self, node: str) -> int | None:
        """kill -9 of a node's agent; it is started again after a moment. Answers the pid that died, None when it was down."""
        agent = self.node(node).agent
        return agent.kill() if agent is not None else None

    def kill_extender(self) -> int | None:
        """kill -9 of the extender; it is started again after a moment."""
        return self.extender.kill() if self.extender is not None else None

    async def restart_kubelet(self, node: str) -> None:
        """kill -9 of the kubelet double and a new start: sockets wiped, checkpoint kept, containers untouched."""
        await self.node(node).kubelet.restart()

    def fail_device(self, node: str, device: str, health: str = LOST) -> Device:
        """Write `health = …` into the device's section of the machine file. `device`: its id, its name, or its index."""
        return self.set_device(node, device, {"health": health})

    def recover_device(self, node: str, device: str) -> Device:
        """Write `health = ok`."""
        return self.set_device(node, device, {"health": WELL})

    def set_device(self, node: str, device: str, changes: dict[str, str]) -> Device:
        """Any keys of the section, e.g. usage. Raises `ConfigError` for an unknown node or device, listing what there is."""
        found = self._find_device(node, device)
        self.node(node).set_device(found, changes)
        return found

    def _find_device(self, node: str, wanted: str) -> Device:
        self.node(node)
        held = self.server.store.find(INVENTORIES, "", node)
        if held is None:
            raise ConfigError(f"node {node} has published no inventory yet")
        devices = inventories.from_object(held).devices
        tests: tuple[Callable[[Device], bool], ...] = (
            lambda device: wanted in (device.id, device.name),
            lambda device: wanted == f"{device.vendor}/{device.index}",
            lambda device: wanted == str(device.index),
        )
        for test in tests:
            matches = [device for device in devices if test(device)]
            if len(matches) == 1:
                return matches[0]
        known = ", ".join(f"{device.vendor}/{device.index} ({device.id})" for device in devices)
        raise ConfigError(f"node {node} has no one device {wanted!r}; it has {known or 'none'}")

    def containers(self, node: str | None = None) -> list[Json]:
        """Every container of the runtime doubles, with what it sees."""
        nodes = self.nodes.values() if node is None else [self.node(node)]
        return [{"node": each.spec.name, **view} for each in nodes for view in each.kubelet.containers()]

    @property
    def kubeconfig(self) -> Path:
        """The file that tells clients where the API server is."""
        return self.directory / "kubeconfig"
