# SPDX-License-Identifier: Apache-2.0
"""Structured reasons of one refused node: the code first, then what each device lacked, nearest miss first."""

from __future__ import annotations

from collections.abc import Sequence

from hami_framework.model import Reason, Rejection
from hami_framework.placement.choice import Miss, Search
from hami_framework.placement.plan import Need, Plan


def no_inventory(node: str) -> Rejection:
    """The node is not known: nothing has published its devices."""
    return Rejection(reason=Reason.NO_INVENTORY, wanted=node, hint="is the node agent running there?")


def silent(node: str) -> Rejection:
    """The node's agent has stopped, or has not renewed its sign of life."""
    return Rejection(reason=Reason.NODE_SILENT, wanted=node, hint="is the node up, and the node agent running there?")


def node_rejections(node: str, plan: Plan, code: Reason, search: Search) -> tuple[Rejection, ...]:
    """Why this node was refused; the first rejection carries `code`. `search` is one that has just failed there."""
    if code is Reason.NO_INVENTORY:
        return (no_inventory(node),)
    need = plan.needs[max(search.stuck_at, 0)]
    by_class = _class_refusals(need, search.class_ids)
    by_device = [_of_miss(miss, need, search) for miss in sorted(search.misses, key=_distance)]
    found = [*by_device, *by_class]
    if code is Reason.TOO_FEW_DEVICES or not any(rejection.reason is code for rejection in found):
        offered = sum(class_id in need.cuts for class_id in search.class_ids)
        found.insert(0, Rejection(reason=code, container=need.name, resource=need.resource, dimension="count", wanted=need.count, free=offered))
    return tuple(sorted(found, key=lambda rejection: rejection.reason is not code))


def _class_refusals(need: Need, class_ids: Sequence[int]) -> list[Rejection]:
    here = dict.fromkeys(class_ids)
    return list(dict.fromkeys(need.refusals[class_id] for class_id in here if class_id in need.refusals))


def _distance(miss: Miss) -> tuple[float, int]:
    """How much is lacking, as a fraction of what is wanted; amounts that are no numbers come last."""
    if isinstance(miss.wanted, int) and isinstance(miss.free, int) and miss.wanted > 0:
        return (miss.wanted - miss.free) / miss.wanted, miss.row
    return float("inf"), miss.row


def _of_miss(miss: Miss, need: Need, search: Search) -> Rejection:
    device = search.rows[miss.row].device
    name = (device.name or device.id) if device is not None and miss.reason is not Reason.GROUP else None
    dimension = miss.dimension.removeprefix("counter:") if miss.dimension is not None else None
    return Rejection(reason=miss.reason, container=need.name, resource=need.resource, device=name, dimension=dimension, wanted=miss.wanted, free=miss.free)
