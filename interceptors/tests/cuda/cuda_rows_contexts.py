# SPDX-License-Identifier: Apache-2.0
"""What the hooks of the CUDA driver do. Contexts, launches, questions and resolvers."""

from __future__ import annotations

import ctypes
from typing import Any

from cuda_bench import MIB, Bench, owner, size_t, u64, void
from cuda_row import BLOCK, BYTES, CONTEXT, LIMIT, TOO_MUCH, row
from cuda_structs import Config, Launch

# -- contexts -----------------------------------------------------------------------------------------------------------


def new_context(b: Bench, symbol: str) -> int:
    flags = {"cuCtxCreate_v3": (None, 0, 0, 0), "cuCtxCreate_v4": (None, 0, 0)}
    more = flags.get(symbol, (0, 0, 0, None) if "VDPAU" in symbol else (0, 0))
    return b.make(symbol, *more)


@row("cuCtxCreate", "cuCtxCreate_v2", "cuCtxCreate_v3", "cuCtxCreate_v4", expected=CONTEXT)
@row("cuGLCtxCreate", "cuGLCtxCreate_v2", "cuVDPAUCtxCreate", "cuVDPAUCtxCreate_v2", expected=CONTEXT)
def context(b: Bench, symbol: str) -> Any:
    b("cuInit", 0)
    with b.charged() as change:
        new_context(b, symbol)
    return change[0]


@row("cuCtxDestroy", "cuCtxDestroy_v2", expected=0)
def context_destroyed(b: Bench, symbol: str) -> Any:
    b("cuInit", 0)
    with b.charged() as change:
        made = new_context(b, "cuCtxCreate_v2")
        b.make("cuMemAlloc_v2", size_t(BYTES))
        b(symbol, void(made))
    return change[0]


@row("cuDevicePrimaryCtxRetain", expected=CONTEXT)
def primary(b: Bench, symbol: str) -> Any:
    with b.charged() as change:
        b.begin()
        b.begin()
    return change[0]


@row("cuDevicePrimaryCtxRelease", "cuDevicePrimaryCtxRelease_v2", "cuDevicePrimaryCtxReset", "cuDevicePrimaryCtxReset_v2", expected=0)
def primary_gone(b: Bench, symbol: str) -> Any:
    with b.charged() as change:
        b.begin()
        b.make("cuMemAlloc_v2", size_t(BYTES))
        b(symbol, 0)
    return change[0]


DESCRIPTION = (ctypes.c_char * 64)()


@row("cuGreenCtxCreate", expected=CONTEXT)
def green(b: Bench, symbol: str) -> Any:
    b("cuInit", 0)
    with b.charged() as change:
        b.make(symbol, DESCRIPTION, 0, 1)
        b.make(symbol, DESCRIPTION, 0, 1)
    return change[0]


@row("cuGreenCtxDestroy", expected=[CONTEXT, 0])
def green_gone(b: Bench, symbol: str) -> Any:
    b("cuInit", 0)
    start, seen = b.held(), []
    made = [b.make("cuGreenCtxCreate", DESCRIPTION, 0, 1) for _ in range(2)]
    for one in made:
        b(symbol, void(one))
        seen.append(b.held() - start)
    return seen


@row("cuCtxSetLimit", expected=[64, 2])
def heap(b: Bench, symbol: str) -> Any:
    """The device's own malloc heap."""
    b.begin()
    with b.charged() as change:
        b(symbol, 2, size_t((8 + 64) * MIB))
    return [change[0], b.code(symbol, 2, size_t(TOO_MUCH))]


# -- launches: on a device of no record none is permitted, once any device has a limit ------------------------------------


@row("cuLaunchKernel", "cuLaunchKernel_ptsz", "cuLaunchKernelEx", "cuLaunchKernelEx_ptsz", "cuLaunch", "cuLaunchGrid", "cuLaunchGridAsync", expected=800)
@row("cuLaunchCooperativeKernel", "cuLaunchCooperativeKernel_ptsz", "cuLaunchCooperativeKernelMultiDevice", expected=800)
def kernel(b: Bench, symbol: str) -> Any:
    b("cuInit", 0)
    context, function, stream, module = void(), void(), void(), void()
    assert b.raw("cuCtxCreate_v2", ctypes.byref(context), 0, 2) == 0
    b("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(b"image"))
    b("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"kernel"))
    b("cuStreamCreate", ctypes.byref(stream), 1)
    one = (1,) * 6
    config, many = Config(sizes=(*one, 0), stream=stream), Launch(function=function, sizes=(*one, 0), stream=stream)
    arguments: dict[str, tuple[Any, ...]] = {
        "cuLaunch": (function,),
        "cuLaunchGrid": (function, 1, 1),
        "cuLaunchGridAsync": (function, 1, 1, stream),
        "cuLaunchKernel": (function, *one, 0, stream, None, None),
        "cuLaunchKernelEx": (ctypes.byref(config), function, None, None),
        "cuLaunchCooperativeKernel": (function, *one, 0, stream, None),
        "cuLaunchCooperativeKernelMultiDevice": (ctypes.byref(many), 1, 0),
    }
    return b.code(symbol, *arguments[symbol.removesuffix("_ptsz")])


# -- questions ------------------------------------------------------------------------------------------------------------


@row("cuMemGetInfo_v2", expected=[LIMIT - CONTEXT - BLOCK, LIMIT])
def info(b: Bench, symbol: str) -> Any:
    b.begin()
    b.make("cuMemAlloc_v2", size_t(BYTES))
    free, total = size_t(), size_t()
    b(symbol, ctypes.byref(free), ctypes.byref(total))
    return [free.value // MIB, total.value // MIB]


@row("cuMemGetInfo", expected=[LIMIT - CONTEXT, LIMIT])
def old_info(b: Bench, symbol: str) -> Any:
    b.begin()
    free, total = ctypes.c_uint(2**32 - 1), ctypes.c_uint(2**32 - 1)
    b(symbol, ctypes.byref(free), ctypes.byref(total))
    return [free.value // MIB, total.value // MIB]


@row("cuDeviceTotalMem", "cuDeviceTotalMem_v2", expected=LIMIT)
def total(b: Bench, symbol: str) -> Any:
    b("cuInit", 0)
    kind = size_t if symbol.endswith("_v2") else ctypes.c_uint
    return b.make(symbol, 0, kind=kind, start=2**32 - 1) // MIB


# -- resolvers --------------------------------------------------------------------------------------------------------------


@row("cuGetProcAddress", "cuGetProcAddress_v2", expected=[True, False])
def resolver(b: Bench, symbol: str) -> Any:
    """[ours for a hooked name, ours for another name]."""
    b("cuInit", 0)
    more = (None,) if symbol.endswith("_v2") else ()
    found = [address(b, symbol, name, more) for name in (b"cuMemAlloc", b"cuDriverGetVersion")]
    return [owner(one).startswith("libhami") for one in found]


def address(b: Bench, symbol: str, name: bytes, more: tuple[Any, ...]) -> int:
    out = void()
    b(symbol, ctypes.c_char_p(name), ctypes.byref(out), 12090, u64(0), *more)
    return int(out.value or 0)


@row("cuGetExportTable", expected=1)
def private_table(b: Bench, symbol: str) -> Any:
    b.begin()
    table, name = void(), (ctypes.c_char * 16)()
    b(symbol, ctypes.byref(table), ctypes.byref(name))
    slot = b.slot()
    return 0 if slot is None else int(slot.private_tables)
