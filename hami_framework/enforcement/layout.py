# SPDX-License-Identifier: Apache-2.0
"""The files that a container's processes and the node agent share, as ctypes structures.

Made by `python -m hami_interceptor layout` from core/layout.toml; change that instead.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

LAYOUT_VERSION = 1
MAX_DEVICES = 16
MAX_IDENTITIES = 8
MAX_SLOTS = 1024
MAX_EXPORTS = 256
NO_LIMIT = 0xFFFFFFFFFFFFFFFF
CORE_UNLIMITED = 0
MILLI_PERCENT = 100000
GAIN_ONE = 65536
POLICY_MAGIC = 0x314C4F50494D4148
CONTROL_MAGIC = 0x314C5443494D4148
STATE_MAGIC = 0x31545453494D4148


class SlotState(IntEnum):
    FREE = 0
    CLAIMING = 1
    LIVE = 2
    RECLAIMING = 3


class ComputeMode(IntEnum):
    FIXED = 0
    WORK_CONSERVING = 1


class DeviceFlag(IntEnum):
    OVERSUBSCRIBE = 1
    CHARGE_IMPORTS = 2


class PolicyFlag(IntEnum):
    ADVISORY = 1


class ControlFlag(IntEnum):
    SUSPENDED = 1


class Identity(ctypes.LittleEndianStructure):
    """One name that a driver API may call the device by."""

    kind: bytes
    value: bytes
    _fields_ = (
        ("kind", ctypes.c_char * 16),
        ("value", ctypes.c_char * 80),
    )


class PolicyDevice(ctypes.LittleEndianStructure):
    """What one device of the container may be used for. Its place in the file is its index everywhere, for as long as the container lives."""

    vendor: bytes
    identities: ctypes.Array[Identity]
    memory_bytes: int
    """the most that may be held; NO_LIMIT: no limit"""
    capacity_bytes: int
    """what the device has in all; 0: not known"""
    virtual_bytes: int
    """with OVERSUBSCRIBE: the most managed memory; else 0"""
    context_bytes: int
    """what a context costs on this device and driver; 0: to be measured"""
    core_milli: int
    """thousandths of a percent of the device's time; CORE_UNLIMITED: no limit"""
    compute_mode: int
    """see compute_mode"""
    weight: int
    """share of lent time relative to others; 0 reads as 1"""
    priority: int
    """0 is the highest"""
    flags: int
    """see device_flag"""
    burst_us: int
    """how far ahead of its share the container may run; 0: the library's default"""
    reserved: ctypes.Array[ctypes.c_ubyte]
    _fields_ = (
        ("vendor", ctypes.c_char * 16),
        ("identities", Identity * 8),
        ("memory_bytes", ctypes.c_uint64),
        ("capacity_bytes", ctypes.c_uint64),
        ("virtual_bytes", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
        ("core_milli", ctypes.c_uint32),
        ("compute_mode", ctypes.c_uint32),
        ("weight", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("burst_us", ctypes.c_uint32),
        ("reserved", ctypes.c_ubyte * 64),
    )


class PolicyHeader(ctypes.LittleEndianStructure):
    """The beginning of policy.bin; `device_count` records of `policy_device` follow."""

    magic: int
    layout_version: int
    header_size: int
    record_size: int
    device_count: int
    generation: int
    """counts up with every change; the same number stands in control.bin once it is in effect"""
    checksum: int
    """FNV-1a (64 bit) of the whole file with this field zero"""
    flags: int
    """see policy_flag"""
    reserved_word: int
    container: bytes
    """<owner uid>/<container>, for messages"""
    reserved: ctypes.Array[ctypes.c_ubyte]
    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("layout_version", ctypes.c_uint32),
        ("header_size", ctypes.c_uint32),
        ("record_size", ctypes.c_uint32),
        ("device_count", ctypes.c_uint32),
        ("generation", ctypes.c_uint64),
        ("checksum", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved_word", ctypes.c_uint32),
        ("container", ctypes.c_char * 192),
        ("reserved", ctypes.c_ubyte * 16),
    )


class ControlDevice(ctypes.LittleEndianStructure):
    """The agent's word on one device."""

    effective_milli: int
    """the share to hold now (work-conserving lends, priority takes); 0: the policy's own"""
    gain: int
    """outer correction of the measured cost, Q16.16, held within [0.5, 2]; 0 reads as GAIN_ONE"""
    flags: int
    """see control_flag"""
    reserved: ctypes.Array[ctypes.c_ubyte]
    _fields_ = (
        ("effective_milli", ctypes.c_uint32),
        ("gain", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_ubyte * 52),
    )


class ControlFile(ctypes.LittleEndianStructure):
    """All of control.bin."""

    magic: int
    layout_version: int
    size: int
    generation: int
    """low half of the policy's generation; a futex: it changes with every change of policy or of suspension"""
    flags: int
    """see control_flag; for all devices of the container"""
    heartbeat_ns: int
    """CLOCK_MONOTONIC of the agent's last look; older than 10 s: gain and effective_milli are not used"""
    reserved: ctypes.Array[ctypes.c_ubyte]
    devices: ctypes.Array[ControlDevice]
    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("layout_version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("heartbeat_ns", ctypes.c_uint64),
        ("reserved", ctypes.c_ubyte * 96),
        ("devices", ControlDevice * 16),
    )


class StateDevice(ctypes.LittleEndianStructure):
    """One device's books: a cache line pair of its own, so that devices do not disturb each other."""

    used_bytes: int
    """sum over the slots; a cache that whoever finds the mutex's owner dead computes anew. Written under the mutex"""
    high_water_bytes: int
    virtual_used_bytes: int
    """managed memory under OVERSUBSCRIBE"""
    tat_ns: int
    """GCRA's theoretical arrival time, CLOCK_MONOTONIC"""
    context_bytes: int
    """what the first context was measured to cost; 0: not measured"""
    refusals: int
    """allocations refused since the container began"""
    launches: int
    """launches charged (counted in batches)"""
    waited_ns: int
    """time that launches were held back"""
    reserved: ctypes.Array[ctypes.c_ubyte]
    _fields_ = (
        ("used_bytes", ctypes.c_uint64),
        ("high_water_bytes", ctypes.c_uint64),
        ("virtual_used_bytes", ctypes.c_uint64),
        ("tat_ns", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
        ("refusals", ctypes.c_uint64),
        ("launches", ctypes.c_uint64),
        ("waited_ns", ctypes.c_uint64),
        ("reserved", ctypes.c_ubyte * 64),
    )


class SlotDevice(ctypes.LittleEndianStructure):
    """What one process holds on one device."""

    held_bytes: int
    """reserved and committed; written under the mutex"""
    virtual_bytes: int
    busy_ns: int
    """device time charged"""
    context_bytes: int
    """the part of held_bytes that is contexts"""
    _fields_ = (
        ("held_bytes", ctypes.c_uint64),
        ("virtual_bytes", ctypes.c_uint64),
        ("busy_ns", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
    )


class Slot(ctypes.LittleEndianStructure):
    """One process. It never moves."""

    state: int
    """low 32 bits: see slot_state; high 32 bits: counts up at each claim"""
    pid: int
    """in the container's PID namespace"""
    start_ticks: int
    """field 22 of /proc/<pid>/stat, against reuse of the PID"""
    joined_ns: int
    """CLOCK_MONOTONIC"""
    unknown_symbols: int
    """names that a resolver handed out and the table does not know"""
    private_tables: int
    """accesses to a driver's export tables"""
    reserved: ctypes.Array[ctypes.c_ubyte]
    devices: ctypes.Array[SlotDevice]
    _fields_ = (
        ("state", ctypes.c_uint64),
        ("pid", ctypes.c_uint64),
        ("start_ticks", ctypes.c_uint64),
        ("joined_ns", ctypes.c_uint64),
        ("unknown_symbols", ctypes.c_uint64),
        ("private_tables", ctypes.c_uint64),
        ("reserved", ctypes.c_ubyte * 16),
        ("devices", SlotDevice * 16),
    )


class Export(ctypes.LittleEndianStructure):
    """A memory handle that a process of this container has exported: its importer in the same container is not charged again."""

    handle_hash: int
    """FNV-1a of the handle's bytes; 0: free"""
    bytes: int
    _fields_ = (
        ("handle_hash", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
    )


class StateFile(ctypes.LittleEndianStructure):
    """All of state.bin."""

    magic: int
    layout_version: int
    size: int
    ready: int
    """1 once the first process has initialised the mutex (under an record lock on byte 0)"""
    reserved_word: int
    epoch: int
    """counts reclaims and recounts"""
    next_export: int
    reserved: ctypes.Array[ctypes.c_ubyte]
    mutex: ctypes.Array[ctypes.c_ubyte]
    """pthread_mutex_t, robust and process-shared"""
    devices: ctypes.Array[StateDevice]
    exports: ctypes.Array[Export]
    slots: ctypes.Array[Slot]
    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("layout_version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("ready", ctypes.c_uint32),
        ("reserved_word", ctypes.c_uint32),
        ("epoch", ctypes.c_uint64),
        ("next_export", ctypes.c_uint64),
        ("reserved", ctypes.c_ubyte * 24),
        ("mutex", ctypes.c_ubyte * 64),
        ("devices", StateDevice * 16),
        ("exports", Export * 256),
        ("slots", Slot * 1024),
    )


SIZES: tuple[tuple[type[ctypes.LittleEndianStructure], int], ...] = (
    (Identity, 96),
    (PolicyDevice, 904),
    (PolicyHeader, 256),
    (ControlDevice, 64),
    (ControlFile, 1152),
    (StateDevice, 128),
    (SlotDevice, 32),
    (Slot, 576),
    (Export, 16),
    (StateFile, 596096),
)
"""What each structure must measure, for the test that holds this module to the C header."""
