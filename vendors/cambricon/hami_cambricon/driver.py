# SPDX-License-Identifier: Apache-2.0
"""The one file that touches CNDev: calls in, plain facts and one typed error out.

CNDev's convention: the structure to fill comes first, the device last, and most structures begin with an int32 version
that the caller sets (`_VERSION`; the V2 ones have none). "Not supported" is an ordinary answer for any single fact and
becomes None. Layouts: the bindings of Cambricon's device plugin (CNDev 6.5).
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char, c_char_p, c_int, c_int32, c_int64, c_ubyte, c_uint, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

PATHS = ("libcndev.so", "/usr/local/neuware/lib64/libcndev.so", "/usr/lib64/libcndev.so")
"""Where the library is looked for: the linker's own path first, then where the driver puts it."""

NO_DRIVER, INVALID_DEVICE, TOO_SMALL, NOT_SUPPORTED, NO_DEVICES, NOT_FOUND = 1, 6, 9, 10, 12, 14
_VERSION = 6
"""CNDEV_VERSION_6."""
ENABLED = 1
MAX_PROFILES = 128

S = TypeVar("S", bound=ctypes.Structure)


class CndevError(Exception):
    """CNDev refused a call. `code` is its cndevRet_t."""

    def __init__(self, function: str, code: int, words: str) -> None:
        super().__init__(f"{function}: {words} (CNDev error {code})")
        self.function = function
        self.code = code


class Versioned(ctypes.Structure):
    """A structure that begins with CNDev's version word, already filled in."""

    _fields_: ClassVar = [("version", c_int32)]

    def __init__(self, **values: Any) -> None:
        super().__init__(version=_VERSION, **values)


class CardCount(Versioned):
    _fields_: ClassVar = [("number", c_uint32)]


class Uuid(Versioned):
    _fields_: ClassVar = [("uuid", c_char * 37), ("ncs", c_uint64)]


class CardSn(Versioned):
    _fields_: ClassVar = [("sn", c_uint64), ("motherboard", c_uint64)]


class CardHealth(Versioned):
    _fields_: ClassVar = [("health", c_int), ("device_state", c_int), ("driver_state", c_int)]


class NumaNode(Versioned):
    _fields_: ClassVar = [("node", c_int32)]


class Utilization(Versioned):
    _fields_: ClassVar = [("average", c_int), ("core", c_int * 80)]


class Switch(Versioned):
    """cndevSMLUMode_t, cndevMimMode_t."""

    _fields_: ClassVar = [("mode", c_int)]


class LinkRemote(Versioned):
    _fields_: ClassVar = [
        ("mc_sn", c_uint64), ("ba_sn", c_uint64), ("slot_id", c_uint32), ("port_id", c_uint32), ("ip", c_ubyte * 16), ("uuid", c_char * 37),
        ("ip_version", c_uint32), ("ip_valid", c_uint32), ("connect_type", c_int32), ("ncs", c_uint64), ("mac", c_ubyte * 6), ("port_name", c_char * 256),
    ]  # fmt: skip


class SMluSet(Versioned):
    _fields_: ClassVar = [("quota", c_uint32), ("memory", c_uint64)]


class SMluProfileIds(Versioned):
    _fields_: ClassVar = [("count", c_int), ("ids", c_int * MAX_PROFILES)]


class SMluProfile(Versioned):
    _fields_: ClassVar = [
        ("profile_id", c_int), ("name", c_char * 100), ("total", c_uint32), ("remain", c_uint32), ("quota", c_uint32 * 2), ("memory", c_uint64 * 2),
    ]  # fmt: skip


class SMluInstance(Versioned):
    _fields_: ClassVar = [
        ("profile_id", c_int), ("instance_id", c_int), ("uuid", c_char * 37), ("domain", c_int32), ("bus", c_int32), ("device", c_int32), ("function", c_int32),
        ("profile_name", c_char * 100), ("instance_name", c_char * 100), ("node_name", c_char * 100), ("quota", c_uint32 * 2), ("memory", c_uint64 * 2),
        ("reserved", c_uint32 * 128),
    ]  # fmt: skip


class MemoryV2(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int64) for name in ("total_mb", "used_mb", "reserved_mb", "virtual_total", "virtual_used")), ("global_memory", c_uint64),
        ("reserved", c_uint64 * 16),
    ]  # fmt: skip


class PcieV2(ctypes.Structure):
    _fields_: ClassVar = [
        ("subsystem", c_uint32), ("device_id", c_uint32), ("vendor", c_uint16), ("subvendor", c_uint16),
        *((name, c_uint32) for name in ("domain", "bus", "device", "function")), ("module", c_uint16), ("slot", c_uint16), ("reserved", c_uint32 * 8),
    ]  # fmt: skip


class LinkStatusV2(ctypes.Structure):
    _fields_: ClassVar = [("mac", c_int), ("serdes", c_int), ("presence", c_int), ("progress", c_uint32), ("reserved", c_uint32 * 7)]


@dataclass(frozen=True)
class Card:
    """The facts of one MLU; None where CNDev cannot say."""

    index: int
    uuid: str
    product: str
    memory_mib: int
    slot: int | None
    """What names `/dev/cambricon_dev<slot>`; not CNDev's index."""
    numa_node: int | None
    pci_address: str | None
    serial: str | None
    board: str | None
    """Serial number of the board that the chip shares with another one."""
    smlu: bool
    """The card and its driver can make sMLU instances."""
    link_peers: tuple[str, ...]
    """UUID at the far end of each MLU-Link that is up."""


@cache
def library() -> ctypes.CDLL | None:
    """The library, opened once; None where it, the driver or every card is missing. Raises `CndevError`."""
    for path in PATHS:
        try:
            opened = ctypes.CDLL(path)
        except OSError:
            continue
        opened.cndevGetErrorString.restype = opened.cndevGetCardNameStringByDevId.restype = c_char_p
        code = opened.cndevInit(0)
        if code in (NO_DRIVER, NO_DEVICES):
            return None
        if code != 0:
            raise CndevError("cndevInit", code, opened.cndevGetErrorString(code).decode())
        return opened
    return None


def call(function: str, *arguments: Any) -> None:
    """One CNDev call. Raises `CndevError`; a function that this library lacks counts as not supported."""
    opened = library()
    if opened is None:
        raise CndevError(function, NO_DRIVER, "libcndev.so is not installed")
    symbol = getattr(opened, function, None)
    code = NOT_SUPPORTED if symbol is None else symbol(*arguments)
    if code != 0:
        raise CndevError(function, code, opened.cndevGetErrorString(code).decode())


def get(function: str, answer: S, *arguments: Any) -> S:
    """One call that fills a structure: structure first, device last. Raises `CndevError`."""
    call(function, byref(answer), *arguments)
    return answer


def ask(function: str, answer: S, *arguments: Any) -> S | None:
    """As `get`; None where the card does not have that fact."""
    try:
        return get(function, answer, *arguments)
    except CndevError as error:
        if error.code == NOT_SUPPORTED:
            return None
        raise


def count() -> int:
    """How many MLUs the driver lists."""
    return int(get("cndevGetDeviceCount", CardCount()).number)


def handle(uuid: str) -> int:
    """The handle of the card with this UUID, now; handles are numbers that may change. Raises `CndevError`."""
    device = c_int32()
    call("cndevGetDeviceHandleByUUID", uuid.encode(), byref(device))
    return device.value


def find(uuid: str) -> int | None:
    """As `handle`; None where the driver does not list the card."""
    try:
        return handle(uuid)
    except CndevError as error:
        if error.code in (INVALID_DEVICE, NOT_FOUND):
            return None
        raise


def card(index: int) -> Card:
    """All facts of one card. Raises `CndevError` when it does not answer."""
    opened, found = library(), c_int32()
    call("cndevGetDeviceHandleByIndex", index, byref(found))
    device = found.value
    sn = ask("cndevGetCardSN", CardSn(), device)
    pcie = ask("cndevGetPCIeInfoV2", PcieV2(), device)
    numa = ask("cndevGetNUMANodeIdByDevId", NumaNode(), device)
    name = opened.cndevGetCardNameStringByDevId(device) if opened is not None else b""
    return Card(
        index=index,
        uuid=get("cndevGetUUID", Uuid(), device).uuid.decode(),
        product=name.decode(),
        memory_mib=get("cndevGetMemoryUsageV2", MemoryV2(), device).total_mb,
        slot=pcie.slot if pcie else None,
        numa_node=numa.node if numa is not None and numa.node >= 0 else None,
        pci_address=f"{pcie.domain:04x}:{pcie.bus:02x}:{pcie.device:02x}.{pcie.function:x}" if pcie else None,
        serial=f"{sn.sn:x}" if sn else None,
        board=f"{sn.motherboard:x}" if sn and sn.motherboard else None,
        smlu=ask("cndevGetSMLUMode", Switch(), device) is not None,
        link_peers=tuple(_link_peers(device)),
    )


def health(uuid: str) -> CardHealth:
    """`health` 1 is good; so are `device_state` 1 and `driver_state` 4 (running). Raises `CndevError`."""
    return get("cndevGetCardHealthState", CardHealth(), handle(uuid))


def memory_used_mib(uuid: str) -> int:
    """Memory in use on the whole card."""
    return int(get("cndevGetMemoryUsageV2", MemoryV2(), handle(uuid)).used_mb)


def busy_percent(uuid: str) -> float | None:
    """Average over the card's cores."""
    found = ask("cndevGetDeviceUtilizationInfo", Utilization(), handle(uuid))
    return None if found is None else float(found.average)


def smlu_instances(device: int) -> list[SMluInstance]:
    """Every sMLU instance of a card. Asked again with room enough when there are more than expected (code 9)."""
    number = 16
    while True:
        size = c_int(number)
        infos = (SMluInstance * number)(*(SMluInstance() for _ in range(number)))
        try:
            call("cndevGetAllSMluInstanceInfo", byref(size), infos, device)
        except CndevError as error:
            if error.code != TOO_SMALL or size.value <= number:
                raise
            number = size.value
            continue
        return list(infos[: size.value])


def smlu_profiles(device: int) -> list[SMluProfile]:
    """Every sMLU profile of a card."""
    known = get("cndevGetSMluProfileIdInfo", SMluProfileIds(), device)
    return [get("cndevGetSMluProfileInfo", SMluProfile(), number, device) for number in known.ids[: known.count]]


def enable_smlu(device: int) -> None:
    """Put the card into sMLU mode if it is not."""
    if get("cndevGetSMLUMode", Switch(), device).mode != ENABLED:
        call("cndevSetSMLUMode", byref(Switch(mode=ENABLED)), device)


def create_smlu_profile(device: int, quota_percent: int, memory_bytes: int) -> int:
    """The id of a new profile. Raises `CndevError`."""
    profile = c_int()
    call("cndevCreateSMluProfileInfo", byref(SMluSet(quota=quota_percent, memory=memory_bytes)), byref(profile), device)
    return profile.value


def create_smlu_instance(device: int, profile: int, name: str) -> None:
    """A new instance of a profile, found again by its name. Raises `CndevError`."""
    call("cndevCreateSMluInstanceByProfileId", byref(c_int32()), c_uint(profile), device, name.encode())


def destroy_smlu_instance(device: int, slot: int, instance: SMluInstance) -> None:
    """Instance first, then its profile if nothing uses that any more: a profile left behind eats one of the card's 16."""
    call("cndevDestroySMluInstanceByHandle", c_int32(instance.instance_id << 8 | slot))
    if all(other.profile_id != instance.profile_id for other in smlu_instances(device)):
        call("cndevDestroySMluProfileInfo", c_int(instance.profile_id), device)


def _link_peers(device: int) -> list[str]:
    """`cndevGetMLULinkPortNumber` answers the number itself, negative or zero where there is none."""
    opened = library()
    ports = opened.cndevGetMLULinkPortNumber(device) if opened is not None else 0
    peers = []
    for port in range(max(ports, 0)):
        status = ask("cndevGetMLULinkStatusV2", LinkStatusV2(), device, port)
        if status is not None and status.mac == 1 and status.serdes == 1:
            remote = ask("cndevGetMLULinkRemoteInfo", LinkRemote(), device, port)
            peers += [remote.uuid.decode()] if remote is not None and remote.uuid else []
    return peers
