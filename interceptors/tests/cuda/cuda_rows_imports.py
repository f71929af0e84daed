# SPDX-License-Identifier: Apache-2.0
"""What the hooks of the CUDA driver do. Memory of other processes. The container's policy charges imports."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from cuda_bench import Bench, size_t, u64, void
from cuda_row import BLOCK, BYTES, FABRIC, ROWS, TOO_MUCH, Drive, row
from cuda_rows_memory import handle, mapped
from cuda_structs import External

# -- memory of other processes; the container's policy charges imports --------------------------------------------------


class IpcHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char * 64),)


def other_process(b: Bench, script: Callable[[], bytes]) -> bytes:
    """What `script` answers in a process that lives on beside this one."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, script())
        os.close(writer)
        os.execvp("sleep", ["sleep", "0.1"])
    return os.read(reader, 64)


def ipc_handle(b: Bench, within: bool) -> IpcHandle:
    """Of a block that another process made: with the hooks, in this container; around them all, as if in another one."""

    def script() -> bytes:
        b.begin()
        out = IpcHandle()
        pointer = u64(b.make("cuMemAlloc_v2", size_t(BYTES)))
        get = b.code if within else b.raw
        assert get("cuIpcGetMemHandle", ctypes.byref(out), pointer) == 0
        return bytes(out)

    return IpcHandle.from_buffer_copy(other_process(b, script))


@row("cuIpcGetMemHandle", expected=0)
def opened_within_the_container(b: Bench, symbol: str) -> Any:
    given = ipc_handle(b, within=True)
    b.begin()
    with b.charged() as change:
        b.make("cuIpcOpenMemHandle_v2", given, 1)
    return change[0]


@row("cuIpcOpenMemHandle", "cuIpcOpenMemHandle_v2", expected=BLOCK)
def opened_from_outside(b: Bench, symbol: str) -> Any:
    given = ipc_handle(b, within=False)
    b.begin()
    with b.charged() as change:
        b.make(symbol, given, 1)
    return change[0]


@row("cuIpcCloseMemHandle", expected=0)
def closed(b: Bench, symbol: str) -> Any:
    given = ipc_handle(b, within=False)
    b.begin()
    with b.charged() as change:
        b("cuIpcCloseMemHandle", u64(b.make("cuIpcOpenMemHandle_v2", given, 1)))
    return change[0]


def shareable_handle(b: Bench, within: bool) -> Any:
    def script() -> bytes:
        b.begin()
        out = IpcHandle()
        export = b.code if within else b.raw
        assert export("cuMemExportToShareableHandle", ctypes.byref(out), u64(handle(b)), FABRIC, u64(0)) == 0
        return bytes(out)

    return IpcHandle.from_buffer_copy(other_process(b, script))


@row("cuMemExportToShareableHandle", expected=0)
def imported_within_the_container(b: Bench, symbol: str) -> Any:
    given = shareable_handle(b, within=True)
    b.begin()
    with b.charged() as change:
        mapped(b, b.make("cuMemImportFromShareableHandle", ctypes.byref(given), FABRIC))
    return change[0]


@row("cuMemImportFromShareableHandle", expected=[BLOCK, 0])
def imported_from_outside(b: Bench, symbol: str) -> Any:
    given = shareable_handle(b, within=False)
    b.begin()
    start = b.held()
    address = mapped(b, b.make(symbol, ctypes.byref(given), FABRIC))
    found = b.held() - start
    b("cuMemUnmap", u64(address), size_t(BYTES))
    return [found, b.held() - start]


@row("cuImportExternalMemory", expected=[BLOCK, 2])
def external(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        b.make(symbol, ctypes.byref(External(size=BYTES)))
    return [change[0], b.code(symbol, ctypes.byref(u64()), ctypes.byref(External(size=TOO_MUCH)))]


@row("cuDestroyExternalMemory", expected=0)
def external_destroyed(b: Bench, symbol: str) -> Any:
    b.begin()
    with b.charged() as change:
        b(symbol, void(b.make("cuImportExternalMemory", ctypes.byref(External(size=BYTES)))))
    return change[0]


# -- where the policy does not charge imports, memory from outside costs its importer nothing ---------------------------------

IMPORTS = ("cuIpcOpenMemHandle", "cuIpcOpenMemHandle_v2", "cuMemImportFromShareableHandle", "cuImportExternalMemory")
UNCHARGED: dict[str, Drive] = {
    symbol: Drive(ROWS[symbol].show, {"cuMemImportFromShareableHandle": [0, 0], "cuImportExternalMemory": [0, 0]}.get(symbol, 0)) for symbol in IMPORTS
}
