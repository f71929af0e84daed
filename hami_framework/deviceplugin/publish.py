# SPDX-License-Identifier: Apache-2.0
"""The node's inventory as the custom resource `nodeinventories.hami.io`, written only when it changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import structs

from hami_framework.codec import inventories
from hami_framework.deviceplugin.grants import set_within
from hami_framework.deviceplugin.ports import Cluster, Json
from hami_framework.errors import FormatError, HamiError
from hami_framework.model import Inventory

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.1
"""Changes that come together are written together; well inside the 2 s that a health change may take."""
LOOK_SECONDS = 60.0
"""How often the object is read to see whether somebody else changed or deleted it."""
RETRY_SECONDS = (0.2, 10.0)


class Publisher:
    """Keeps the object equal to what `current` says. `then` is called with the object as it was found, None where it had to be made."""

    def __init__(self, cluster: Cluster, current: Callable[[], Inventory], then: Callable[[Json | None], Awaitable[None]] | None = None) -> None:
        self._cluster = cluster
        self._current = current
        self._then = then
        self._poked = asyncio.Event()
        self.writes = 0

    def poke(self) -> None:
        """Something may have changed."""
        self._poked.set()

    async def run(self) -> None:
        """For ever. Failures are logged and tried again; the newest inventory wins."""
        pause = RETRY_SECONDS[0]
        while True:
            self._poked.clear()
            try:
                await self.publish()
            except HamiError as error:
                log.warning("inventory of %s not published: %s; again in %.1f s", self._current().node, error, pause)
                await asyncio.sleep(pause)
                pause = min(RETRY_SECONDS[1], 2 * pause)
                continue
            pause = RETRY_SECONDS[0]
            await self._wait()

    async def publish(self) -> bool:
        """Write the inventory if the object says something else. True when it was written. Raises Unavailable, KubeError."""
        found = await self._cluster.inventory(self._current().node)
        written = await self._write(found)
        if self._then is not None:
            await self._then(found)
        return written

    async def _write(self, found: Json | None) -> bool:
        wanted = self._current()
        if found is None:
            await self._cluster.create_inventory(inventories.to_object(wanted))
        else:
            known = _read(found)
            wanted = carried(known, wanted)
            if known is not None and known == structs.replace(wanted, generation=known.generation):
                return False
            following = structs.replace(wanted, generation=_generation(found) + 1)
            await self._cluster.replace_inventory(wanted.node, _replacement(found, following))
        self.writes += 1
        return True

    async def _wait(self) -> None:
        if await set_within(self._poked, LOOK_SECONDS):
            await asyncio.sleep(SETTLE_SECONDS)


def carried(known: Inventory | None, wanted: Inventory) -> Inventory:
    """`wanted`, with what is published about vendors that are still starting: a restart of the agent is not a loss of devices."""
    if known is None:
        return wanted
    waiting = {vendor.name for vendor in wanted.vendors if vendor.state == "starting"}
    before = {vendor.name: vendor for vendor in known.vendors}
    kept = [device for device in known.devices if device.vendor in waiting]
    own = [device for device in wanted.devices if device.vendor not in {device.vendor for device in kept}]
    return structs.replace(
        wanted,
        vendors=tuple(before.get(vendor.name, vendor) if vendor.name in waiting else vendor for vendor in wanted.vendors),
        devices=tuple(sorted((*own, *kept), key=lambda device: (device.vendor, device.index, device.id))),
    )


def _read(found: Json) -> Inventory | None:
    """The published inventory; None when it is not readable (another version's, or edited): it is then replaced."""
    try:
        return inventories.from_object(found)
    except FormatError as error:
        log.warning("the published inventory is replaced: %s", error)
        return None


def _generation(found: Json) -> int:
    generation = (found.get("spec") or {}).get("generation", 0)
    return generation if isinstance(generation, int) else 0


def _replacement(found: Json, inventory: Inventory) -> dict[str, Any]:
    """The new object under the old one's metadata: labels and owner references of others stay, a lost race is a conflict."""
    return inventories.to_object(inventory) | {"metadata": dict(found["metadata"])}
