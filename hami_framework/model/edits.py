# SPDX-License-Identifier: Apache-2.0
"""What a container must see: the subset of CDI's containerEdits that hooks may use.

Source of the field meanings: the Container Device Interface specification 1.1.0, `containerEdits`.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from hami_framework.model.base import Value

T = TypeVar("T")


class Mount(Value, frozen=True, kw_only=True):
    """A bind mount; read-only unless said otherwise."""

    host_path: str
    container_path: str
    read_only: bool = True


class DeviceNode(Value, frozen=True, kw_only=True):
    """A device file made visible; `host_path` only where it differs from `path`."""

    path: str
    host_path: str | None = None
    permissions: str = "rw"


class Hook(Value, frozen=True, kw_only=True):
    """An OCI hook, run on the host."""

    name: Literal["createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    path: str
    args: tuple[str, ...] = ()


class ContainerEdits(Value, frozen=True, kw_only=True):
    """Environment, mounts, device nodes and hooks for one container."""

    env: dict[str, str] = msgspec.field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    hooks: tuple[Hook, ...] = ()
    additional_gids: tuple[int, ...] = ()

    def merged(self, other: ContainerEdits) -> ContainerEdits:
        """Both edits; the same thing twice is once. Raises ValueError when they contradict each other."""
        for key in self.env.keys() & other.env.keys():
            if self.env[key] != other.env[key]:
                raise ValueError(f"two edits set {key}: {self.env[key]!r} and {other.env[key]!r}")
        return ContainerEdits(
            env=self.env | other.env,
            mounts=_union(self.mounts, other.mounts),
            device_nodes=_union(self.device_nodes, other.device_nodes),
            hooks=_union(self.hooks, other.hooks),
            additional_gids=_union(self.additional_gids, other.additional_gids),
        )

    @property
    def empty(self) -> bool:
        return not (self.env or self.mounts or self.device_nodes or self.hooks or self.additional_gids)


def _union(first: tuple[T, ...], second: tuple[T, ...]) -> tuple[T, ...]:
    return first + tuple(item for item in second if item not in first)
