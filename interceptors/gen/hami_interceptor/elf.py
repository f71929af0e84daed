# SPDX-License-Identifier: Apache-2.0
"""A reader of what a 64-bit little-endian shared object asks of others and offers them: enough to say where it can be loaded."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hami_interceptor.errors import InterceptorError

MACHINES = {62: "x86_64", 183: "aarch64"}

_DT_NEEDED, _DT_SONAME, _DT_FLAGS_1, _DT_BIND_NOW, _DT_FLAGS = 1, 14, 0x6FFFFFFB, 24, 30
_SHT_DYNSYM, _SHT_DYNAMIC, _SHT_VERNEED = 11, 6, 0x6FFFFFFE
_NODELETE, _NOW = 0x8, 0x1


@dataclass(frozen=True, kw_only=True)
class SharedObject:
    """What the dynamic loader would see."""

    machine: str
    soname: str
    needed: tuple[str, ...]
    exported: tuple[str, ...]
    versions: tuple[str, ...]
    """Symbol versions it asks of others, such as GLIBC_2.17."""
    nodelete: bool
    bound_at_start: bool

    @property
    def glibc(self) -> tuple[int, ...]:
        """The highest glibc that it asks for."""
        found = [tuple(map(int, matched[1].split("."))) for name in self.versions if (matched := re.fullmatch(r"GLIBC_([\d.]+)", name))]
        return max(found, default=(0,))


@dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    info: int


def read(path: Path) -> SharedObject:
    """Raises InterceptorError for a file that is no 64-bit little-endian shared object with section headers."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        raise InterceptorError(f"{path}: is not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", data, 18)
    sections = _sections(data)
    tags = [entry for section in sections if section.kind == _SHT_DYNAMIC for entry in _tags(data, section, sections)]
    names = {tag: text for tag, _, text in tags}
    values = {tag: value for tag, value, _ in tags}
    return SharedObject(
        machine=MACHINES.get(machine, f"machine {machine}"),
        soname=names.get(_DT_SONAME, ""),
        needed=tuple(text for tag, _, text in tags if tag == _DT_NEEDED),
        exported=tuple(sorted({name for section in sections if section.kind == _SHT_DYNSYM for name in _exported(data, section, sections)})),
        versions=tuple(sorted({name for section in sections if section.kind == _SHT_VERNEED for name in _versions(data, section, sections)})),
        nodelete=bool(values.get(_DT_FLAGS_1, 0) & _NODELETE),
        bound_at_start=bool(values.get(_DT_FLAGS_1, 0) & _NOW or values.get(_DT_FLAGS, 0) & 0x8 or _DT_BIND_NOW in values),
    )


def _sections(data: bytes) -> list[_Section]:
    (start,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    found = []
    for number in range(count):
        _, kind, _, _, offset, length, link, info, _, _ = struct.unpack_from("<IIQQQQIIQQ", data, start + number * size)
        found.append(_Section(kind, offset, length, link, info))
    return found


def _text(data: bytes, strings: _Section, offset: int) -> str:
    start = strings.offset + offset
    return data[start : data.index(b"\0", start)].decode()


def _tags(data: bytes, section: _Section, sections: list[_Section]) -> Iterator[tuple[int, int, str]]:
    for offset in range(section.offset, section.offset + section.size, 16):
        tag, value = struct.unpack_from("<QQ", data, offset)
        if tag == 0:
            return
        yield tag, value, _text(data, sections[section.link], value) if tag in (_DT_NEEDED, _DT_SONAME) else ""


def _exported(data: bytes, section: _Section, sections: list[_Section]) -> Iterator[str]:
    for offset in range(section.offset + 24, section.offset + section.size, 24):
        name, info, _, index, _, _ = struct.unpack_from("<IBBHQQ", data, offset)
        if index not in (0, 0xFFF1) and info >> 4 in (1, 2):
            yield _text(data, sections[section.link], name)


def _versions(data: bytes, section: _Section, sections: list[_Section]) -> Iterator[str]:
    strings, entry = sections[section.link], section.offset
    for _ in range(section.info):
        _, count, _, auxiliary, following = struct.unpack_from("<HHIII", data, entry)
        place = entry + auxiliary
        for _ in range(count):
            _, _, _, name, step = struct.unpack_from("<IHHII", data, place)
            yield _text(data, strings, name)
            place += step
        entry += following
