# SPDX-License-Identifier: Apache-2.0
"""kubelet's device manager as a pure state machine: what is healthy, what is allocated, which ids a container gets.

Follows `devicesToAllocate` of kubelet 1.36 (pkg/kubelet/cm/devicemanager/manager.go) step by step, with the Topology
Manager's policy `none`. No I/O: the two questions to a plugin (GetPreferredAllocation, Allocate) are asked by
`admission` between `plan`, `choose` and `record`. Go's random map order is a seeded shuffle here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from random import Random

from hami_framework.errors import HamiError
from hami_framework.sandbox.kubelet.checkpoint import NO_TOPOLOGY, Checkpoint, DeviceRecord

Key = tuple[str, str, str]
"""(pod UID, container, resource)."""


class AdmissionError(HamiError):
    """Why kubelet cannot give a container its devices, in kubelet's own words."""


@dataclass(frozen=True, kw_only=True)
class PluginDevice:
    """One device of a ListAndWatch message."""

    id: str
    healthy: bool
    numa: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is left to choose for one (container, resource)."""

    resource: str
    required: int
    reused: tuple[str, ...]
    """Ids taken over from finished init containers of the pod; nothing is asked about them."""
    available: frozenset[str] = frozenset()
    """Healthy and free; empty when `reused` is enough."""

    @property
    def ask_preferred(self) -> bool:
        return len(self.reused) < self.required


@dataclass
class DeviceManager:
    """The state of `ManagerImpl`. All methods are synchronous; admissions must not be interleaved (kubelet's are not)."""

    random: Random
    sources_ready: bool = True
    """False while kubelet starts: running containers then need nothing, and no id is freed."""
    running: frozenset[tuple[str, str]] = frozenset()
    """(pod UID, container) that ran when kubelet started."""
    healthy: dict[str, set[str]] = field(default_factory=dict)
    unhealthy: dict[str, set[str]] = field(default_factory=dict)
    allocated: dict[str, set[str]] = field(default_factory=dict)
    records: dict[Key, DeviceRecord] = field(default_factory=dict)
    devices: dict[str, dict[str, PluginDevice]] = field(default_factory=dict)

    def restore(self, checkpoint: Checkpoint) -> None:
        """After a start: the records are back, every registered resource exists with no device until it registers again."""
        self.records = {(record.pod_uid, record.container, record.resource): record for record in checkpoint.records}
        self.rebuild_allocated()
        for resource in checkpoint.registered:
            self.healthy[resource] = set()
            self.unhealthy[resource] = set()

    def knows(self, resource: str) -> bool:
        """`isDevicePluginResource`: any other resource in a pod's limits is silently none of the device manager's business."""
        return resource in self.healthy or resource in self.allocated

    def update(self, resource: str, devices: Iterable[PluginDevice]) -> None:
        """A ListAndWatch message: the *complete* list; a device that is not in it is gone."""
        known = {device.id: device for device in devices}
        self.devices[resource] = known
        self.healthy[resource] = {device.id for device in known.values() if device.healthy}
        self.unhealthy[resource] = {device.id for device in known.values() if not device.healthy}

    def mark_unhealthy(self, resource: str) -> None:
        """The plugin's stream ended: all of its devices are unhealthy at once."""
        self.unhealthy.setdefault(resource, set()).update(self.healthy.get(resource, ()))
        self.healthy[resource] = set()

    def forget(self, resource: str) -> None:
        """The plugin has been away longer than the grace period: the resource leaves capacity and allocatable."""
        self.healthy.pop(resource, None)
        self.unhealthy.pop(resource, None)
        self.devices.pop(resource, None)

    def capacity(self) -> dict[str, tuple[int, int]]:
        """Resource → (capacity: all devices, allocatable: healthy ones)."""
        return {name: (len(ids) + len(self.unhealthy.get(name, ())), len(ids)) for name, ids in self.healthy.items()}

    def registered(self) -> dict[str, list[str]]:
        """What the checkpoint keeps of the plugins: resource → healthy ids."""
        return {resource: self.shuffled(ids) for resource, ids in self.healthy.items()}

    def collect(self, active: Collection[str]) -> None:
        """Free the ids of pods that are no longer active. Lazy: kubelet calls it at admissions and at pod-resources List."""
        gone = {uid for uid, _, _ in self.records} - set(active)
        if not self.sources_ready or not gone:
            return
        self.records = {key: record for key, record in self.records.items() if key[0] not in gone}
        self.rebuild_allocated()

    def rebuild_allocated(self) -> None:
        """`allocatedDevices` is derived from the records; a failed Allocate leaves it to be derived again."""
        self.allocated = {}
        for record in self.records.values():
            self.allocated.setdefault(record.resource, set()).update(record.ids)

    def ids(self, uid: str, container: str, resource: str) -> frozenset[str]:
        """The ids recorded for a container; empty when there are none."""
        record = self.records.get((uid, container, resource))
        return record.ids if record else frozenset()

    def container_records(self, uid: str, container: str) -> list[DeviceRecord]:
        return [record for key, record in self.records.items() if key[:2] == (uid, container)]

    def plan(self, uid: str, container: str, resource: str, required: int, reusable: Collection[str]) -> Plan | None:
        """What must be chosen; None when nothing is to be done. Raises AdmissionError in the order kubelet checks."""
        recorded = self.ids(uid, container, resource)
        if recorded and len(recorded) != required:
            raise AdmissionError(f'pod "{uid}" container "{container}" changed request for resource "{resource}" from {len(recorded)} to {required}')
        if not self.sources_ready and (uid, container) in self.running:
            return None
        self._check_health(resource, recorded)
        if recorded or required == 0:
            return None
        reused = tuple(self.shuffled(reusable)[:required])
        if len(reused) == required:
            return Plan(resource=resource, required=required, reused=reused)
        available = frozenset(self.healthy[resource] - self.allocated.get(resource, set()))
        needed = required - len(reused)
        if len(available) < needed:
            raise AdmissionError(f"requested number of devices unavailable for {resource}. Requested: {needed}, Available: {len(available)}")
        return Plan(resource=resource, required=required, reused=reused, available=available)

    def choose(self, plan: Plan, preferred: Collection[str] = ()) -> tuple[str, ...]:
        """The ids, now marked as in use: reused ones, then preferred ones that are available, then any."""
        chosen = list(plan.reused)
        for pool in (plan.available & set(preferred), plan.available):
            chosen += self.shuffled(pool - set(chosen))[: plan.required - len(chosen)]
        self.allocated.setdefault(plan.resource, set()).update(chosen)
        return tuple(chosen)

    def record(self, uid: str, container: str, resource: str, ids: Iterable[str], response: bytes) -> DeviceRecord:
        """Remember an answered Allocate."""
        by_numa: dict[int, list[str]] = {}
        known = self.devices.get(resource, {})
        for device in ids:
            for numa in (known[device].numa if device in known else ()) or (NO_TOPOLOGY,):
                by_numa.setdefault(numa, []).append(device)
        record = DeviceRecord(
            pod_uid=uid, container=container, resource=resource, devices={numa: tuple(found) for numa, found in by_numa.items()}, response=response
        )
        self.records[uid, container, resource] = record
        return record

    def shuffled(self, names: Iterable[str]) -> list[str]:
        """Go's map order."""
        order = sorted(names)
        self.random.shuffle(order)
        return order

    def _check_health(self, resource: str, recorded: frozenset[str]) -> None:
        if resource not in self.healthy:
            raise AdmissionError(f"cannot allocate unregistered device {resource}")
        if not self.healthy[resource]:
            raise AdmissionError(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        if not recorded <= self.healthy[resource]:
            raise AdmissionError(f"previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}")


@dataclass
class ReusePool:
    """`devicesToReuse` of the pod in admission: resource → ids of its finished init containers."""

    ids: dict[str, set[str]] = field(default_factory=dict)

    def of(self, resource: str) -> frozenset[str]:
        return frozenset(self.ids.get(resource, ()))

    def give(self, records: Iterable[DeviceRecord]) -> None:
        """A non-restartable init container will have ended: whoever comes next may have its ids."""
        for record in records:
            self.ids.setdefault(record.resource, set()).update(record.ids)

    def take(self, records: Iterable[DeviceRecord]) -> None:
        """A sidecar or app container keeps what it got."""
        for record in records:
            self.ids.get(record.resource, set()).difference_update(record.ids)
