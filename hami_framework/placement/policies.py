# SPDX-License-Identifier: Apache-2.0
"""Placement policies: pure functions with a name, at node and at device level.

A policy ranks, and may insist on idle devices; it never decides what fits. Packages add policies through the hook
`hami_policies`; a name that is not known is a refusal (`policy-unknown`), never a silent fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hami_framework.errors import ConfigError
from hami_framework.model import Device

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NodeView:
    """What is promised on many nodes at once: rows memory, cores, shares; one column per node."""

    used: Floats
    capacity: Floats

    @property
    def fullness(self) -> Floats:
        """Mean of the three promised fractions of each node, 0 … 1; 0 for a node without devices."""
        share = np.divide(self.used, self.capacity, out=np.zeros_like(self.used), where=self.capacity > 0)
        mean: Floats = share.sum(axis=0) / len(share)
        return mean


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One candidate device as a device policy sees it."""

    device: Device
    fullness: float
    """Mean of the promised fractions of memory, cores and shares, 0 … 1."""
    owners: int
    """How many owners hold something on it."""


NodeScore = Callable[[NodeView], Floats]
DeviceScore = Callable[[DeviceView], float]
SetScore = Callable[[Sequence[Device]], float]


def _packed_nodes(view: NodeView) -> Floats:
    return view.fullness


def _empty_nodes(view: NodeView) -> Floats:
    return 1.0 - view.fullness


def _packed_devices(view: DeviceView) -> float:
    return view.fullness


def _empty_devices(view: DeviceView) -> float:
    return 1.0 - view.fullness


@dataclass(frozen=True, slots=True)
class Policy:
    """A named way to rank; higher is better everywhere, and equals go to the lowest name or index.

    `node` scores many nodes at once, `device` one device of a node, `together` a set of devices that one request
    would get (None: a set is as good as its devices). `idle_only` shuts out devices on which anybody holds anything.
    """

    name: str
    node: NodeScore = _packed_nodes
    device: DeviceScore = _packed_devices
    together: SetScore | None = None
    idle_only: bool = False
    aliases: tuple[str, ...] = ()
    """Other spellings in the wild."""


# Only the order of magnitude matters: a direct link beats any path over PCIe, and PCIe beats the socket interconnect
# (the levels of `nvidia-smi topo` and their counterparts). Lanes add up for the direct kinds.
_DIRECT = frozenset({"nvlink", "nvswitch", "hccs", "sio", "mlulink", "xgmi"})
_PATH_SCORE: Mapping[str, float] = MappingProxyType(
    {"same-board": 60.0, "pcie-switch": 50.0, "pcie-multi-switch": 40.0, "host-bridge": 30.0, "numa": 20.0, "system": 10.0}
)


def link_score(devices: Sequence[Device]) -> float:
    """Sum over all pairs of the best link between them: 100 per lane of a direct link, 10 … 60 for a path over PCIe."""
    chosen = {device.id for device in devices}
    best: dict[frozenset[str], float] = {}
    for device in devices:
        for link in device.links:
            if link.peer in chosen and link.peer != device.id:
                pair = frozenset((device.id, link.peer))
                value = 100.0 * link.lanes if link.kind in _DIRECT else _PATH_SCORE[link.kind]
                best[pair] = max(best.get(pair, 0.0), value)
    return sum(best.values())


def numa_score(devices: Sequence[Device]) -> float:
    """Minus the number of NUMA nodes that the set spans; a device that does not tell its node counts as one of its own."""
    return -float(len({(device.numa_node, device.id if device.numa_node is None else "") for device in devices}))


BUILT_IN: tuple[Policy, ...] = (
    Policy(name="binpack"),
    Policy(name="spread", node=_empty_nodes, device=_empty_devices),
    Policy(name="mutex", node=_empty_nodes, device=_empty_devices, idle_only=True),
    Policy(name="topology", together=link_score, aliases=("topology-aware",)),
    Policy(name="numa", together=numa_score, aliases=("numa-bind",)),
)


def by_name(extra: Iterable[Policy] = (), needed: Iterable[str] = ()) -> Mapping[str, Policy]:
    """All policies by name and alias; raises `ConfigError` when two claim one name or one that is `needed` is missing."""
    found: dict[str, Policy] = {}
    for policy in (*BUILT_IN, *extra):
        for name in (policy.name, *policy.aliases):
            if name in found:
                raise ConfigError(f"placement policy {name!r} is defined twice; give the added one another name")
            found[name] = policy
    for name in needed:
        if name not in found:
            raise ConfigError(f"unknown placement policy {name!r}; use one of: {', '.join(sorted(found))}")
    return MappingProxyType(found)
