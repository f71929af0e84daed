# SPDX-License-Identifier: Apache-2.0
"""From an exact choice of devices to the grant that travels with the pod."""

from __future__ import annotations

from hami_framework.model import ContainerGrant, DeviceGrant, Owner, PodGrant, PodRequest
from hami_framework.placement.choice import Piece, Search
from hami_framework.placement.standing import Standing


def owner_of(pod: PodRequest) -> Owner:
    """The pod as the owner of what it is given."""
    return Owner(kind="pod", uid=pod.uid, namespace=pod.namespace, name=pod.name)


def grant_on(pod: PodRequest, standing: Standing, column: int, without: tuple[str, ...] = ()) -> PodGrant:
    """The exact devices on a node that was found feasible in the same state (`without`: if these owners were gone)."""
    node = str(standing.fleet.names[column])
    search = standing.search(column, without)
    pieces = search.run()
    if pieces is None:
        raise AssertionError(f"node {node} was found feasible for pod {pod.uid} but no devices can be chosen: a bug in placement")
    containers: dict[int, list[DeviceGrant]] = {}
    for piece in pieces:
        containers.setdefault(piece.container, []).append(_device_grant(piece, search, standing.plan.needs[piece.need].resource))
    grants = (
        ContainerGrant(container=pod.containers[index].name, kind=pod.containers[index].kind, devices=tuple(devices))
        for index, devices in sorted(containers.items())
    )
    return PodGrant(owner=owner_of(pod), node=node, containers=tuple(grants))


def _device_grant(piece: Piece, search: Search, resource: str) -> DeviceGrant:
    device = search.rows[piece.row].device
    assert device is not None  # a search looks at devices of the inventory only
    return DeviceGrant(
        device_id=device.id,
        device_name=device.name,
        vendor=device.vendor,
        resource=resource,
        offer=piece.cut.offer,
        start=piece.start,
        units=hex(piece.units) if piece.cut.offer.cost.units else None,
    )
