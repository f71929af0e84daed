# SPDX-License-Identifier: Apache-2.0
"""What the agent needs of its neighbours, as small protocols: the rooms behind them can be replaced in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hami_framework.deviceplugin.identity import Listed
from hami_framework.model import ContainerEdits, Device, Enforcement, Grant, Rejection, Usage, VendorInfo

Json = Mapping[str, Any]


class Workers(Protocol):
    """The vendors' hooks, each in its own process (`hami_framework.worker.WorkerPool`). Calls raise PluginError."""

    @property
    def vendors(self) -> Mapping[str, VendorInfo]: ...

    def devices(self, vendor: str) -> Sequence[Device]: ...

    async def allocate(self, vendor: str, grant: Grant) -> ContainerEdits: ...

    async def enforce(self, vendor: str, grant: Grant) -> Enforcement: ...

    async def release(self, vendor: str, grant: Grant) -> None: ...

    async def usage(self, vendor: str) -> Sequence[Usage]: ...


class Cluster(Protocol):
    """The API server, as far as the node agent has business there. Calls raise Unavailable or `kube.errors.ApiError`."""

    async def pod(self, namespace: str, name: str) -> Json | None:
        """The pod of this name as the API server has it now, None when there is none."""
        ...

    async def node(self, name: str) -> Json | None:
        """The node's own object, None when there is none."""
        ...

    async def inventory(self, node: str) -> Json | None:
        """The node's published inventory object, None when there is none."""
        ...

    async def create_inventory(self, body: Json) -> None: ...

    async def replace_inventory(self, node: str, body: Json) -> None: ...

    async def report(self, pod: Json, rejection: Rejection) -> None:
        """Tell the pod's owner, as an event."""
        ...

    async def warn(self, pod: Json, reason: str, message: str, *, name: str = "") -> None:
        """Another warning to the pod's owner, as an event; `reason` in one word, as kubectl shows it. With a `name` of its own it is said once for all."""
        ...

    async def evict(self, pod: Json) -> None:
        """Have the pod ended, as far as its disruption budget allows. Raises KubeError."""
        ...


class PodResources(Protocol):
    """kubelet's pod-resources, one shared snapshot for all who ask at once."""

    async def snapshot(self) -> tuple[Listed, ...]:
        """Every container's ids as of now or later. Raises Unavailable."""
        ...
