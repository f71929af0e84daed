# SPDX-License-Identifier: Apache-2.0
"""From DCMI's facts to devices: identity, class, place, links, groups and health.

A chip that no longer answers is still on the node: it keeps the facts it was last seen with and is unhealthy. One that
never answered has no identity and is left out, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from hami_ascend import driver, enforce, names, partition
from hami_ascend.driver import Address, Chip, DcmiError
from hami_framework import (
    HARD,
    HEALTHY,
    MIB,
    Capacity,
    Counter,
    Device,
    DeviceClass,
    GroupRule,
    Health,
    Host,
    Link,
    LinkKind,
    Membership,
    Mode,
    ProcessUsage,
    Usage,
)

log = logging.getLogger(__name__)

SHARES = 10
"""Soft shares of one chip at most."""
RING_SIZE = 4
"""910A: chips {0-3} and {4-7} are two HCCS rings; nothing joins one ring to the other but PCI Express."""
GROUP_RULES = {
    "910A": GroupRule(allowed_counts=(1, 2, 4, 8), same=("ring",)),
    "910C": GroupRule(whole=("module",)),
    "310P": GroupRule(prefer=("card",)),
}
_ALARMS = {1: "general", 2: "important", 3: "critical"}
_LINKS: dict[int, LinkKind] = {1: "system", 2: "host-bridge", 3: "hccs", 4: "pcie-multi-switch", 5: "pcie-switch", 7: "hccs"}
"""DCMI_TOPO_TYPE_…; 6 is missing on purpose, see `_link`."""
_SIO = 6

_seen: dict[Address, Chip] = {}
_nameless: set[Address] = set()
"""Chips that were warned of."""


def devices(host: Host) -> Iterator[Device]:
    """Every chip of this node."""
    if driver.library() is None:
        return
    for address in driver.addresses():
        try:
            _seen[address] = driver.chip(address)
        except DcmiError as error:
            if address not in _seen and address not in _nameless:
                _nameless.add(address)
                log.warning("card %d, chip %d does not answer and was never seen, so it has no identity: %s", address.card, address.chip, error)
    chips = sorted(_seen.values(), key=lambda chip: chip.logic_id)
    yield from (_device(chip, chips, host) for chip in chips)


def health(devices: Sequence[Device]) -> Mapping[str, Health]:
    """The state of each known chip, now."""
    return {device.id: _health(_address(device)) for device in devices}


def usage(devices: Sequence[Device]) -> Iterator[Usage]:
    """What DCMI measures on each chip; nothing on one that has just been lost."""
    for device in devices:
        address = _address(device)
        try:
            reading = _usage(device.id, address)
        except DcmiError:
            reading = Usage(device_id=device.id)
        yield reading


def _usage(device_id: str, address: Address) -> Usage:
    held = driver.processes(address)
    return Usage(
        device_id=device_id,
        memory_used_bytes=driver.memory(address)[1] * MIB,
        core_busy_percent=driver.busy_percent(address),
        processes=None if held is None else tuple(ProcessUsage(pid=pid, memory_bytes=used) for pid, used in held.items()),
    )


def _device(chip: Chip, chips: Sequence[Chip], host: Host) -> Device:
    address = chip.address
    numbers = (("card", address.card), ("chip", address.chip), ("logic-id", chip.logic_id), ("phy-id", chip.phy_id), ("serial", chip.serial))
    return Device(
        id=chip.uuid,
        index=chip.logic_id,
        device_class=device_class(chip, enforce.interceptor_installed(host)),
        health=_health(address),
        numa_node=_numa_node(chip, host),
        pci_address=chip.pci_address,
        links=tuple(_links(chip, chips)),
        groups=tuple(_groups(chip)),
        identities=tuple((kind, str(value)) for kind, value in numbers if value is not None),
    )


def device_class(chip: Chip, interceptor: bool) -> DeviceClass:
    """How chips like this one may be shared. `interceptor`: this node has the library that holds soft shares."""
    model = names.model(chip.name)
    cut = partition.cut(model, chip.aicores)
    modes = (Mode(name="whole", isolation=HARD), Mode(name="share", isolation=enforce.share_isolation(interceptor)))
    profiles = partition.profiles(cut, chip.aicores) if cut else ()
    aicpus = chip.aicpus if chip.aicpus is not None or cut is None else cut.aicpus
    most = max(SHARES, chip.memory_mib * MIB // min((profile.cost.memory_bytes for profile in profiles), default=chip.memory_mib * MIB))
    return DeviceClass(
        model=f"Ascend{model}",
        types=names.types(chip.name),
        capacity=Capacity(
            memory_bytes=chip.memory_mib * MIB,
            shares=most,
            counters=tuple(Counter(name=name, amount=amount) for name, amount in (("aicore", chip.aicores), ("aicpu", aicpus)) if amount),
        ),
        modes=(*modes, Mode(name="vnpu", isolation=enforce.VNPU, max_instances=cut.most)) if cut else modes,
        profiles=profiles,
        group_rule=GROUP_RULES.get("310P" if model.startswith("310P") else model, GroupRule()),
    )


def _health(address: Address) -> Health:
    try:
        state, codes = driver.health(address)
    except DcmiError as error:
        return Health(state="unhealthy", reason=f"the chip does not answer: {error}")
    if state == 0:
        return HEALTHY
    listed = ", ".join(f"0x{code:08X}" for code in codes)
    words = f"{_ALARMS[state]} alarm" + (f", error codes {listed}" if listed else "") if state in _ALARMS else "the chip is gone"
    return Health(state="healthy" if state == 1 else "unhealthy", reason=words)  # a general alarm is a warning; the chip goes on working


def _address(device: Device) -> Address:
    return Address(int(device.identity("card") or 0), int(device.identity("chip") or 0))


def _links(chip: Chip, chips: Sequence[Chip]) -> Iterator[Link]:
    for other in chips:
        if other is not chip and (link := _link(chip, other)) is not None:
            yield link


def _link(chip: Chip, other: Chip) -> Link | None:
    """None where DCMI cannot say. 6 meant "unknown" in older drivers and means SIO now: SIO only ever joins two dies of one card."""
    try:
        value = driver.topology(chip.address, other.address)
    except DcmiError:
        return None
    if value == _SIO and chip.address.card == other.address.card:
        return Link(peer=other.uuid, kind="sio")
    return Link(peer=other.uuid, kind=_LINKS[value]) if value in _LINKS else None


def _groups(chip: Chip) -> Iterator[Membership]:
    model = names.model(chip.name)
    if model == "910A":
        yield Membership(kind="ring", name=f"ring-{chip.phy_id // RING_SIZE}")
    elif model == "910C":
        yield Membership(kind="module", name=f"module-{chip.address.card}")
    elif model.startswith("310P"):
        yield Membership(kind="card", name=f"card-{chip.address.card}")


def _numa_node(chip: Chip, host: Host) -> int | None:
    """What the kernel says of its PCI address; otherwise the NUMA node that has the CPUs which DCMI names."""
    if chip.pci_address is not None:
        file = host.path(f"/sys/bus/pci/devices/{chip.pci_address}/numa_node")
        if file.is_file() and (node := int(file.read_text())) >= 0:
            return node
    if chip.cpus is not None:
        for file in host.path("/sys/devices/system/node").glob("node[0-9]*/cpulist"):
            if file.read_text().strip() == chip.cpus:
                return int(file.parent.name.removeprefix("node"))
    return None
