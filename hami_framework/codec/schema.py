# SPDX-License-Identifier: Apache-2.0
"""The structural OpenAPI schema of a model type, as a CustomResourceDefinition needs it.

Structural means: every level states its type, and nothing is a reference or an alternative. The model's types are
plain enough for that: objects, arrays, maps, text, numbers, and "or nothing".
"""

from __future__ import annotations

from typing import Any

from msgspec import inspect

_SCALARS: dict[type[inspect.Type], dict[str, Any]] = {
    inspect.StrType: {"type": "string"},
    inspect.IntType: {"type": "integer", "format": "int64"},
    inspect.FloatType: {"type": "number"},
    inspect.BoolType: {"type": "boolean"},
}


def structural_schema(type_: object) -> dict[str, Any]:
    """The schema of values of this type in their JSON form; raises `TypeError` for a type that has no structural one."""
    return _schema(inspect.type_info(type_))


def _schema(type_: inspect.Type) -> dict[str, Any]:
    match type_:
        case inspect.StructType(fields=fields):
            return {
                "type": "object",
                "properties": {field.encode_name: _schema(field.type) for field in fields},
                "required": [field.encode_name for field in fields if field.required],
            }
        case inspect.UnionType(types=(inspect.NoneType(), some) | (some, inspect.NoneType())):
            return _schema(some) | {"nullable": True}
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return {"type": "array", "items": _schema(item)}
        case inspect.TupleType(item_types=items) if len({type(item) for item in items}) == 1:
            return {"type": "array", "items": _schema(items[0]), "minItems": len(items), "maxItems": len(items)}
        case inspect.DictType(value_type=value):
            return {"type": "object", "additionalProperties": _schema(value)}
        case inspect.LiteralType(values=values) if all(isinstance(value, str) for value in values):
            return {"type": "string", "enum": sorted(values)}
        case _ if type(type_) in _SCALARS:
            return dict(_SCALARS[type(type_)])
    raise TypeError(f"{type_} has no structural schema")
