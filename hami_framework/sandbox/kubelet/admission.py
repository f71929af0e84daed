# SPDX-License-Identifier: Apache-2.0
"""Where the device manager meets its plugins: device allocation at admission, PreStartContainer at container start.

`allocateContainerResources` and `GetDeviceRunContainerOptions` of kubelet 1.36. Admission is serial, as kubelet's sync
loop is; container starts are concurrent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from random import Random
from typing import Any

from hami_framework.kubelet_api import deviceplugin_v1beta1_pb2 as api
from hami_framework.sandbox.kubelet import checkpoint
from hami_framework.sandbox.kubelet.devices import AdmissionError, DeviceManager, PluginDevice, ReusePool
from hami_framework.sandbox.kubelet.names import device_limits, whole_units
from hami_framework.sandbox.kubelet.options import KubeletOptions
from hami_framework.sandbox.kubelet.paths import KubeletPaths
from hami_framework.sandbox.kubelet.registration import PluginRegistry

Pod = Mapping[str, Any]


class DeviceAdmission:
    """One kubelet process's device manager with its registry and checkpoint file."""

    def __init__(self, paths: KubeletPaths, options: KubeletOptions, random: Random, active: Callable[[], Collection[str]]) -> None:
        self.manager = DeviceManager(random=random, sources_ready=False)
        self.registry = PluginRegistry(paths.plugin_dir, self, options)
        self.on_change: Callable[[], None] = lambda: None
        self._paths = paths
        self._options = options
        self._active = active
        self._serial = asyncio.Lock()

    def restore(self, running: Iterable[tuple[str, str]]) -> None:
        """A kubelet process begins: records and resource names come from the checkpoint, devices from nowhere yet."""
        self.manager.running = frozenset(running)
        saved = checkpoint.read(self._paths.checkpoint)
        self.manager.restore(saved)
        self.registry.restore(saved.registered)

    def update(self, resource: str, devices: Iterable[PluginDevice]) -> None:
        """A ListAndWatch message arrived; kubelet rewrites its checkpoint for each."""
        self.manager.update(resource, devices)
        self._save()
        self.on_change()

    def mark_unhealthy(self, resource: str) -> None:
        """The plugin's stream ended."""
        self.manager.mark_unhealthy(resource)
        self.on_change()

    def drop_expired(self) -> None:
        """Lazily forget resources whose plugin has been gone too long (kubelet does this when it reports the node)."""
        for resource, endpoint in tuple(self.registry.endpoints.items()):
            if endpoint.gone_for(self._options.endpoint_stop_grace_s):
                del self.registry.endpoints[resource]
                self.manager.forget(resource)
                self._save()

    def collect(self, admitting: str | None = None) -> None:
        """Free the ids of pods that are no longer active; the pod in admission counts as active."""
        self.manager.collect({*self._active(), *((admitting,) if admitting else ())})

    async def admit(self, pod: Pod) -> None:
        """Give every container its devices, init containers first. Raises AdmissionError: the pod is to fail."""
        async with self._serial:
            reuse = ReusePool()
            for container in pod["spec"].get("initContainers") or ():
                await self._allocate(pod, container, reuse)
                records = self.manager.container_records(pod["metadata"]["uid"], container["name"])
                if container.get("restartPolicy") == "Always":
                    reuse.take(records)
                else:
                    reuse.give(records)
            for container in pod["spec"]["containers"]:
                await self._allocate(pod, container, reuse)
                reuse.take(self.manager.container_records(pod["metadata"]["uid"], container["name"]))

    async def prepare(self, pod: Pod, container: Mapping[str, Any]) -> list[api.ContainerAllocateResponse]:
        """Before a container is created: PreStartContainer for each resource, then the cached answers of Allocate.

        Raises AdmissionError: the container waits as CreateContainerConfigError and is tried again.
        """
        uid, name = pod["metadata"]["uid"], container["name"]
        missing = False
        for resource in self._device_resources(container):
            await self._pre_start(uid, name, resource)
            missing = missing or not self.manager.ids(uid, name, resource)
        if missing:
            async with self._serial:
                await self._allocate(pod, container, ReusePool())
        return [api.ContainerAllocateResponse.FromString(record.response) for record in self.manager.container_records(uid, name)]

    def _device_resources(self, container: Mapping[str, Any]) -> dict[str, int]:
        """Resource → count of what is the device manager's, in Go's map order. Other extended resources are ignored."""
        limits = {name: amount for name, amount in device_limits(container).items() if self.manager.knows(name)}
        counts = {name: whole_units(limits[name]) for name in self.manager.shuffled(limits)}
        return {name: count for name, count in counts.items() if count > 0}

    async def _allocate(self, pod: Pod, container: Mapping[str, Any], reuse: ReusePool) -> None:
        uid, name = pod["metadata"]["uid"], container["name"]
        changed = False
        resources = self._device_resources(container)
        if resources:
            self.collect(uid)
        for resource, required in resources.items():
            changed = await self._allocate_resource((uid, name, resource), required, reuse.of(resource)) or changed
        if changed:
            self._save()

    async def _allocate_resource(self, key: tuple[str, str, str], required: int, reusable: Collection[str]) -> bool:
        uid, name, resource = key
        plan = self.manager.plan(uid, name, resource, required, reusable)
        if plan is None:
            return False
        try:
            endpoint = self.registry.endpoints.get(resource)
            if endpoint is None:
                raise AdmissionError(f"unknown Device Plugin {resource}")
            preferred: tuple[str, ...] = ()
            if plan.ask_preferred and endpoint.preferred_available:
                available = self.manager.shuffled(plan.available | set(plan.reused))
                preferred = await endpoint.live().preferred(available, self.manager.shuffled(plan.reused), required)
            ids = self.manager.choose(plan, preferred)
            response = await endpoint.live().allocate(ids)
        except AdmissionError:
            self.manager.rebuild_allocated()
            raise
        self.manager.record(uid, name, resource, ids, response)
        return True

    async def _pre_start(self, uid: str, container: str, resource: str) -> None:
        endpoint = self.registry.endpoints.get(resource)
        if endpoint is None:
            raise AdmissionError(f"endpoint not found in cache for a registered resource: {resource}")
        if not endpoint.pre_start_required:
            return
        ids = self.manager.ids(uid, container, resource)
        if not ids:
            raise AdmissionError(f"no devices found allocated in local cache for pod {uid}, container {container}, resource {resource}")
        await endpoint.live().pre_start(self.manager.shuffled(ids), self._options.prestart_deadline_s)

    def _save(self) -> None:
        checkpoint.write(self._paths.checkpoint, checkpoint.encode(self.manager.records.values(), self.manager.registered()))
