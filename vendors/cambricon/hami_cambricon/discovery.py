# SPDX-License-Identifier: Apache-2.0
"""From CNDev's facts to devices: identity, class, place, links, boards and health.

A card that no longer answers is still on the node: it keeps the facts it was last seen with and is unhealthy. One that
never answered has no identity and is left out, with a warning.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hami_cambricon import driver, edits, enforce, names
from hami_cambricon.driver import Card, CndevError
from hami_framework import HARD, HEALTHY, MIB, Capacity, Device, DeviceClass, GroupRule, Health, Host, Link, Membership, Mode, Usage

log = logging.getLogger(__name__)

SHARES = 16
"""sMLU instances of one card at most."""
MAX_PROFILES = 16
"""Different sMLU profiles of one card: the driver's own limit."""
_GOOD, _DEVICE_GOOD, _DRIVER_RUNNING = 1, 1, 4
"""cndevGetCardHealthState."""

_seen: dict[str, Card] = {}
_nameless: set[int] = set()
"""Cards that were warned of."""


def devices(host: Host) -> Iterator[Device]:
    """Every card of this node."""
    if driver.library() is None:
        return
    for index in range(driver.count()):
        try:
            card = driver.card(index)
            _seen[card.uuid] = card
        except CndevError as error:
            if index not in _nameless and all(seen.index != index for seen in _seen.values()):
                _nameless.add(index)
                log.warning("card %d does not answer and was never seen, so it has no identity: %s", index, error)
    yield from (_device(card, host) for card in sorted(_seen.values(), key=lambda card: card.index))


def health(devices: Sequence[Device]) -> Mapping[str, Health]:
    """The state of each known card, now."""
    return {device.id: _health(uuid(device)) for device in devices}


def usage(devices: Sequence[Device]) -> Iterator[Usage]:
    """What CNDev measures on each card; nothing on one that has just been lost."""
    for device in devices:
        try:
            used = driver.memory_used_mib(uuid(device)) * MIB
            yield Usage(device_id=device.id, memory_used_bytes=used, core_busy_percent=driver.busy_percent(uuid(device)))
        except CndevError:
            yield Usage(device_id=device.id)


def uuid(device: Device) -> str:
    """CNDev's own id of a device; Kubernetes' has `MLU-` before it, as in Cambricon's device plugin."""
    return device.id.removeprefix("MLU-")


def _device(card: Card, host: Host) -> Device:
    nodes = [] if card.slot is None else [path for path in edits.optional_nodes(card.slot) if host.path(path).exists()]
    numbers = (("slot", card.slot), ("serial", card.serial), *(("node", path) for path in nodes))
    lanes = Counter(peer for peer in card.link_peers if peer in _seen and peer != card.uuid)
    return Device(
        id=f"MLU-{card.uuid}",
        index=card.index,
        device_class=_device_class(card),
        health=_health(card.uuid),
        numa_node=card.numa_node,
        pci_address=card.pci_address,
        links=tuple(Link(peer=f"MLU-{peer}", kind="mlulink", lanes=number) for peer, number in lanes.items()),
        groups=(Membership(kind="board", name=f"board-{card.board}"),) if card.board else (),
        identities=tuple((kind, str(value)) for kind, value in numbers if value is not None),
    )


def _device_class(card: Card) -> DeviceClass:
    smlu = (Mode(name="smlu", isolation=enforce.SMLU, max_profiles=MAX_PROFILES),) if card.smlu else ()
    return DeviceClass(
        model=card.product,
        types=names.types(card.product),
        capacity=Capacity(memory_bytes=card.memory_mib * MIB, shares=SHARES),
        modes=(Mode(name="whole", isolation=HARD), *smlu),
        group_rule=GroupRule(prefer=("board",)) if card.board else GroupRule(),
    )


def _health(card_uuid: str) -> Health:
    try:
        state = driver.health(card_uuid)
    except CndevError as error:
        return Health(state="unhealthy", reason=f"the card does not answer: {error}")
    if (state.health, state.device_state, state.driver_state) == (_GOOD, _DEVICE_GOOD, _DRIVER_RUNNING):
        return HEALTHY
    words = f"CNDev reports health {state.health}, device state {state.device_state}, driver state {state.driver_state} (good: 1, 1, 4)"
    return Health(state="unhealthy", reason=words)
