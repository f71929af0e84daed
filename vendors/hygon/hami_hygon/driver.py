# SPDX-License-Identifier: Apache-2.0
"""The one file that touches librocm_smi64 (discovery) and libhydmi (compute units), through ctypes.

Both are loaded RTLD_LOCAL: AMD's library has the same file name and the same symbols, so cards are taken by Hygon's PCI
vendor id. rocm_smi lists what was there when it was opened; a card that no longer answers is lost, not gone.
"Not supported" is an ordinary answer for any single fact, and becomes None.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_int, c_int32, c_size_t, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass, replace
from typing import Any

HYGON = 0x1D94
"""PCI vendor id."""
VRAM = 0
MEMORY_BLOCK = 1
"""RSMI_GPU_BLOCK_UMC: the memory controller, where ECC errors are counted."""
XGMI = 2
"""RSMI_IOLINK_TYPE_XGMI."""

_NOT_SUPPORTED, _NOT_IMPLEMENTED, _NO_SUCH_DMI = 2, 9, 6
_GONE = frozenset({3, 5, 6, 10})
"""What the libraries say about a card whose files in sysfs are gone: file error, no such node, internal exception, not found."""


class DriverError(Exception):
    """A library refused a call, with its own status code."""

    def __init__(self, function: str, code: int, words: str) -> None:
        super().__init__(f"{function}: {words} (status {code})")
        self.function = function
        self.code = code

    @property
    def lost(self) -> bool:
        """The card does not answer any more."""
        return self.code in _GONE


class _EccCount(ctypes.Structure):
    _fields_ = (("correctable", c_uint64), ("uncorrectable", c_uint64))


class _DmiDeviceInfo(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 256),
        ("compute_units", c_int),
        ("memory_bytes", c_size_t),
        ("memory_used_bytes", c_size_t),
        ("container_id", c_uint64),
        ("device_id", c_int),
    )


@dataclass(frozen=True)
class Card:
    """The facts of one card; None where the libraries cannot say."""

    index: int
    serial: str
    name: str | None
    pci_device_id: int | None
    pci_address: str
    memory_bytes: int
    unique_id: str | None
    numa_node: int | None
    render_minor: int | None
    compute_units: int | None
    max_vdevs: int | None
    lost: bool = False


class _Library:
    """A C library whose functions answer a status and write their result through the last pointer."""

    def __init__(self, file: str, words: str, silent: frozenset[int]) -> None:
        self._handle = ctypes.CDLL(file, mode=ctypes.RTLD_LOCAL)
        self._words = words
        self._silent = silent

    def call(self, function: str, *arguments: Any) -> None:
        """Raises `DriverError` on any status but 0."""
        status = getattr(self._handle, function)(*arguments)
        if status != 0:
            words = c_char_p()
            getattr(self._handle, self._words)(c_int(status), byref(words))
            raise DriverError(function, status, (words.value or b"unknown").decode())

    def read(self, function: str, result: Any, *arguments: Any) -> Any | None:
        """Call with `result` as the last argument and hand back what was written; None where the card has no such fact."""
        if not hasattr(self._handle, function):
            return None
        try:
            self.call(function, *arguments, byref(result))
        except DriverError as error:
            if error.code in self._silent:
                return None
            raise
        return result.value if hasattr(result, "value") else result

    def read_text(self, function: str, index: int, size_type: Any) -> str | None:
        """Read a string into a buffer of 256 bytes."""
        buffer = ctypes.create_string_buffer(256)
        try:
            self.call(function, c_uint32(index), buffer, size_type(len(buffer)))
        except DriverError as error:
            if error.code in self._silent:
                return None
            raise
        return buffer.value.decode().strip()


_open: list[_Library] = []
_seen: dict[str, Card] = {}


def present() -> bool:
    """Open the libraries if they are not open. False where rocm_smi is not installed: this node has no DCU driver."""
    if _open:
        return True
    try:
        rsmi = _Library("librocm_smi64.so.2", "rsmi_status_string", frozenset({_NOT_SUPPORTED, _NOT_IMPLEMENTED}))
    except OSError:
        return False
    rsmi.call("rsmi_init", c_uint64(0))
    _open.extend((rsmi, _Library("libhydmi.so.1", "dmiGetStatusString", frozenset({_NO_SUCH_DMI}))))
    return True


def cards() -> tuple[Card, ...]:
    """Every DCU that answers, and those that did once, marked lost."""
    rsmi, _ = _open
    count = rsmi.read("rsmi_num_monitor_devices", c_uint32())
    found = {card.serial: card for index in range(count or 0) for card in _card(index)}
    lost = [replace(card, lost=True) for serial, card in _seen.items() if serial not in found]
    _seen.update(found)
    return tuple(sorted([*found.values(), *lost], key=lambda card: card.index))


def problem(serial: str) -> str | None:
    """Why this card should take no work, in words; None when it is well."""
    try:
        errors = _open[0].read("rsmi_dev_ecc_count_get", _EccCount(), _index(serial), c_int(MEMORY_BLOCK))
    except DriverError as error:
        return f"the card does not answer: {error}"
    if errors is not None and errors.uncorrectable:
        return f"{errors.uncorrectable} uncorrectable ECC errors in memory"
    return None


def memory_used_bytes(serial: str) -> int | None:
    """Memory in use on the whole card."""
    return _open[0].read("rsmi_dev_memory_usage_get", c_uint64(), _index(serial), c_int(VRAM))


def busy_percent(serial: str) -> float | None:
    """How busy the card's compute is."""
    return _open[0].read("rsmi_dev_busy_percent_get", c_uint32(), _index(serial))


def joined_by_xgmi(first: Card, second: Card) -> bool:
    """Whether two cards have a direct xGMI connection, rather than PCI Express between them."""
    try:
        kind = _open[0].read("rsmi_topo_get_link_type", c_int(), c_uint32(first.index), c_uint32(second.index), byref(c_uint64()))
    except DriverError as error:
        if error.lost:
            return False
        raise
    return bool(kind == XGMI)


def _index(serial: str) -> c_uint32:
    """Where the card stands now. Raises `DriverError` when another card or none answers there."""
    index = _seen[serial].index
    answered = _open[0].read_text("rsmi_dev_serial_number_get", index, c_uint32)
    if answered != serial:
        raise DriverError("rsmi_dev_serial_number_get", 0, f"card {index} is now {answered}, not {serial}")
    return c_uint32(index)


def _card(index: int) -> Iterator[Card]:
    rsmi, dmi = _open
    here = c_uint32(index)
    try:
        serial = rsmi.read_text("rsmi_dev_serial_number_get", index, c_uint32)
        vendor = rsmi.read("rsmi_dev_vendor_id_get", c_uint16(), here)
        memory_bytes = rsmi.read("rsmi_dev_memory_total_get", c_uint64(), here, c_int(VRAM))
        pci_id = rsmi.read("rsmi_dev_pci_id_get", c_uint64(), here)
        unique_id = rsmi.read("rsmi_dev_unique_id_get", c_uint64(), here)
        info = dmi.read("dmiGetDeviceInfo", _DmiDeviceInfo(), c_int(index))
        if vendor != HYGON or not serial or memory_bytes is None or pci_id is None:
            return
        yield Card(
            index=index,
            serial=serial,
            name=rsmi.read_text("rsmi_dev_name_get", index, c_size_t),
            pci_device_id=rsmi.read("rsmi_dev_id_get", c_uint16(), here),
            pci_address=_pci_address(pci_id),
            memory_bytes=memory_bytes,
            unique_id=None if unique_id is None else f"{unique_id:016x}",
            numa_node=rsmi.read("rsmi_topo_numa_affinity_get", c_int32(), here),
            render_minor=rsmi.read("rsmi_dev_drm_render_minor_get", c_uint32(), here),
            compute_units=None if info is None else info.compute_units,
            max_vdevs=dmi.read("dmiGetMaxVDeviceCount", c_int()),
        )
    except DriverError as error:
        if not error.lost:
            raise


def _pci_address(bdf: int) -> str:
    """rocm_smi packs domain << 32 | bus << 8 | device << 3 | function."""
    return f"{bdf >> 32:04x}:{bdf >> 8 & 0xFF:02x}:{bdf >> 3 & 0x1F:02x}.{bdf & 7}"
