# SPDX-License-Identifier: Apache-2.0
"""The one file that touches DCMI: calls in, plain facts and one typed error out.

A chip is addressed by (card id, chip id on the card). Its *logic* id counts what this operating system sees, its *phy*
id names `/dev/davinci<phy>`: they differ, and are always asked for. The structures follow the published header
dcmi_interface_api.h (natural alignment). "Unsupported" is an ordinary answer for any single fact and becomes None.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char, c_float, c_int, c_ubyte, c_uint, c_ulong, c_ulonglong, c_ushort
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

PATHS = ("libdcmi.so", "/usr/local/dcmi/libdcmi.so", "/usr/local/Ascend/driver/lib64/driver/libdcmi.so")
"""Where the library is looked for: the linker's own path first, then where the driver puts it."""

UNSUPPORTED = frozenset({-8255, -8013})
"""Not supported by this chip; not supported inside a container."""
_WORDS = {
    -8001: "invalid parameter", -8002: "permission denied", -8003: "out of memory", -8005: "internal error", -8006: "timeout", -8007: "no such device",
    -8008: "the device is not there", -8009: "ioctl failed", -8010: "send failed", -8011: "receive failed", -8012: "not ready", -8013: "not in a container",
    -8015: "the device is being reset", -8017: "the device is being upgraded", -8020: "resource occupied", -8255: "not supported",
}  # fmt: skip
NPU = 0
VDIE = 1
AICORE = 2
VDEV_MANAGEMENT, VDEV_TOTALS = 52, 1
ABSENT = 0xFFFFFFFF
MAX_CARDS = 64
MAX_ERROR_CODES = 128
MAX_PROCESSES = 256
"""Room for more than any driver lists (npu-smi has room for 32): the call is not told how much there is."""

A = TypeVar("A", bound="ctypes.Structure | ctypes._SimpleCData[int]")


class DcmiError(Exception):
    """DCMI refused a call. `code` is what it returned."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function}: {_WORDS.get(code, 'unknown error')} (DCMI error {code})")
        self.function = function
        self.code = code


class ChipInfo(ctypes.Structure):
    _fields_: ClassVar = [("chip_type", c_char * 32), ("chip_name", c_char * 32), ("chip_ver", c_char * 32), ("aicore_cnt", c_uint)]


class DieInfo(ctypes.Structure):
    _fields_: ClassVar = [("soc_die", c_uint * 5)]


class ElabelInfo(ctypes.Structure):
    _fields_: ClassVar = [(name, c_char * 256) for name in ("product_name", "model", "manufacturer", "manufacturer_date", "serial_number")]


class PcieInfo(ctypes.Structure):
    _fields_: ClassVar = [
        ("vendor", c_uint), ("subvendor", c_uint), ("device", c_uint), ("subdevice", c_uint), ("domain", c_int),
        ("bus", c_uint), ("slot", c_uint), ("function", c_uint), ("reserve", c_ubyte * 32),
    ]  # fmt: skip


class HbmInfo(ctypes.Structure):
    _fields_: ClassVar = [("size_mb", c_ulonglong), ("freq", c_uint), ("used_mb", c_ulonglong), ("temp", c_int), ("bandwidth_util", c_uint)]


class DdrInfo(ctypes.Structure):
    _fields_: ClassVar = [
        ("size_mb", c_ulonglong), ("available_mb", c_ulonglong), ("freq", c_uint), ("hugepagesize", c_ulong), ("hugepages_total", c_ulong),
        ("hugepages_free", c_ulong), ("utiliza", c_uint), ("reserve", c_ubyte * 60),
    ]  # fmt: skip


class ProcessMemory(ctypes.Structure):
    _fields_: ClassVar = [("pid", c_int), ("used_bytes", c_ulong)]


class ComputingResource(ctypes.Structure):
    _fields_: ClassVar = [
        ("aic", c_float), ("aiv", c_float), *((name, c_ushort) for name in ("dsa", "rtsq", "acsq", "cdqm", "c_core", "ffts", "sdma", "pcie_dma")),
        ("memory_mb", c_ulonglong), *((name, c_uint) for name in ("event_id", "notify_id", "stream_id", "model_id")),
        *((name, c_ushort) for name in ("schedule_aicpu", "host_ctrl_cpu", "host_aicpu", "device_aicpu", "ctrl_cpu_slot")), ("reserved", c_ubyte * 32),
    ]  # fmt: skip


class SocTotals(ctypes.Structure):
    _fields_: ClassVar = [
        ("vdev_num", c_uint), ("vdev_id", c_uint * 32), ("vfg_num", c_uint), ("vfg_bitmap", c_uint),
        ("base", c_ulonglong * 8), ("computing", ComputingResource), ("media", c_ubyte * 56),
    ]  # fmt: skip


@dataclass(frozen=True)
class Address:
    """Where DCMI finds a chip."""

    card: int
    chip: int


@dataclass(frozen=True)
class Chip:
    """The facts of one chip; None where DCMI cannot say."""

    address: Address
    name: str
    aicores: int
    aicpus: int | None
    uuid: str
    """The VDIE: burnt in, and what HAMi calls the UUID."""
    logic_id: int
    phy_id: int
    memory_mib: int
    pci_address: str | None
    serial: str | None
    cpus: str | None
    """The CPUs near it as a list ("0-23"), where the driver knows."""


@cache
def library() -> ctypes.CDLL | None:
    """The library, opened once; None where it is not installed: this node has no Ascend driver. Raises `DcmiError`."""
    for path in PATHS:
        try:
            opened = ctypes.CDLL(path)
        except OSError:
            continue
        code = opened.dcmi_init()
        if code != 0:
            raise DcmiError("dcmi_init", code)
        return opened
    return None


def call(function: str, *arguments: Any) -> None:
    """One DCMI call. Raises `DcmiError`; a function that this driver's library lacks counts as unsupported."""
    symbol = getattr(library(), function, None)
    code = -8255 if symbol is None else symbol(*arguments)
    if code != 0:
        raise DcmiError(function, code)


def ask(function: str, address: Address, answer: A, *arguments: Any) -> A | None:
    """One call about a chip that fills `answer`, its last argument; None where the chip does not have that fact."""
    try:
        call(function, address.card, address.chip, *arguments, byref(answer))
    except DcmiError as error:
        if error.code in UNSUPPORTED:
            return None
        raise
    return answer


def addresses() -> tuple[Address, ...]:
    """Every NPU that the driver lists (a card may carry a management unit and CPUs beside them)."""
    count, cards = c_int(), (c_int * MAX_CARDS)()
    name = "dcmi_get_card_list" if hasattr(library(), "dcmi_get_card_list") else "dcmi_get_card_num_list"  # the older name
    call(name, byref(count), cards, MAX_CARDS)
    found = [Address(card, chip) for card in cards[: count.value] for chip in range(_chips_on(card))]
    return tuple(address for address in found if _is_npu(address))


def chip(address: Address) -> Chip:
    """All facts of one chip. Raises `DcmiError` when it does not answer."""
    info, die = ChipInfo(), DieInfo()
    call("dcmi_get_device_chip_info", address.card, address.chip, byref(info))
    call("dcmi_get_device_die_v2", address.card, address.chip, VDIE, byref(die))
    logic_id, phy_id = c_int(), c_uint()
    call("dcmi_get_device_logic_id", byref(logic_id), address.card, address.chip)
    call("dcmi_get_device_phyid_from_logicid", c_uint(logic_id.value), byref(phy_id))
    elabel = ask("dcmi_get_device_elabel_info", address, ElabelInfo())
    return Chip(
        address=address,
        name=info.chip_name.decode(),
        aicores=info.aicore_cnt,
        aicpus=_aicpus(address),
        uuid="-".join(f"{word:08X}" for word in die.soc_die),
        logic_id=logic_id.value,
        phy_id=phy_id.value,
        memory_mib=memory(address)[0],
        pci_address=_pci_address(address),
        serial=(elabel.serial_number.decode() or None) if elabel else None,
        cpus=_cpus(address),
    )


def memory(address: Address) -> tuple[int, int]:
    """(size, used) in MiB: of the HBM, or of the DDR where there is no HBM (310P)."""
    hbm = ask("dcmi_get_device_hbm_info", address, HbmInfo())
    if hbm is not None and hbm.size_mb:
        return int(hbm.size_mb), int(hbm.used_mb)
    ddr = DdrInfo()
    call("dcmi_get_device_memory_info_v3", address.card, address.chip, byref(ddr))
    return int(ddr.size_mb), int(ddr.size_mb - ddr.available_mb)


def processes(address: Address) -> dict[int, int] | None:
    """The host's PID → bytes of every process that holds memory of the chip; None where the driver does not say, for whatever reason."""
    found, count = (ProcessMemory * MAX_PROCESSES)(), c_int()
    try:
        call("dcmi_get_device_resource_info", address.card, address.chip, found, byref(count))
    except DcmiError:
        return None
    return {one.pid: int(one.used_bytes) for one in found[: count.value]}


def busy_percent(address: Address) -> float | None:
    """Share of the AI cores in use."""
    rate = ask("dcmi_get_device_utilization_rate", address, c_uint(), AICORE)
    return None if rate is None else float(rate.value)


def health(address: Address) -> tuple[int, tuple[int, ...]]:
    """(state, error codes): 0 well, 1 general, 2 important, 3 critical alarm, `ABSENT` gone. Raises `DcmiError`."""
    state, count, codes = c_uint(), c_int(), (c_uint * MAX_ERROR_CODES)()
    call("dcmi_get_device_health", address.card, address.chip, byref(state))
    if state.value in (0, ABSENT):
        return state.value, ()
    call("dcmi_get_device_errorcode_v2", address.card, address.chip, byref(count), codes, MAX_ERROR_CODES)
    return state.value, tuple(codes[: count.value])


@cache
def topology(first: Address, second: Address) -> int | None:
    """How two chips are joined (DCMI_TOPO_TYPE_…); it does not change while the machine runs. None: unsupported."""
    answer = ask("dcmi_get_topo_info_by_device_id", first, c_int(), second.card, second.chip)
    return None if answer is None else answer.value


def _chips_on(card: int) -> int:
    count = c_int()
    call("dcmi_get_device_num_in_card", card, byref(count))
    return count.value


def _is_npu(address: Address) -> bool:
    """A chip that has fallen off the bus cannot say what it is; it was listed among the chips, so it counts as one."""
    kind = c_int()
    try:
        call("dcmi_get_device_type", address.card, address.chip, byref(kind))
    except DcmiError:
        return True
    return kind.value == NPU


def _aicpus(address: Address) -> int | None:
    """AI CPUs that vNPUs can have, from the driver's own totals. It answers them only where vNPUs can be made."""
    totals = SocTotals()
    size = ask("dcmi_get_device_info", address, c_uint(ctypes.sizeof(totals)), VDEV_MANAGEMENT, VDEV_TOTALS, byref(totals))
    return None if size is None else int(totals.computing.device_aicpu) or None


def _pci_address(address: Address) -> str | None:
    pcie = ask("dcmi_get_device_pcie_info_v2", address, PcieInfo())
    return None if pcie is None else f"{pcie.domain:04x}:{pcie.bus:02x}:{pcie.slot:02x}.{pcie.function:x}"


def _cpus(address: Address) -> str | None:
    text = ctypes.create_string_buffer(1024)
    length = ask("dcmi_get_affinity_cpu_info_by_device_id", address, c_int(len(text)), text)
    return None if length is None else text.value.decode() or None
