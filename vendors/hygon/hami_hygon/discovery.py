# SPDX-License-Identifier: Apache-2.0
"""From the libraries' facts to devices: identity, class, place, links and health."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from hami_framework import HARD, HEALTHY, Capacity, Device, DeviceClass, Health, Host, Link, Mode, Usage
from hami_hygon import driver, enforce, names, vdevs
from hami_hygon.driver import Card

_DRM_FILE = re.compile(r"(card|renderD)(\d+)")


def devices(host: Host) -> Iterator[Device]:
    """Every DCU of this node."""
    vdevs.use(host)  # also where the driver has gone: what was made for containers is taken back all the same
    if not driver.present():
        return
    cards = driver.cards()
    for card in cards:
        yield Device(
            id=f"DCU-{card.serial}",
            index=card.index,
            device_class=_device_class(card),
            health=_health(card.serial),
            numa_node=card.numa_node,
            pci_address=card.pci_address,
            links=() if card.lost else tuple(_link(card, peer) for peer in cards if peer is not card and not peer.lost),
            identities=tuple(_identities(card, host)),
        )


def health(devices: Sequence[Device]) -> Mapping[str, Health]:
    """The state of each known card, now."""
    return {device.id: _health(_serial(device)) for device in devices}


def usage(devices: Sequence[Device]) -> Iterator[Usage]:
    """What the library measures on each healthy card."""
    for device in devices:
        if device.health.ok:
            serial = _serial(device)
            yield Usage(device_id=device.id, memory_used_bytes=driver.memory_used_bytes(serial), core_busy_percent=driver.busy_percent(serial))


def _serial(device: Device) -> str:
    return device.id.removeprefix("DCU-")


def _health(serial: str) -> Health:
    problem = driver.problem(serial)
    return HEALTHY if problem is None else Health(state="unhealthy", reason=problem)


def _device_class(card: Card) -> DeviceClass:
    """Without a known number of compute units there is no mask to write, and the card can be had whole only."""
    model, published_units = names.MODELS.get(card.pci_device_id or 0, (card.name or "DCU", 0))
    units = card.compute_units or published_units
    vdevs_at_once = min(vdevs.PIPES, card.max_vdevs or vdevs.PIPES)
    parts = (
        Mode(name="vdcu", isolation=enforce.MASKED, max_instances=vdevs_at_once),
        Mode(name="vdcu-memory", isolation=enforce.MEMORY_ONLY, max_instances=vdevs_at_once),
    )
    return DeviceClass(
        model=model,
        types=names.types(model),
        capacity=Capacity(memory_bytes=card.memory_bytes, shares=vdevs_at_once, units=units),
        modes=(Mode(name="whole", isolation=HARD), *(parts if units else ())),
    )


def _link(card: Card, peer: Card) -> Link:
    if driver.joined_by_xgmi(card, peer):
        return Link(peer=f"DCU-{peer.serial}", kind="xgmi")
    return Link(peer=f"DCU-{peer.serial}", kind="numa" if card.numa_node == peer.numa_node else "system")


def _identities(card: Card, host: Host) -> Iterator[tuple[str, str]]:
    """Names of the card elsewhere. The numbers of its files under /dev/dri go by PCI address, never by index."""
    yield "serial", card.serial
    yield "hcu", f"HCU-{card.serial}"
    if card.unique_id is not None:
        yield "unique-id", card.unique_id
    files = {match[1]: match[2] for file in _drm_directory(card, host) if (match := _DRM_FILE.fullmatch(file))}
    render = files.get("renderD") if card.render_minor is None else str(card.render_minor)
    if "card" in files:
        yield "card", files["card"]
    if render is not None:
        yield "render", render


def _drm_directory(card: Card, host: Host) -> tuple[str, ...]:
    """The kernel's own list of a PCI device's graphics files: `card1`, `renderD129`."""
    directory = host.path(f"/sys/bus/pci/devices/{card.pci_address}/drm")
    return tuple(sorted(file.name for file in directory.iterdir())) if directory.is_dir() else ()
