# SPDX-License-Identifier: Apache-2.0
"""A tenant that goes round the library: `python around.py deepbind|dlmopen|elf TAKER.SO MIB`, and holds what it took until it is killed.

`deepbind` and `dlmopen` load the C tenant (taker.c) where the preloaded library does not stand before it; `elf` finds the
driver's function by reading the driver's own symbol table, as some programs do in order not to be intercepted.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from pathlib import Path

RTLD_NOW, RTLD_DEEPBIND, LM_ID_NEWLM = 2, 8, -1
SHT_DYNSYM = 11


def deepbind(taker: str, mib: int) -> int:
    return int(ctypes.CDLL(taker, mode=RTLD_NOW | RTLD_DEEPBIND).take(1, mib))


def dlmopen(taker: str, mib: int) -> int:
    libc = ctypes.CDLL(None)
    libc.dlmopen.restype = libc.dlsym.restype = ctypes.c_void_p
    handle = libc.dlmopen(ctypes.c_long(LM_ID_NEWLM), taker.encode(), RTLD_NOW)
    take = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)(libc.dlsym(ctypes.c_void_p(handle), b"take"))
    return take(1, mib)


def elf(_: str, mib: int) -> int:
    ctypes.CDLL("libcuda.so.1")
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    base, path = next((int(line[0].split("-")[0], 16), line[5]) for line in lines if len(line) > 5 and line[5].endswith("/libcuda.so.1"))
    symbols = _symbols(Path(path).read_bytes())

    def function(name: str, *types: object) -> ctypes._CFuncPtr:
        return ctypes.CFUNCTYPE(ctypes.c_int, *types)(base + symbols[name])  # type: ignore[arg-type]

    context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
    function("cuInit", ctypes.c_uint)(0)
    function("cuDevicePrimaryCtxRetain", ctypes.c_void_p, ctypes.c_int)(ctypes.byref(context), 0)
    function("cuCtxSetCurrent", ctypes.c_void_p)(context)
    code = function("cuMemAlloc_v2", ctypes.c_void_p, ctypes.c_size_t)(ctypes.byref(pointer), mib << 20)
    print(f'{{"blocks": {int(code == 0)}, "code": {code}}}', flush=True)
    return int(code)


def _symbols(image: bytes) -> dict[str, int]:
    """Name → offset of everything in the file's .dynsym (ELF64, little-endian)."""
    headers_at, size, count = struct.unpack_from("<Q", image, 0x28)[0], *struct.unpack_from("<HH", image, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, headers_at + number * size) for number in range(count)]
    table = next(header for header in headers if header[1] == SHT_DYNSYM)
    names_at = headers[table[6]][4]
    found = {}
    for at in range(table[4], table[4] + table[5], 24):
        name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", image, at)
        end = image.index(b"\0", names_at + name)
        found[image[names_at + name : end].decode()] = value
    return found


if __name__ == "__main__":
    how, taker, mib = sys.argv[1:]
    if {"deepbind": deepbind, "dlmopen": dlmopen, "elf": elf}[how](taker, int(mib)) != 0:
        sys.exit(1)
    os.write(1, b"held\n")
    time.sleep(600)
