# SPDX-License-Identifier: Apache-2.0
"""The decision: which devices, how much of each, for which container of which owner."""

from __future__ import annotations

from typing import Literal

from hami_framework.model.base import Value
from hami_framework.model.offer import Offer
from hami_framework.model.request import ContainerKind

OwnerKind = Literal["pod", "claim", "local"]


class Owner(Value, frozen=True, kw_only=True):
    """Who holds a grant. `uid` is the identity; the names are for people."""

    kind: OwnerKind
    uid: str
    namespace: str = ""
    name: str = ""
    share: str | None = None
    """The share id within a claim, where one claim holds several."""


class DeviceGrant(Value, frozen=True, kw_only=True):
    """One device (or part of it) given to one container. Complete: the node recomputes nothing."""

    device_id: str
    device_name: str
    vendor: str
    resource: str
    """The resource in the container's limits that this answers."""
    offer: Offer
    start: int | None = None
    """Where the interval begins, for a placed offer."""
    units: str | None = None
    """The compute units as a hexadecimal bitmap (bit 0 = unit 0), for a bitmap offer, e.g. "0x3fffffff"."""


class ContainerGrant(Value, frozen=True, kw_only=True):
    """What one container was given."""

    container: str
    kind: ContainerKind = "app"
    devices: tuple[DeviceGrant, ...] = ()


class PodGrant(Value, frozen=True, kw_only=True):
    """Everything one owner was given on one node, as it travels in the annotation `hami.io/grant`."""

    owner: Owner
    node: str
    containers: tuple[ContainerGrant, ...]
    revision: int = 1
    """Counts up when a live grant is changed (a limit lowered)."""

    def container(self, name: str) -> ContainerGrant | None:
        """What the container of this name was given, or None."""
        return next((container for container in self.containers if container.container == name), None)

    @property
    def phases(self) -> tuple[tuple[ContainerGrant, ...], ...]:
        """Containers that hold their devices at the same time, one tuple per start-up phase (KEP-753)."""
        running: list[ContainerGrant] = []
        phases: list[tuple[ContainerGrant, ...]] = []
        for container in self.containers:
            if container.kind == "init":
                phases.append((*running, container))
            elif container.kind == "sidecar":
                running.append(container)
        phases.append((*running, *(container for container in self.containers if container.kind == "app")))
        return tuple(phases)


class Grant(Value, frozen=True, kw_only=True):
    """What a vendor's node hooks are given: the part of one container's grant that concerns that vendor."""

    owner: Owner
    node: str
    container: str
    devices: tuple[DeviceGrant, ...]
    revision: int = 1
    directory: str = ""
    """A directory of the core's, private to this container, that the hooks may put files in (absolute path)."""
