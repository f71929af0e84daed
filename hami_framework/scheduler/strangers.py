# SPDX-License-Identifier: Apache-2.0
"""Vendors that nodes have and this extender lacks.

A pod that asks for such a vendor's resource must not pass as "not ours": kubelet would start it, and its containers would
wait for a grant that nobody made. The nodes' inventories say which names those are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hami_framework.codec.resources import ResourceCatalog
from hami_framework.errors import InvalidRequest
from hami_framework.model import Inventory, Reason, Rejection


class Strangers:
    """Resource names that some node's inventory declares and no package installed here knows."""

    def __init__(self, catalog: ResourceCatalog) -> None:
        self._catalog = catalog
        self._owners: dict[str, str] = {}

    def learn(self, inventory: Inventory) -> None:
        """Note the names of the inventory's vendors. They stay known when the node goes: the pod is as wrong as before."""
        for vendor in inventory.vendors:
            for family in vendor.resources:
                for name in (*family.slot_resources, *family.aliases):
                    if self._catalog.meaning(name) is None:
                        self._owners[name] = vendor.name

    def check(self, pod: Mapping[str, Any]) -> None:
        """Raises `InvalidRequest` (`vendor-missing`) when the pod asks for such a name."""
        rejections = tuple(self._rejections(pod)) if self._owners else ()
        if rejections:
            raise InvalidRequest(rejections)

    def _rejections(self, pod: Mapping[str, Any]) -> Iterator[Rejection]:
        spec = pod.get("spec") or {}
        for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
            for name in (container.get("resources") or {}).get("limits") or {}:
                vendor = self._owners.get(name)
                if vendor is not None:
                    hint = f"install the package of vendor {vendor} beside the scheduler extender too, or put it on the allow-list"
                    yield Rejection(reason=Reason.VENDOR_MISSING, container=container.get("name"), resource=name, hint=hint)
