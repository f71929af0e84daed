# SPDX-License-Identifier: Apache-2.0
"""`KubeletDouble`: one node's kubelet with its runtime, killable and restartable in the middle of anything.

The runtime, the CDI directories and the checkpoint outlive a kubelet process; everything in `_Process` dies with it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio

from hami_framework.errors import HamiError
from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2_grpc as deviceplugin
from hami_framework.kubelet_api import podresources_v1_pb2_grpc as podresources
from hami_framework.sandbox.kubelet.admission import DeviceAdmission
from hami_framework.sandbox.kubelet.api import HttpNodeApi, NodeApi, Object
from hami_framework.sandbox.kubelet.devices import AdmissionError
from hami_framework.sandbox.kubelet.lifecycle import Kit, PodWorker
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.kubelet.paths import KubeletPaths
from hami_framework.sandbox.kubelet.podresources import PodResources, RateLimit, TokenBucket
from hami_framework.sandbox.kubelet.registration import Call
from hami_framework.sandbox.kubelet.status import node_status, persist, rejected_status
from hami_framework.sandbox.runtime.container import Container, Runtime

log = logging.getLogger(__name__)

TERMINAL = ("Succeeded", "Failed")
NODE_STATUS_PERIOD_S = 10.0
"""`nodeStatusUpdateFrequency`."""


class KubeletDouble:
    """kubelet and container runtime of one node."""

    def __init__(self, node: str, api: str | NodeApi, paths: KubeletPaths, *, options: KubeletOptions | None = None) -> None:
        """`api` is the address of the API server, or something that answers in its place."""
        self.node = node
        self.paths = paths
        self.options = options or KubeletOptions()
        self.runtime = Runtime(paths.cdi_dirs, paths.real_prefixes)
        self.on_container_start: Callable[[dict[str, Any]], None] = lambda _: None
        """Called with the container's view each time one starts; a proof can look at every start this way."""
        self._api = api if not isinstance(api, str) else HttpNodeApi(api)
        self._random = Random(self.options.seed)
        self._process: _Process | None = None

    async def start(self) -> None:
        """kubelet begins: sockets in the plugin directory are wiped, the checkpoint is read, pods are admitted a little later."""
        if self._process is not None:
            raise HamiError(f"the kubelet double of {self.node} runs already: call restart()")
        self.paths.prepare()
        self._process = _Process(self, self._api, self._random)
        await self._process.start()

    async def stop(self) -> None:
        """The end of the sandbox node: kubelet, containers, API client."""
        await self.kill()
        await self.runtime.close()
        for path in (self.paths.kubelet_socket, self.paths.pod_resources_socket):
            path.unlink(missing_ok=True)
        self._api.close()

    async def kill(self) -> None:
        """kill -9 of kubelet: containers go on, nothing is written or said. `start()` brings it back."""
        process, self._process = self._process, None
        if process is not None:
            await process.kill()

    async def restart(self) -> None:
        """kill -9 of kubelet and a new start."""
        await self.kill()
        await self.start()

    async def reboot(self) -> None:
        """The machine goes down and comes back: no container, empty CDI directories (tmpfs), kubelet's state kept."""
        await self.kill()
        self.runtime.clear()
        self.paths.wipe_cdi()
        await self.start()

    def containers(self) -> list[dict[str, Any]]:
        """Every container of the runtime (latest attempt), with what it sees; see `runtime.container.Container.view`."""
        return [container.view() for container in self.runtime.containers()]

    def restart_container(self, uid: str, name: str, exit_code: int = 1) -> None:
        """The container's main process dies; kubelet does with it what the restart policy says. Raises HamiError when there is none."""
        if self.runtime.find(uid, name) is None:
            raise HamiError(f"node {self.node} has no container {name!r} of pod {uid}")
        self.runtime.exit(uid, name, exit_code)

    def registered(self) -> dict[str, int]:
        """Resource → number of healthy devices, as kubelet sees it now (the Node object follows later)."""
        return {} if self._process is None else {name: healthy for name, (_, healthy) in self._process.admission.manager.capacity().items()}

    @property
    def calls(self) -> tuple[Call, ...]:
        """(RPC, resource, ids) of every call to a plugin by this kubelet process."""
        return () if self._process is None else tuple(self._process.admission.registry.calls)


class _Process:
    """One run of kubelet."""

    def __init__(self, double: KubeletDouble, api: NodeApi, random: Random) -> None:
        self._double, self._api, self._options = double, api, double.options
        self.admission = DeviceAdmission(double.paths, double.options, random, lambda: {pod["metadata"]["uid"] for pod in self.active_pods()})
        self.admission.on_change = self._node_changed
        self._kit = Kit(api=api, runtime=double.runtime, admission=self.admission, options=double.options, random=random, on_start=self._started)
        self._workers: dict[str, PodWorker] = {}
        self._queue: asyncio.Queue[PodWorker] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[grpc.aio.Server] = []
        self._node_stirred = asyncio.Event()
        self._reported: set[str] = set()

    async def start(self) -> None:
        paths = self._double.paths
        self.admission.restore(self._double.runtime.running())
        paths.wipe_sockets()
        bucket = TokenBucket(self._options.pod_resources_qps, self._options.pod_resources_burst)
        lister = grpc.aio.server(interceptors=[RateLimit(bucket)])
        podresources.add_PodResourcesListerServicer_to_server(PodResources(self.admission, self.active_pods), lister)
        registration = grpc.aio.server()
        deviceplugin.add_RegistrationServicer_to_server(self.admission.registry, registration)
        await self._serve(lister, paths.pod_resources_socket)
        await self._serve(registration, paths.kubelet_socket)
        self._node_changed()
        self._spawn(self._report_node(), "node status")
        self._spawn(self._run_pods(), "pods")

    async def kill(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.admission.registry.close()
        for server in self._servers:
            await server.stop(None)
        for path in (self._double.paths.kubelet_socket, self._double.paths.pod_resources_socket):
            _leave_dead_socket(path)

    def active_pods(self) -> list[Mapping[str, Any]]:
        """Pods kubelet knows, admitted or not, that have not ended."""
        return [worker.pod for worker in self._workers.values() if not worker.terminated]

    async def _serve(self, server: grpc.aio.Server, path: Path) -> None:
        path.unlink(missing_ok=True)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        self._servers.append(server)

    async def _run_pods(self) -> None:
        """Sources are ready once the first batch of pods has been through admission, as in kubelet's sync loop."""
        await asyncio.sleep(self._options.admission_delay_s)
        mirror = self._api.mirror(self._double.node, self._on_pod, self._on_gone)
        self._spawn(mirror.run(), "pod watch")
        await mirror.synced.wait()
        self._remove_orphans()
        while True:
            if self._queue.empty():
                self.admission.manager.sources_ready = True
            await self._admit(await self._queue.get())

    def _remove_orphans(self) -> None:
        """Containers of pods that ended or vanished while no kubelet looked (kubelet's HandlePodCleanups)."""
        for uid in {container.config.pod_uid for container in self._double.runtime.containers()} - self._workers.keys():
            self._double.runtime.remove_pod(uid)

    def _on_pod(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if worker is not None:
            worker.update(pod)
        elif pod.get("status", {}).get("phase") not in TERMINAL or pod["metadata"].get("deletionTimestamp"):
            self._workers[uid] = worker = PodWorker(pod, self._kit)
            self._queue.put_nowait(worker)

    def _on_gone(self, uid: str) -> None:
        worker = self._workers.pop(uid, None)
        if worker is not None:
            worker.end()

    async def _admit(self, worker: PodWorker) -> None:
        """Admission is serial; what follows runs by itself."""
        if worker.uid not in self._workers:
            return
        name = f"pod {worker.pod['metadata']['name']}"
        if worker.pod["metadata"].get("deletionTimestamp"):
            self._spawn(worker.run(), name)
            return
        try:
            await self.admission.admit(worker.pod)
        except (AdmissionError, ValueError) as error:
            log.warning("%s on %s not admitted: %s", name, self._double.node, error)
            self._spawn(worker.reject(rejected_status("UnexpectedAdmissionError", f"Allocate failed due to {error}, which is unexpected")), name)
            return
        self._spawn(worker.run(), name)

    def _started(self, container: Container) -> None:
        self._double.on_container_start(container.view())

    def _node_changed(self) -> None:
        self._node_stirred.set()
        for worker in self._workers.values():
            worker.refresh()

    async def _report_node(self) -> None:
        """Changes reach the Node object after a lag; on a real node that is up to ten seconds."""
        name = self._double.node
        if self._options.register_node:
            await persist(lambda: self._api.ensure_node(_node_object(name, self._options.labels)), f"registration of node {name}")
        while True:
            try:
                async with asyncio.timeout(NODE_STATUS_PERIOD_S):
                    await self._node_stirred.wait()
            except TimeoutError:
                log.debug("node %s: nothing changed", name)
            self._node_stirred.clear()
            await asyncio.sleep(self._options.node_status_lag_s)
            await persist(self._send_node, f"status of node {name}")

    async def _send_node(self) -> None:
        self.admission.drop_expired()
        resources = self.admission.manager.capacity()
        await self._api.node_status(self._double.node, node_status(resources, self._options.capacity, self._reported - set(resources)))
        self._reported = set(resources)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=f"{self._double.node}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %s", task.get_name(), error, exc_info=error)


def _leave_dead_socket(path: Path) -> None:
    """A killed kubelet leaves its socket files behind, with nobody listening; gRPC's shutdown removes them."""
    if not path.exists():
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))


def _node_object(name: str, labels: Mapping[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}}, "spec": {}}
