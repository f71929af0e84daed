# SPDX-License-Identifier: Apache-2.0
"""The shared files' layout: one table (`core/layout.toml`), a C header and a Python module made from it.

Both sides state every offset and size, so a compiler (static assertions) and a test (`ctypes`) each hold the other to it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BANNER = "made by `python -m hami_interceptor layout` from core/layout.toml; change that instead"

SCALARS: Mapping[str, tuple[str, str, int]] = {
    # type → C, ctypes, bytes
    "u32": ("uint32_t", "c_uint32", 4),
    "u64": ("uint64_t", "c_uint64", 8),
    "i64": ("int64_t", "c_int64", 8),
    "atomic_u32": ("_Atomic uint32_t", "c_uint32", 4),
    "atomic_u64": ("_Atomic uint64_t", "c_uint64", 8),
}


class LayoutError(Exception):
    """The table contradicts itself."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One member: `count` > 1 is an array, `struct` the name of an earlier struct."""

    name: str
    type: str
    count: int
    offset: int
    size: int
    doc: str = ""


@dataclass(frozen=True, kw_only=True)
class Struct:
    """One struct, laid out."""

    name: str
    fields: tuple[Field, ...]
    size: int
    doc: str = ""

    @property
    def python_name(self) -> str:
        return "".join(part.capitalize() for part in self.name.split("_"))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The whole table."""

    constants: Mapping[str, int]
    structs: tuple[Struct, ...]
    enums: tuple[tuple[str, Mapping[str, int]], ...]


def read(table: Path) -> Layout:
    """The table, laid out; raises LayoutError for an unknown type, a hole or a struct that is not a multiple of 8 bytes."""
    document = tomllib.loads(table.read_text())
    sizes: dict[str, int] = {}
    structs = []
    for raw in document["struct"]:
        struct = _laid_out(raw, sizes)
        sizes[struct.name] = struct.size
        structs.append(struct)
    enums = tuple((enum["name"], dict(enum["values"])) for enum in document["enum"])
    return Layout(constants=dict(document["constants"]), structs=tuple(structs), enums=enums)


def _laid_out(raw: Mapping[str, object], sizes: Mapping[str, int]) -> Struct:
    offset, fields = 0, []
    entries = raw["fields"]
    assert isinstance(entries, list)
    for entry in entries:
        kind, count, unit = _type(entry["type"], sizes)
        aligned_to = unit if kind in SCALARS else 1 if kind in ("char", "bytes") else 8
        if offset % aligned_to:
            raise LayoutError(f"{raw['name']}.{entry['name']}: offset {offset} is not a multiple of {aligned_to}; say the padding")
        fields.append(Field(name=entry["name"], type=kind, count=count, offset=offset, size=unit * count, doc=entry.get("doc", "")))
        offset += unit * count
    if offset % 8 and any(field.type not in ("char", "bytes") for field in fields):
        raise LayoutError(f"{raw['name']}: {offset} bytes is not a multiple of 8")
    return Struct(name=str(raw["name"]), fields=tuple(fields), size=offset, doc=str(raw.get("doc", "")))


def _type(text: str, sizes: Mapping[str, int]) -> tuple[str, int, int]:
    matched = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", text)
    if matched is None:
        raise LayoutError(f"{text!r} is not a type")
    kind, count = matched[1], int(matched[2] or 1)
    if kind in SCALARS:
        return kind, count, SCALARS[kind][2]
    if kind in ("char", "bytes"):
        return kind, count, 1
    if kind in sizes:
        return kind, count, sizes[kind]
    raise LayoutError(f"{kind!r} is neither a scalar nor an earlier struct")


# -- C ----------------------------------------------------------------------------------------------------------


def c_header(layout: Layout) -> str:
    """`hami_layout.h`."""
    return "\n".join(_c_lines(layout)) + "\n"


def _c_lines(layout: Layout) -> Iterator[str]:
    yield "/* SPDX-License-Identifier: Apache-2.0 */"
    yield f"/* {BANNER}. */"
    yield "#ifndef HAMI_LAYOUT_H"
    yield "#define HAMI_LAYOUT_H"
    yield ""
    yield "#include <stddef.h>"
    yield "#include <stdint.h>"
    yield ""
    for name, value in layout.constants.items():
        yield f"#define HAMI_{name} {_c_number(value)}"
    for enum, values in layout.enums:
        yield ""
        yield f"enum hami_{enum} {{"
        yield from (f"    HAMI_{enum.upper()}_{name} = {value}," for name, value in values.items())
        yield "};"
    for struct in layout.structs:
        yield ""
        yield f"/* {struct.doc} */"
        yield f"struct hami_{struct.name} {{"
        yield from (f"    {_c_member(field)}" for field in struct.fields)
        yield "};"
        yield f'_Static_assert(sizeof(struct hami_{struct.name}) == {struct.size}, "hami_{struct.name} has its frozen size");'
        for field in struct.fields:
            yield f'_Static_assert(offsetof(struct hami_{struct.name}, {field.name}) == {field.offset}, "{struct.name}.{field.name} has its frozen place");'
    yield ""
    yield "#endif"


def _c_number(value: int) -> str:
    return f"UINT64_C(0x{value:X})" if value > 0xFFFF_FFFF else str(value)


def _c_member(field: Field) -> str:
    doc = f" /* {field.doc} */" if field.doc else ""
    others = {"char": "char", "bytes": "unsigned char"}
    c_type = SCALARS[field.type][0] if field.type in SCALARS else others.get(field.type, f"struct hami_{field.type}")
    array = f"[{field.count}]" if field.count > 1 or field.type in ("char", "bytes") else ""
    return f"{c_type} {field.name}{array};{doc}"


# -- Python -----------------------------------------------------------------------------------------------------


def python_module(layout: Layout) -> str:
    """`hami_framework/enforcement/layout.py`."""
    return "\n".join(_python_lines(layout)) + "\n"


def _python_lines(layout: Layout) -> Iterator[str]:
    yield "# SPDX-License-Identifier: Apache-2.0"
    yield '"""The files that a container\'s processes and the node agent share, as ctypes structures.'
    yield ""
    yield f"{BANNER[0].upper()}{BANNER[1:]}."
    yield '"""'
    yield ""
    yield "from __future__ import annotations"
    yield ""
    yield "import ctypes"
    yield "from enum import IntEnum"
    yield ""
    for name, value in layout.constants.items():
        yield f"{name} = {_python_number(value)}"
    for enum, values in layout.enums:
        yield ""
        yield ""
        yield f"class {''.join(part.capitalize() for part in enum.split('_'))}(IntEnum):"
        yield from (f"    {name} = {value}" for name, value in values.items())
    for struct in layout.structs:
        yield ""
        yield ""
        yield f"class {struct.python_name}(ctypes.LittleEndianStructure):"
        yield f'    """{struct.doc}"""'
        yield ""
        for field in struct.fields:
            yield f"    {field.name}: {_python_hint(field)}"
            if field.doc:
                yield f'    """{field.doc}"""'
        yield "    _fields_ = ("
        yield from (f'        ("{field.name}", {_python_type(field)}),' for field in struct.fields)
        yield "    )"
    yield ""
    yield ""
    yield "SIZES: tuple[tuple[type[ctypes.LittleEndianStructure], int], ...] = ("
    yield from (f"    ({struct.python_name}, {struct.size})," for struct in layout.structs)
    yield ")"
    yield '"""What each structure must measure, for the test that holds this module to the C header."""'


def _python_number(value: int) -> str:
    return f"0x{value:X}" if value > 0xFFFF_FFFF else str(value)


def _struct_name(kind: str) -> str:
    return "".join(part.capitalize() for part in kind.split("_"))


def _python_type(field: Field) -> str:
    if field.type == "char":
        return f"ctypes.c_char * {field.count}"
    if field.type == "bytes":
        return f"ctypes.c_ubyte * {field.count}"
    one = f"ctypes.{SCALARS[field.type][1]}" if field.type in SCALARS else _struct_name(field.type)
    return f"{one} * {field.count}" if field.count > 1 else one


def _python_hint(field: Field) -> str:
    if field.type == "char":
        return "bytes"
    if field.type == "bytes":
        return "ctypes.Array[ctypes.c_ubyte]"
    if field.type in SCALARS:
        return "int" if field.count == 1 else f"ctypes.Array[ctypes.{SCALARS[field.type][1]}]"
    return _struct_name(field.type) if field.count == 1 else f"ctypes.Array[{_struct_name(field.type)}]"
