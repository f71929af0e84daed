# SPDX-License-Identifier: Apache-2.0
"""Wires the rooms together: what vendors say becomes slots and an inventory, what kubelet asks becomes container edits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from msgspec import structs

from hami_framework.deviceplugin import identity, slots
from hami_framework.deviceplugin.arrival import Arrivals
from hami_framework.deviceplugin.cdi import CdiDirectory
from hami_framework.deviceplugin.fence import Overcommit
from hami_framework.deviceplugin.grants import PodBook, set_within
from hami_framework.deviceplugin.missed import Missed
from hami_framework.deviceplugin.own_status import OwnStatus, Seen, Statuses
from hami_framework.deviceplugin.plugin import SlotPlugin
from hami_framework.deviceplugin.podresources import PodResourcesClient
from hami_framework.deviceplugin.ports import Cluster, Workers
from hami_framework.deviceplugin.prestart import PreStart, Settings
from hami_framework.deviceplugin.publish import Publisher
from hami_framework.deviceplugin.reconcile import OnBypass, Reconciler
from hami_framework.deviceplugin.registration import Registrar
from hami_framework.deviceplugin.release import Releaser, sweep
from hami_framework.deviceplugin.sign_of_life import Leases, SignOfLife
from hami_framework.deviceplugin.single import say_ready
from hami_framework.deviceplugin.slots import Pool
from hami_framework.deviceplugin.state import Offered, StateFile
from hami_framework.enforcement.policy import Compute
from hami_framework.errors import ConfigError, FormatError
from hami_framework.local import ledger
from hami_framework.model import NEUTRAL, Device, Health, Inventory, PodGrant, Value

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.05
"""Changes that come together reach kubelet together."""
RESTART_SECONDS = 1.0
FIRST_SECONDS = 2.0
"""How long the pod watch waits for the first registration: resolving credentials takes a processor for a while."""
REFRESH_SECONDS = 1.0
"""How often the slots are looked at again without a cause: occupation changes which free slots stand for a failed device."""


class Places(Value, frozen=True, kw_only=True):
    """Where things are on this node."""

    node: str
    kubelet_directory: Path
    pod_resources_socket: Path
    cdi_directory: Path
    state_directory: Path
    boot: str
    limits_path: str = "/run/hami/limits.json"
    wait_seconds: float = 5.0
    grace_seconds: float = 30.0
    overcommit: Overcommit = Overcommit()
    compute: Compute = "fixed"
    on_bypass: OnBypass = "report"
    metrics_listen: str | None = None
    """`host:port`; None: no metrics are served."""
    register_by: Literal["socket", "watcher"] = "socket"
    """kubelet's own socket, or its plugin watcher."""

    @property
    def plugin_directory(self) -> Path:
        return self.kubelet_directory / "device-plugins"

    @property
    def checkpoint(self) -> Path:
        return self.plugin_directory / "kubelet_internal_checkpoint"


class WatchedCluster(Cluster, Leases, Statuses, Protocol):
    """A cluster that also keeps a pod book up to date."""

    async def watch(self, node: str, pods: PodBook) -> None: ...


class Registering(Protocol):
    """Serves one resource's plugin and keeps it known to kubelet (`registration`, `watcher`)."""

    plugin: SlotPlugin

    async def run(self) -> None: ...


class Agent:
    """The node agent. Create it inside a running loop; `changed` is to be called when vendors or devices change."""

    def __init__(self, places: Places, workers: Workers, cluster: WatchedCluster) -> None:
        self._places = places
        self._workers = workers
        self._cluster = cluster
        self._state = open_state(places.state_directory / "agent.json")
        self._cdi = CdiDirectory(places.cdi_directory)
        self._pods = PodBook()
        self._pod_resources = PodResourcesClient(str(places.pod_resources_socket))
        self._releaser = Releaser(
            state_directory=places.state_directory,
            state=self._state,
            pods=self._pods,
            pod_resources=self._pod_resources,
            workers=workers,
            cdi=self._cdi,
            grace_seconds=places.grace_seconds,
        )
        self._prestart = PreStart(
            Settings(
                node=places.node,
                boot=places.boot,
                state_directory=places.state_directory,
                checkpoint=places.checkpoint,
                wait_seconds=places.wait_seconds,
                overcommit=places.overcommit,
                limits_path=places.limits_path,
                compute=places.compute,
            ),
            pods=self._pods,
            pod_resources=self._pod_resources,
            workers=workers,
            state=self._state,
            cdi=self._cdi,
            releaser=self._releaser,
            cluster=cluster,
            minimum_count=lambda resource: self._pools[resource].minimum_count if resource in self._pools else 1,
        )
        self._reconciler = Reconciler(
            node=places.node,
            state_directory=places.state_directory,
            state=self._state,
            pods=self._pods,
            workers=workers,
            cluster=cluster,
            overcommit=places.overcommit,
            on_bypass=places.on_bypass,
            compute=places.compute,
        )
        self._arrivals = Arrivals(places.node, places.limits_path, state=self._state, pods=self._pods, cluster=cluster, on_change=self.changed)
        self._local: tuple[PodGrant, ...] = ()
        self._status = OwnStatus(places.node, cluster, self._seen)
        self._publisher = Publisher(cluster, self.inventory, self._status.write)
        self._sign = SignOfLife(places.node, cluster)
        self._pools: dict[str, Pool] = {}
        self._registrars: dict[str, Registering] = {}
        self._group: asyncio.TaskGroup | None = None
        self._poked = asyncio.Event()
        self._registered_once = asyncio.Event()
        self._complaints: dict[str, tuple[str, ...]] = {}

    def changed(self) -> None:
        """Vendors, devices or health changed: tell kubelet and the cluster."""
        self._poked.set()
        self._publisher.poke()

    def inventory(self) -> Inventory:
        """What this node has, as it is published."""
        vendors = sorted(self._workers.vendors.values(), key=lambda vendor: vendor.name)
        devices = (device for vendor in vendors for device in sorted(self._devices(vendor.name), key=lambda device: (device.vendor, device.index, device.id)))
        return Inventory(node=self._places.node, vendors=tuple(vendors), devices=tuple(devices), held=self._local)

    def _seen(self) -> Seen:
        return Seen(
            registered=self._registered_once.is_set(),
            fault=self._arrivals.fault,
            cdi="broken" if self._arrivals.fault else "applied" if self._arrivals.proven else "unknown",
            quarantined=[vendor.name for vendor in self._workers.vendors.values() if vendor.state == "quarantined"],
        )

    def _registered(self) -> None:
        if not self._registered_once.is_set():
            self._registered_once.set()
            self._publisher.poke()

    async def run(self) -> None:
        """Serve until cancelled. Raises ConfigError when a setting or the credentials are unusable."""
        serving = asyncio.ensure_future(self._serve())
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            await asyncio.gather(self._sign.stop(), self._status.stop())  # while all is still served: whoever comes now is the last
            serving.cancel()
            await serving

    async def _serve(self) -> None:
        sweep(self._cdi, self._state)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._refresh()
                self._count_local_runs()
                say_ready()
                group.create_task(_for_ever("slots", self._keep_fresh))
                group.create_task(_for_ever("releases", self._releaser.run))
                group.create_task(_for_ever("interceptors", self._reconciler.run))
                if self._places.metrics_listen is not None:
                    group.create_task(self._serve_metrics(self._places.metrics_listen))
                await self._first_registration()
                group.create_task(_for_ever("pod watch", lambda: self._cluster.watch(self._places.node, self._pods)))
                group.create_task(_for_ever("inventory", self._publisher.run))
                group.create_task(_for_ever("sign of life", self._sign.run))
                group.create_task(_for_ever("arrivals", self._arrivals.run))
                group.create_task(_for_ever("pods not admitted", Missed(self._pods, self._cluster).run))
        finally:
            await self._pod_resources.close()
            await self._state.durable()

    async def _serve_metrics(self, listen: str) -> None:
        from hami_framework.deviceplugin import metrics  # only where asked for: it costs 2 MB

        await metrics.serve(listen, self._places.node, self._reconciler)

    async def _first_registration(self) -> None:
        """Kubelet first: give it a moment before the slower things begin."""
        if not await set_within(self._registered_once, FIRST_SECONDS):
            log.warning("kubelet has not registered anything within %.0f s; going on without", FIRST_SECONDS)

    async def _keep_fresh(self) -> None:
        while True:
            if await set_within(self._poked, REFRESH_SECONDS):
                await asyncio.sleep(SETTLE_SECONDS)
            self._poked.clear()
            self._refresh()
            self._count_local_runs()
            await self._state.durable()

    def _count_local_runs(self) -> None:
        """What `hami run` gives away here is published, so that the scheduler sends no pod for it."""
        local = ledger.live_grants(self._places.state_directory, self._places.node)
        if local != self._local:
            self._local = local
            self._publisher.poke()

    def _refresh(self) -> None:
        """Bring every resource's slots up to date, and register the new ones."""
        vendors = self._workers.vendors
        states = {name: info.state for name, info in vendors.items()}
        found = slots.pools(vendors.values(), {name: self._devices(name) for name in vendors})
        self._complain(slots.contested(vendors.values()))
        offered = ((one.resource, one.vendor, one.slots) for one in self._state.offered)
        self._pools = slots.with_memory(found, offered, states)
        if "starting" not in states.values():
            counted = (Offered(resource=pool.resource, vendor=pool.vendor, slots=pool.total) for pool in self._pools.values())
            self._state.remember(tuple(sorted(counted, key=lambda one: one.resource)))
        occupied = self._occupied()
        for resource in self._worth_registering():
            self._offer(self._pools.get(resource, Pool(resource=resource, vendor="")), occupied)

    def _devices(self, vendor: str) -> Sequence[Device]:
        """As the vendor says; none is well where containers would not get what they are granted."""
        devices = self._workers.devices(vendor)
        if not self._arrivals.fault:
            return devices
        return [structs.replace(device, health=Health(state="unhealthy", reason=self._arrivals.fault)) for device in devices]

    def _worth_registering(self) -> set[str]:
        """Names that this node has, or had, devices for. Where a vendor has none, its names do not clutter the node's capacity."""
        return {name for name, pool in self._pools.items() if pool.total or name == NEUTRAL.count} | self._registrars.keys()

    def _offer(self, pool: Pool, occupied: Mapping[str, frozenset[str]]) -> None:
        listed = slots.slots(pool, occupied)
        try:
            slots.check_size(pool, listed)
        except ConfigError as error:
            self._complain({pool.resource: (str(error),)})
            return
        registrar = self._registrars.get(pool.resource)
        if registrar is None:
            registrar = self._registrar(SlotPlugin(pool.resource, self._cdi, self._prestart))
            registrar.plugin.offer(listed)
            self._registrars[pool.resource] = registrar
            if self._group is not None:
                self._group.create_task(_for_ever(f"registration of {pool.resource}", registrar.run))
        registrar.plugin.offer(listed)

    def _registrar(self, plugin: SlotPlugin) -> Registering:
        if self._places.register_by == "watcher":
            from hami_framework.deviceplugin.watcher import WatchedRegistrar  # only where asked for: its messages cost memory

            return WatchedRegistrar(plugin, self._places.kubelet_directory / "plugins_registry", self._registered)
        return Registrar(plugin, self._places.plugin_directory, self._registered)

    def _occupied(self) -> dict[str, frozenset[str]]:
        """Slots in use. Those that kubelet has given away and we have not prepared yet count as in use by unknown devices."""
        occupied = self._state.occupied()
        if all(pool.total == pool.well for pool in self._pools.values()):
            return occupied
        try:
            given = identity.read_checkpoint(self._places.checkpoint.read_bytes())
        except (OSError, FormatError) as error:
            log.debug("kubelet's checkpoint is not readable now: %s", error)
            return occupied
        return {slot: frozenset[str]() for entry in given if self._pods.fate(entry.pod_uid) != "ended" for slot in entry.ids} | occupied

    def _complain(self, problems: Mapping[str, tuple[str, ...]]) -> None:
        """Log each problem with a resource once."""
        for resource, parties in problems.items():
            if self._complaints.get(resource) != parties:
                self._complaints[resource] = parties
                log.error("resource %s is not registered: %s", resource, parties[0] if len(parties) == 1 else f"claimed by {' and '.join(parties)}")


def open_state(path: Path) -> StateFile:
    """The state of the agent before us. A damaged file is set aside, loudly: kubelet will ask again for every container that starts."""
    try:
        return StateFile.load(path)
    except FormatError as error:
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        path.rename(aside)
        log.error("%s; kept as %s; starting empty: vendor resources of containers that ended meanwhile must be released by hand", error, aside)
        return StateFile(path)


async def _for_ever(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """One loop of the agent that fails is logged and begun again; the others go on. A wrong setting ends the agent."""
    while True:
        try:
            await work()
        except ConfigError:
            raise
        except Exception:
            log.exception("%s failed; beginning again in %.0f s", name, RESTART_SECONDS)
        await asyncio.sleep(RESTART_SECONDS)
