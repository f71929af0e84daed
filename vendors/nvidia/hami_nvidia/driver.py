# SPDX-License-Identifier: Apache-2.0
"""The one file that touches NVML: calls in, plain facts and one typed error out.

NVML stays open as long as the process lives: opening it wakes every GPU of a node that has no persistence daemon. A GPU
that was seen once and no longer answers is still listed, as lost: it has fallen off the bus, it was not taken out.
"Not supported" is an ordinary answer of NVML for any single fact, and becomes None.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pynvml

_SILENT = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_NO_PERMISSION})
_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_NOT_FOUND})
_APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""XIDs that a faulty program causes and that leave the GPU well (the list NVIDIA's own device plugin skips)."""


class DriverError(Exception):
    """NVML refused a call. `code` is its nvmlReturn_t."""

    def __init__(self, function: str, code: int, words: str) -> None:
        super().__init__(f"{function}: {words} (NVML error {code})")
        self.function = function
        self.code = code

    @property
    def lost(self) -> bool:
        """The GPU has fallen off the bus, must be reset before it answers again, or its UUID is no longer found."""
        return self.code in _LOST


@dataclass(frozen=True)
class MigProfile:
    """A MIG profile with the memory slices where an instance of it may begin."""

    name: str
    memory_mib: int
    compute_slices: int
    instances: int
    size: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Gpu:
    """The facts of one GPU; None where NVML cannot say."""

    index: int
    uuid: str
    product: str
    pci_address: str
    memory_bytes: int | None
    minor: int | None
    serial: str | None
    numa_node: int | None
    compute_capability: str | None
    mig_enabled: bool
    mig_profiles: tuple[MigProfile, ...]
    nvlink_peers: tuple[str, ...]
    """PCI address of the GPU at the far end, once for each active link; empty for links that end in a switch."""
    switch_lanes: int
    lost: bool = False


_seen: dict[str, Gpu] = {}
_xids: dict[str, int] = {}
_watched: set[str] = set()
_events: list[Any] = []


def call(function: str, *arguments: Any) -> Any:
    """One NVML call. Raises `DriverError`."""
    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError as error:
        raise DriverError(function, error.value, str(error)) from error


def ask(function: str, *arguments: Any) -> Any | None:
    """One NVML call about a fact that a GPU need not have: None where NVML does not know it."""
    try:
        return call(function, *arguments)
    except DriverError as error:
        if error.code in _SILENT:
            return None
        raise


def present() -> bool:
    """Open NVML if it is not open. False where the library is not installed: this node has no NVIDIA driver."""
    if _events:
        return True
    try:
        call("nvmlInit")
    except DriverError as error:
        if error.code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return False
        raise
    _events.append(call("nvmlEventSetCreate"))
    return True


def gpus() -> tuple[Gpu, ...]:
    """Every GPU that answers, and those that did once, marked lost."""
    found = {gpu.uuid: gpu for index in range(call("nvmlDeviceGetCount")) for gpu in _gpu(index)}
    lost = [replace(gpu, lost=True) for uuid, gpu in _seen.items() if uuid not in found]
    _seen.update(found)
    return tuple(sorted([*found.values(), *lost], key=lambda gpu: gpu.index))


def problem(uuid: str) -> str | None:
    """Why this GPU should take no work, in words; None when it is well."""
    _collect_xids()
    try:
        handle = call("nvmlDeviceGetHandleByUUID", uuid)
        uncorrected = ask("nvmlDeviceGetTotalEccErrors", handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        rows = ask("nvmlDeviceGetRemappedRows", handle)
        _watch(uuid, handle)
    except DriverError as error:
        if error.lost:
            _watched.discard(uuid)
            _xids.pop(uuid, None)  # it needs a reset to come back, and that clears what the XID stood for
            return f"the GPU is lost: {error}"
        raise
    if uuid in _xids:
        return f"XID {_xids[uuid]} reported by the driver; reset the GPU"
    if uncorrected:
        return f"{uncorrected} uncorrected ECC errors since the driver was loaded; reset the GPU"
    if rows and rows[3]:
        return "a faulty row of memory could not be remapped; replace the GPU"
    return None


def memory_used_bytes(uuid: str) -> int | None:
    """Memory in use on the whole GPU."""
    memory = ask("nvmlDeviceGetMemoryInfo", call("nvmlDeviceGetHandleByUUID", uuid))
    return None if memory is None else int(memory.used)


def busy_percent(uuid: str) -> float | None:
    """Share of the last sampling period in which a kernel ran; unknown while MIG is on."""
    rates = ask("nvmlDeviceGetUtilizationRates", call("nvmlDeviceGetHandleByUUID", uuid))
    return None if rates is None else float(rates.gpu)


def processes(uuid: str) -> dict[int, int] | None:
    """Host PID → bytes in use, over compute and graphics; None where NVML does not say who, or how much of it (MIG, WSL)."""
    handle = call("nvmlDeviceGetHandleByUUID", uuid)
    found: dict[int, int] = {}
    computing, drawing = _running("Compute", handle), _running("Graphics", handle)
    if computing is None:
        return None
    for process in (*computing, *(drawing or ())):  # a process that does both is in both lists, with all of its memory in each
        if process.usedGpuMemory is None:
            return None
        found[int(process.pid)] = max(found.get(int(process.pid), 0), int(process.usedGpuMemory))
    return found


def _running(kind: str, handle: Any) -> Any | None:
    """The newest form of the list that this driver has; asked by version, since pynvml gives up where it expects another one."""
    listed = ask(f"nvmlDeviceGet{kind}RunningProcesses_v3", handle)
    return listed if listed is not None else ask(f"nvmlDeviceGet{kind}RunningProcesses_v2", handle)


def common_ancestor(first: str, second: str) -> int | None:
    """How far apart two GPUs (UUIDs) are on PCI Express, as NVML's topology level; None when one of them is lost."""
    try:
        handles = (call("nvmlDeviceGetHandleByUUID", first), call("nvmlDeviceGetHandleByUUID", second))
        return ask("nvmlDeviceGetTopologyCommonAncestor", *handles)
    except DriverError as error:
        if error.lost:
            return None
        raise


def _gpu(index: int) -> Iterator[Gpu]:
    try:
        handle = call("nvmlDeviceGetHandleByIndex", index)
        memory = ask("nvmlDeviceGetMemoryInfo", handle)
        capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
        mig_mode = ask("nvmlDeviceGetMigMode", handle)
        peers, switch_lanes = _nvlinks(handle)
        yield Gpu(
            index=index,
            uuid=call("nvmlDeviceGetUUID", handle),
            product=call("nvmlDeviceGetName", handle),
            pci_address=_pci_address(call("nvmlDeviceGetPciInfo", handle)),
            memory_bytes=None if memory is None else memory.total,
            minor=ask("nvmlDeviceGetMinorNumber", handle),
            serial=ask("nvmlDeviceGetSerial", handle),
            numa_node=ask("nvmlDeviceGetNumaNodeId", handle),
            compute_capability=capability and f"{capability[0]}.{capability[1]}",
            mig_enabled=bool(mig_mode and mig_mode[0]),
            mig_profiles=() if mig_mode is None else tuple(_mig_profiles(handle)),
            nvlink_peers=peers,
            switch_lanes=switch_lanes,
        )
    except DriverError as error:
        if not error.lost:
            raise


def _pci_address(pci: Any) -> str:
    """As the kernel writes it: four digits of domain, lower case (NVML writes eight, upper case)."""
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"


def _nvlinks(handle: Any) -> tuple[tuple[str, ...], int]:
    """PCI addresses at the far ends of the links to other GPUs, and the number of links to switches."""
    peers: list[str] = []
    switch_lanes = 0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if not ask_numbered("nvmlDeviceGetNvLinkState", handle, link):
            continue
        if ask_numbered("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link) == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            switch_lanes += 1
        elif (remote := ask_numbered("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)) is not None:
            peers.append(_pci_address(remote))
    return tuple(peers), switch_lanes


def ask_numbered(function: str, handle: Any, number: int) -> Any | None:
    """As `ask`, about the link or profile of this number: NVML calls those that a GPU does not have an invalid argument."""
    try:
        return ask(function, handle, number)
    except DriverError as error:
        if error.code == pynvml.NVML_ERROR_INVALID_ARGUMENT:
            return None
        raise


def _mig_profiles(handle: Any) -> Iterator[MigProfile]:
    """The profiles of a GPU. NVML numbers the questions, not the answers: the index asked is not the profile's id."""
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        info = ask_numbered("nvmlDeviceGetGpuInstanceProfileInfo", handle, number)
        if info is None:
            continue
        placements = _placements(handle, info.id)
        yield MigProfile(
            name=info.name.removeprefix("MIG "),
            memory_mib=info.memorySizeMB,
            compute_slices=info.sliceCount,
            instances=info.instanceCount,
            size=placements[0].size,
            starts=tuple(placement.start for placement in placements),
        )


def _placements(handle: Any, profile_id: int) -> list[Any]:
    """Asked twice, as NVML wants it: how many there are, then for that many."""
    count = ctypes.c_uint(0)
    call("nvmlDeviceGetGpuInstancePossiblePlacements", handle, profile_id, None, ctypes.byref(count))
    placements = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    call("nvmlDeviceGetGpuInstancePossiblePlacements", handle, profile_id, placements, ctypes.byref(count))
    return list(placements[: count.value])


def _watch(uuid: str, handle: Any) -> None:
    """Have the driver tell of XIDs on this GPU; some GPUs cannot."""
    if uuid not in _watched:
        ask("nvmlDeviceRegisterEvents", handle, pynvml.nvmlEventTypeXidCriticalError, _events[0])
        _watched.add(uuid)


def _collect_xids() -> None:
    """Take in the XIDs that the driver has reported since the last time."""
    while (event := _next_event()) is not None:
        if event.eventType == pynvml.nvmlEventTypeXidCriticalError and event.eventData not in _APPLICATION_XIDS:
            try:
                _xids[call("nvmlDeviceGetUUID", event.device)] = event.eventData
            except DriverError as error:
                if not error.lost:  # XID 79 says just that, and `problem` sees it for itself
                    raise


def _next_event() -> Any | None:
    try:
        return ask("nvmlEventSetWait", _events[0], 0)
    except DriverError as error:
        if error.code == pynvml.NVML_ERROR_TIMEOUT or error.lost:
            return None
        raise
