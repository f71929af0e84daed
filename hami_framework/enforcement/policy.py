# SPDX-License-Identifier: Apache-2.0
"""policy.bin: what a container may use of each of its devices. Written by the host, read by the library in the container.

`decode` is strict: whatever the library would refuse is refused here with a sentence that says what is wrong.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Literal

from hami_framework.enforcement import layout
from hami_framework.enforcement.fields import offset, size
from hami_framework.errors import FormatError
from hami_framework.model import Value

FILE = "policy.bin"

Compute = Literal["fixed", "work-conserving"]

_MODES: dict[Compute, layout.ComputeMode] = {"fixed": layout.ComputeMode.FIXED, "work-conserving": layout.ComputeMode.WORK_CONSERVING}
_HEADER_SIZE = ctypes.sizeof(layout.PolicyHeader)
_RECORD_SIZE = ctypes.sizeof(layout.PolicyDevice)
_CHECKSUM = slice(offset(layout.PolicyHeader, "checksum"), offset(layout.PolicyHeader, "checksum") + 8)
_U32 = 2**32 - 1
_DEVICE_FLAGS = layout.DeviceFlag.OVERSUBSCRIBE | layout.DeviceFlag.CHARGE_IMPORTS


class DevicePolicy(Value, frozen=True, kw_only=True):
    """What one device may be used for."""

    vendor: str
    identities: tuple[tuple[str, str], ...]
    """(kind, value) pairs, as the driver APIs of this vendor can report them."""
    memory_bytes: int | None = None
    """The most that may be held; None: no limit."""
    capacity_bytes: int | None = None
    """What the device has in all; None: not known."""
    virtual_bytes: int | None = None
    """Managed memory may oversubscribe the device up to this; None: it is counted like any other."""
    context_bytes: int | None = None
    """What a context costs; None: to be measured."""
    core_milli: int | None = None
    """Thousandths of a percent of the device's time; None: no limit."""
    compute_mode: Compute = "fixed"
    weight: int = 1
    priority: int = 0
    charge_imports: bool = False
    """Memory imported from another container is charged here too."""
    burst_us: int | None = None
    """How far ahead of its share the container may run; None: the library's default."""


class Policy(Value, frozen=True, kw_only=True):
    """Everything that a container is held to. A device's place is its index everywhere, for as long as the container lives."""

    container: str
    """`<owner uid>/<container>`, for messages."""
    devices: tuple[DevicePolicy, ...]
    generation: int = 1
    advisory: bool = False
    """Count and report, never refuse."""


def encode(policy: Policy) -> bytes:
    """The file's bytes. Raises FormatError when the policy says what the layout or the device cannot hold."""
    _check(policy)
    header = layout.PolicyHeader(
        magic=layout.POLICY_MAGIC,
        layout_version=layout.LAYOUT_VERSION,
        header_size=_HEADER_SIZE,
        record_size=_RECORD_SIZE,
        device_count=len(policy.devices),
        generation=policy.generation,
        flags=layout.PolicyFlag.ADVISORY if policy.advisory else 0,
        container=policy.container.encode(),
    )
    data = bytearray(bytes(header) + b"".join(bytes(_record(device)) for device in policy.devices))
    data[_CHECKSUM] = fnv1a(data).to_bytes(8, "little")
    return bytes(data)


def decode(data: bytes) -> Policy:
    """The inverse of `encode`. Raises FormatError, naming what is wrong, for anything that `encode` would not have made."""
    if len(data) < _HEADER_SIZE:
        raise FormatError(f"policy: {len(data)} bytes are too few for a header of {_HEADER_SIZE}: cut short")
    header = layout.PolicyHeader.from_buffer_copy(data)
    if header.magic != layout.POLICY_MAGIC:
        raise FormatError(f"policy: begins with {header.magic:#018x}, not with {layout.POLICY_MAGIC:#018x}: not a policy file")
    if header.layout_version != layout.LAYOUT_VERSION:
        raise FormatError(f"policy: layout version {header.layout_version}, and this program knows {layout.LAYOUT_VERSION} only")
    if (header.header_size, header.record_size) != (_HEADER_SIZE, _RECORD_SIZE):
        raise FormatError(f"policy: header and records of {header.header_size} and {header.record_size} bytes, expected {_HEADER_SIZE} and {_RECORD_SIZE}")
    if header.device_count > layout.MAX_DEVICES:
        raise FormatError(f"policy: {header.device_count} devices, and {layout.MAX_DEVICES} are the most")
    expected = _HEADER_SIZE + header.device_count * _RECORD_SIZE
    if len(data) != expected:
        raise FormatError(f"policy: {len(data)} bytes, and {header.device_count} devices take {expected}")
    zeroed = bytearray(data)
    zeroed[_CHECKSUM] = bytes(8)
    if fnv1a(zeroed) != header.checksum:
        raise FormatError("policy: its checksum does not match its contents: damaged, or changed by hand")
    if header.flags & ~layout.PolicyFlag.ADVISORY:
        raise FormatError(f"policy: unknown flags {header.flags:#x}")
    records = (layout.PolicyDevice.from_buffer_copy(data, _HEADER_SIZE + number * _RECORD_SIZE) for number in range(header.device_count))
    policy = Policy(
        container=_text(header.container, "container"),
        devices=tuple(_device(number, record) for number, record in enumerate(records)),
        generation=header.generation,
        advisory=bool(header.flags & layout.PolicyFlag.ADVISORY),
    )
    _check(policy)
    return policy


def write(directory: Path, policy: Policy) -> Path:
    """Replace the policy in `directory` in one step, durably. Raises FormatError when `policy.generation` is not newer than the one there."""
    data = encode(policy)
    path = directory / FILE
    if path.exists():
        earlier = read(directory)
        if policy.generation <= earlier.generation:
            raise FormatError(f"{path}: generation {policy.generation} is not newer than {earlier.generation}, which is there")
    temporary = directory / f".{FILE}.{os.getpid()}"
    with temporary.open("wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path


def read(directory: Path) -> Policy:
    """The policy in `directory`. Raises FormatError with the file's name; FileNotFoundError when there is none."""
    path = directory / FILE
    try:
        return decode(path.read_bytes())
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def fnv1a(data: bytes | bytearray) -> int:
    """FNV-1a, 64 bit: against damage, not against malice (the file is root's)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def _record(device: DevicePolicy) -> layout.PolicyDevice:
    record = layout.PolicyDevice(
        vendor=device.vendor.encode(),
        memory_bytes=layout.NO_LIMIT if device.memory_bytes is None else device.memory_bytes,
        capacity_bytes=device.capacity_bytes or 0,
        virtual_bytes=device.virtual_bytes or 0,
        context_bytes=device.context_bytes or 0,
        core_milli=layout.CORE_UNLIMITED if device.core_milli is None else device.core_milli,
        compute_mode=_MODES[device.compute_mode],
        weight=device.weight,
        priority=device.priority,
        burst_us=device.burst_us or 0,
    )
    if device.virtual_bytes is not None:
        record.flags |= layout.DeviceFlag.OVERSUBSCRIBE
    if device.charge_imports:
        record.flags |= layout.DeviceFlag.CHARGE_IMPORTS
    for place, (kind, value) in enumerate(device.identities):
        record.identities[place].kind = kind.encode()
        record.identities[place].value = value.encode()
    return record


def _device(number: int, record: layout.PolicyDevice) -> DevicePolicy:
    where = f"device {number}"
    if record.flags & ~_DEVICE_FLAGS:
        raise FormatError(f"policy: {where}: unknown flags {record.flags:#x}")
    mode = next((name for name, mode in _MODES.items() if mode == record.compute_mode), None)
    if mode is None:
        raise FormatError(f"policy: {where}: unknown compute mode {record.compute_mode}")
    return DevicePolicy(
        vendor=_text(record.vendor, f"{where}: vendor"),
        identities=tuple((_text(one.kind, f"{where}: identity"), _text(one.value, f"{where}: identity")) for one in record.identities if one.kind),
        memory_bytes=None if record.memory_bytes == layout.NO_LIMIT else record.memory_bytes,
        capacity_bytes=record.capacity_bytes or None,
        virtual_bytes=record.virtual_bytes if record.flags & layout.DeviceFlag.OVERSUBSCRIBE else None,
        context_bytes=record.context_bytes or None,
        core_milli=None if record.core_milli == layout.CORE_UNLIMITED else record.core_milli,
        compute_mode=mode,
        weight=record.weight or 1,
        priority=record.priority,
        charge_imports=bool(record.flags & layout.DeviceFlag.CHARGE_IMPORTS),
        burst_us=record.burst_us or None,
    )


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"policy: {where}: not text: {raw!r}") from error


def _check(policy: Policy) -> None:
    """What both sides of the file rely on."""
    if not 1 <= policy.generation < 2**64:
        raise FormatError(f"policy: generation {policy.generation} is not between 1 and 2^64 - 1")
    if len(policy.devices) > layout.MAX_DEVICES:
        raise FormatError(f"policy of {policy.container}: {len(policy.devices)} devices, and {layout.MAX_DEVICES} are the most")
    _check_text(policy.container, size(layout.PolicyHeader, "container"), "container")
    for number, device in enumerate(policy.devices):
        _check_device(f"device {number} ({device.vendor})", device)
    names = [(device.vendor, kind.casefold(), value.casefold()) for device in policy.devices for kind, value in device.identities]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FormatError(f"policy of {policy.container}: two devices are called {twice[1]} {twice[2]!r}: one could be used under the other's limit")


def _check_device(where: str, device: DevicePolicy) -> None:
    _check_text(device.vendor, size(layout.PolicyDevice, "vendor"), f"{where}: vendor")
    if not 1 <= len(device.identities) <= layout.MAX_IDENTITIES:
        raise FormatError(f"policy: {where}: {len(device.identities)} identities; at least 1 and at most {layout.MAX_IDENTITIES} can be had")
    for kind, value in device.identities:
        _check_text(kind, size(layout.Identity, "kind"), f"{where}: kind of identity")
        _check_text(value, size(layout.Identity, "value"), f"{where}: {kind}")
    for name, amount, most in (
        ("memory_bytes", device.memory_bytes, layout.NO_LIMIT - 1),
        ("capacity_bytes", device.capacity_bytes, layout.NO_LIMIT - 1),
        ("virtual_bytes", device.virtual_bytes, layout.NO_LIMIT - 1),
        ("context_bytes", device.context_bytes, layout.NO_LIMIT - 1),
        ("core_milli", device.core_milli, layout.MILLI_PERCENT),
        ("burst_us", device.burst_us, _U32),
        ("priority", device.priority + 1, _U32 + 1),
        ("weight", device.weight, _U32),
    ):
        least = 0 if name in ("memory_bytes", "virtual_bytes") else 1
        if amount is not None and not least <= amount <= most:
            raise FormatError(f"policy: {where}: {name} {amount} is not between {least} and {most}")
    if device.memory_bytes is not None and device.capacity_bytes is not None and device.memory_bytes > device.capacity_bytes:
        raise FormatError(f"policy: {where}: a limit of {device.memory_bytes} bytes on a device that has {device.capacity_bytes}")


def _check_text(text: str, room: int, where: str) -> None:
    if not text or "\0" in text or len(text.encode()) >= room:
        raise FormatError(f"policy: {where}: {text[:60]!r} must be 1 to {room - 1} bytes of UTF-8 without NUL")
