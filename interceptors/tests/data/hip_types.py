# SPDX-License-Identifier: Apache-2.0
"""HIP by ctypes: the library that the program was told to use, and the structures that it is given."""

from __future__ import annotations

import ctypes
import sys
from ctypes import c_int, c_size_t, c_uint, c_ulonglong, c_void_p

hip = ctypes.CDLL(sys.argv[1])


class Extent(ctypes.Structure):
    _fields_ = [(name, c_size_t) for name in ("width", "height", "depth")]


class Pitched(ctypes.Structure):
    _fields_ = [("pointer", c_void_p), ("pitch", c_size_t), ("xsize", c_size_t), ("ysize", c_size_t)]


class Grid(ctypes.Structure):
    _fields_ = [(name, c_uint) for name in ("x", "y", "z")]


class Channels(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("x", "y", "z", "w", "kind")]


class Image(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("format", c_int), ("channels", c_uint)]


class Image3D(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("depth", c_size_t), ("format", c_int), ("channels", c_uint), ("flags", c_uint)]


class Memory(ctypes.Structure):
    _fields_ = [("type", c_int), ("handle_type", c_int), ("location_type", c_int), ("location", c_int), ("win32", c_void_p), ("flags", c_int)]


class IpcHandle(ctypes.Structure):
    _fields_ = [("words", c_ulonglong * 8)]


class External(ctypes.Structure):
    _fields_ = [("type", c_int), ("handle", c_ulonglong * 2), ("size", c_ulonglong), ("flags", c_uint), ("reserved", c_uint * 16)]


class Pool(ctypes.Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", c_int * 2), ("win32", c_void_p), ("most", c_size_t), ("rest", c_int * 14)]


class AllocNode(ctypes.Structure):
    _fields_ = [("pool", Pool), ("access", c_void_p), ("accesses", c_size_t), ("bytes", c_size_t), ("pointer", c_void_p)]


class Node(ctypes.Structure):
    _fields_ = [("type", c_int), ("reserved", c_int * 3), ("alloc", AllocNode), ("rest", c_ulonglong * 15)]


class ChildNode(ctypes.Structure):
    _fields_ = [("type", c_int), ("reserved", c_int * 3), ("graph", c_void_p), ("rest", c_ulonglong * 29)]
