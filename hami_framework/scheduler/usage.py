# SPDX-License-Identifier: Apache-2.0
"""What is promised, as the JSON of /state: per node and device, by whom, how firmly, and what can no longer be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hami_framework.model import Inventory, PodGrant, Value
from hami_framework.placement.engine import Engine
from hami_framework.placement.reports import OverCommitment, Promise


class NodeState(Value, frozen=True, kw_only=True):
    """One node's devices, by generation of its inventory."""

    node: str
    generation: int
    agent: str
    """`alive`, `silent`, or `unknown`: its agent gives no signs of life (an older release), the inventory alone speaks for it."""
    devices: tuple[Promise, ...]


class OwnerState(Value, frozen=True, kw_only=True):
    """Who holds something, where, and how firmly: `tentative` (ranked), `nominated` (others make room), `reserved` (binding under way), `committed`."""

    uid: str
    namespace: str
    name: str
    node: str
    state: str


class State(Value, frozen=True, kw_only=True):
    """The whole answer. Devices name their owners by UID."""

    nodes: tuple[NodeState, ...]
    owners: tuple[OwnerState, ...]
    over_commitments: tuple[OverCommitment, ...]


def promised(engine: Engine, inventories: Iterable[Inventory], agent: Callable[[str], str]) -> State:
    """All nodes, by name. `agent`: how the agent of a node is (`NodeState.agent`)."""
    return State(
        nodes=tuple(
            NodeState(node=inventory.node, generation=inventory.generation, agent=agent(inventory.node), devices=tuple(engine.usage(inventory.node).values()))
            for inventory in sorted(inventories, key=lambda inventory: inventory.node)
        ),
        owners=tuple(_owner(engine, grant) for grant in engine.grants()),
        over_commitments=engine.over_commitments(),
    )


def _owner(engine: Engine, grant: PodGrant) -> OwnerState:
    entry = engine.entry(grant.owner.uid)
    assert entry is not None  # grants() tells of entries only
    return OwnerState(uid=grant.owner.uid, namespace=grant.owner.namespace, name=grant.owner.name, node=grant.node, state=entry.state.value)
