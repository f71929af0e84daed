# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver's structs, as far as the tests of its hooks fill them in."""

from __future__ import annotations

import ctypes

u64, size_t, void, integer, unsigned = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint


class Prop(ctypes.Structure):
    _fields_ = (("type", integer), ("handles", integer), ("location", integer * 2), ("win32", void), ("flags", ctypes.c_ubyte * 8))


class PoolProps(ctypes.Structure):
    _fields_ = (("type", integer), ("handles", integer), ("location", integer * 2), ("win32", void), ("most", size_t), ("rest", ctypes.c_ubyte * 56))


class AllocNode(ctypes.Structure):
    _fields_ = (("pool", PoolProps), ("access", void), ("accesses", size_t), ("bytes", size_t), ("pointer", u64))


class Node(ctypes.Structure):
    _fields_ = (("type", integer), ("reserved", integer * 3), ("alloc", AllocNode), ("rest", ctypes.c_ubyte * 120))


class Array(ctypes.Structure):
    _fields_ = (("width", size_t), ("height", size_t), ("format", integer), ("channels", unsigned))


class Array3D(ctypes.Structure):
    _fields_ = (("width", size_t), ("height", size_t), ("depth", size_t), ("format", integer), ("channels", unsigned), ("flags", unsigned))


class OldArray(ctypes.Structure):
    _fields_ = (("width", unsigned), ("height", unsigned), ("format", integer), ("channels", unsigned))


class OldArray3D(ctypes.Structure):
    _fields_ = (("width", unsigned), ("height", unsigned), ("depth", unsigned), ("format", integer), ("channels", unsigned), ("flags", unsigned))


class MapInfo(ctypes.Structure):
    _fields_ = (
        ("resource_type", integer),
        ("resource", u64),
        ("subresource_type", integer),
        ("subresource", u64 * 4),
        ("operation", integer),
        ("handle_type", integer),
        ("handle", u64),
        ("offset", u64),
        ("rest", unsigned * 4),
    )


class External(ctypes.Structure):
    _fields_ = (("type", integer), ("handle", u64 * 2), ("size", u64), ("flags", unsigned), ("reserved", unsigned * 16))


class Config(ctypes.Structure):
    _fields_ = (("sizes", unsigned * 7), ("stream", void), ("attributes", void), ("count", unsigned))


class Launch(ctypes.Structure):
    _fields_ = (("function", void), ("sizes", unsigned * 7), ("stream", void), ("parameters", void))
