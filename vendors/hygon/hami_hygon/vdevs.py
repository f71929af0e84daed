# SPDX-License-Identifier: Apache-2.0
"""The vDCUs of this node: the files that Hygon's driver reads, and who holds which number.

A vDCU *is* a file: `vdev0.conf` in the container, with a copy `vdev<N>.conf` among the host's, N being its number on the
node. The claim on a number is a file `vdev<N>.owner` beside it, made before anything else and removed last, so that any
step can be repeated after a crash. Files without an owner are somebody else's (`hy-smi virtual`) and stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from hami_framework import MIB, Device, DeviceGrant, Grant, Host

VDEVS, PIPES = 200, 20
"""Limits of the driver: vDCUs on a node, and on one card."""
WORD = 64
"""The mask is written as two words, low compute units first."""

_hosts: list[Host] = []


def use(host: Host) -> None:
    """Remember whose files these are; discovery says it before any grant comes."""
    _hosts[:] = [host]


def make(grant: Grant, held: DeviceGrant, device: Device) -> Path:
    """Write the vDCU's files, for the container and for the host; returns the container's directory. The same grant keeps its numbers."""
    directory = _directory()
    directory.mkdir(parents=True, exist_ok=True)
    number = _claim(directory, _owner(grant))
    pipe = _pipe(directory, number, device)
    _write(directory / f"vdev{number}.conf", _conf(held, device, number=number, pipe=pipe, card=device.index))
    own = _own_directory(grant)
    own.mkdir(exist_ok=True)
    _write(own / "vdev0.conf", _conf(held, device, number=number, pipe=pipe, card=0))
    return own


def release(grant: Grant) -> None:
    """Take back every number of this grant; nothing happens when it has none."""
    directory = _directory()
    for number, owner in _owners(directory).items():
        if owner == _owner(grant):
            (directory / f"vdev{number}.conf").unlink(missing_ok=True)
            (directory / f"vdev{number}.owner").unlink()
    (_own_directory(grant) / "vdev0.conf").unlink(missing_ok=True)


def _own_directory(grant: Grant) -> Path:
    """Where the container's file lies, by itself: the driver reads the whole directory."""
    return Path(grant.directory) / "vdev"


def _directory() -> Path:
    if not _hosts:
        raise RuntimeError("no discovery has run in this worker yet, so the host's files are not known; try again")
    return _hosts[0].path("/etc/vdev")


def _owner(grant: Grant) -> str:
    return f"{grant.owner.uid}/{grant.container}"


def _owners(directory: Path) -> dict[int, str]:
    return {int(file.stem.removeprefix("vdev")): file.read_text().strip() for file in directory.glob("vdev*.owner")}


def _claim(directory: Path, owner: str) -> int:
    owners = _owners(directory)
    for number in range(VDEVS):
        if owners.get(number) == owner:
            return number
    for number in range(VDEVS):
        if number not in owners and not (directory / f"vdev{number}.conf").exists():
            _write(directory / f"vdev{number}.owner", owner + "\n")
            return number
    raise RuntimeError(f"all {VDEVS} vDCU numbers of this node are taken in {directory}; remove those that nobody uses")


def _pipe(directory: Path, number: int, device: Device) -> int:
    """The pipe this vDCU has already, or the lowest one free on its card."""
    taken = {vdev: int(fields["pipe_id"]) for vdev, fields in _confs(directory) if fields.get("PciBusId") == device.pci_address}
    if number in taken:
        return taken[number]
    free = set(range(PIPES)) - set(taken.values())
    if not free:
        raise RuntimeError(f"all {PIPES} pipes of {device.id} are taken in {directory}; remove vDCUs that nobody uses")
    return min(free)


def _confs(directory: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    for file in directory.glob("vdev*.conf"):
        lines = (line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        yield int(file.stem.removeprefix("vdev")), {key.strip(): value.strip() for key, value in lines}


def _conf(held: DeviceGrant, device: Device, *, number: int, pipe: int, card: int) -> str:
    """The format of HAMi's DCU plugin. Without a mask of its own a vDCU may use every compute unit."""
    mask = int(held.units, 16) if held.units else (1 << device.device_class.capacity.units) - 1
    low, high = mask & ((1 << WORD) - 1), mask >> WORD
    return (
        f"PciBusId: {device.pci_address}\n"
        f"cu_mask: 0x{low:016x}\n"
        f"cu_mask: 0x{high:016x}\n"
        f"cu_count: {mask.bit_count()}\n"
        f"mem: {held.offer.cost.memory_bytes // MIB} MiB\n"
        f"device_id: {card}\n"
        f"vdev_id: {number}\n"
        f"pipe_id: {pipe}\n"
        "enable: 1\n"
    )


def _write(file: Path, text: str) -> None:
    """Whole or not at all: the driver may read at any moment."""
    scratch = file.with_name(f".{file.name}.new")
    scratch.write_text(text)
    os.replace(scratch, file)
