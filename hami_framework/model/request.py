# SPDX-License-Identifier: Apache-2.0
"""What a pod asks for, freed of Kubernetes' spelling."""

from __future__ import annotations

from typing import Literal

from hami_framework.model.base import Value
from hami_framework.model.device import DeviceClass
from hami_framework.model.enforcement import Isolation
from hami_framework.model.quantity import percent_of

ContainerKind = Literal["init", "sidecar", "app"]


class DeviceRequest(Value, frozen=True, kw_only=True):
    """`count` devices with these amounts **each**. No amount at all asks for whole devices, exclusively.

    Memory without cores sets no compute limit; cores without memory give all memory of the device.
    """

    count: int = 1
    memory_bytes: int | None = None
    memory_percent: int | None = None
    core_percent: int | None = None
    profile: str | None = None
    """A named partition profile (`3g.20gb`); then the amounts are the profile's."""
    mode: str | None = None
    """A mode the user insists on (`share`, `mig`, …); None: the engine chooses."""
    priority: int | None = None

    @property
    def whole(self) -> bool:
        """True when whole devices are asked, exclusively."""
        no_amounts = self.memory_bytes is None and self.memory_percent is None and self.core_percent is None
        return self.profile is None and (no_amounts or (self.core_percent == 100 and self.memory_bytes is None and self.memory_percent in (None, 100)))

    def resolved(self, device_class: DeviceClass) -> DeviceRequest:
        """The same request for one class of device: a percentage of memory becomes bytes of that device."""
        if self.memory_percent is None:
            return self
        memory_bytes = percent_of(device_class.capacity.memory_bytes, self.memory_percent)
        return DeviceRequest(
            count=self.count, memory_bytes=memory_bytes, core_percent=self.core_percent, profile=self.profile, mode=self.mode, priority=self.priority
        )


class Selector(Value, frozen=True, kw_only=True):
    """Which devices the user will have: vendors, type names and ids, all empty for "any"."""

    vendors: tuple[str, ...] = ()
    resource_types: tuple[str, ...] = ()
    """Types that the resource name itself stands for (`ResourceNames.types`); holds beside `use_types`, not instead of it."""
    use_types: tuple[str, ...] = ()
    nouse_types: tuple[str, ...] = ()
    use_ids: tuple[str, ...] = ()
    nouse_ids: tuple[str, ...] = ()

    def accepts_type(self, device_class: DeviceClass) -> bool:
        """True when devices of this class answer to what is wanted and to nothing that is not."""

        def answers(types: tuple[str, ...]) -> bool:
            return any(device_class.answers_to(name) for name in types)

        return all(answers(types) for types in (self.resource_types, self.use_types) if types) and not answers(self.nouse_types)


class ResourceRequest(Value, frozen=True, kw_only=True):
    """One count resource in one container's limits: the devices behind it, and where they may come from."""

    resource: str
    """The resource name kubelet will call the node agent for, e.g. `nvidia.com/gpu` or `hami.io/accelerator`."""
    request: DeviceRequest
    selector: Selector = Selector()


class ContainerRequest(Value, frozen=True, kw_only=True):
    """Everything one container asks for, in the order written."""

    name: str
    kind: ContainerKind = "app"
    requests: tuple[ResourceRequest, ...] = ()


class PodRequest(Value, frozen=True, kw_only=True):
    """What a pod asks for. `containers` keeps start-up order: init containers and sidecars first, as Kubernetes starts them."""

    uid: str
    namespace: str
    name: str
    containers: tuple[ContainerRequest, ...]
    node_policy: str | None = None
    device_policy: str | None = None
    isolation: Isolation = Isolation()
    """The least isolation the pod accepts."""
    priority: int = 0
    """`spec.priority`, for preemption."""

    def phases(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the containers that run at the same time, one tuple per start-up phase.

        Kubernetes' own rule (sidecar containers, KEP-753): init containers run one by one beside every sidecar
        started before them; then all sidecars and app containers run together.
        """
        running: list[int] = []
        phases: list[tuple[int, ...]] = []
        for index, container in enumerate(self.containers):
            if container.kind == "init":
                phases.append((*running, index))
            elif container.kind == "sidecar":
                running.append(index)
        phases.append((*running, *(index for index, container in enumerate(self.containers) if container.kind == "app")))
        return tuple(phases)

    @property
    def empty(self) -> bool:
        """True when no container asks for a device."""
        return not any(container.requests for container in self.containers)
