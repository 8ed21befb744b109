"""Schemas of arguments in the strict shape that some providers want, and what models make of them turned back.

Strict: an object names all its properties, requires every one of them and allows no other; what may be left out is null
instead. It is for what a model is shown alone: a call is judged by the schema that was pinned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TypeAlias, cast

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Schema: TypeAlias = "dict[str, Json]"

_DEPTH_MAX = 64
_NULL: Schema = {"type": "null"}
_ANY = ("string", "number", "boolean", "null")
"""What stands for a schema that allows anything: strict providers want to be told kinds, and objects all their names."""
_SAME_VALUE = ("anyOf", "oneOf", "allOf")


def strict_schema(schema: str) -> str:
    """Return the strict shape of a schema of arguments, canonical JSON.

    An object without named properties is a map, and stays one. Raises ValueError when the arguments are no object, or
    the schema is nested too deep.
    """
    root = json.loads(schema)
    if root is True:
        root = {}
    kind = root.get("type", "object") if isinstance(root, dict) else None
    if kind not in ("object", ["object"]):
        raise ValueError("the schema of the arguments is not that of an object")
    root = {"properties": {}, **root, "type": "object"}
    return json.dumps(_strict(root, depth=0), sort_keys=True, separators=(",", ":"))


def without_nulls(arguments: str, *, schema: str) -> str:
    """Take out of arguments what a model said as null because it had to say something: as if it were not there.

    `schema` is the one that the strict shape was made of. Only properties that it does not require are taken out.
    Arguments that are no JSON object come back as they are.
    """
    try:
        given, root = json.loads(arguments), json.loads(schema)
    except ValueError:
        return arguments
    if not isinstance(given, dict) or not isinstance(root, dict):
        return arguments
    return json.dumps(_stripped(given, [root], root=root, depth=0), ensure_ascii=False, separators=(",", ":"))


def _strict(schema: Json, *, depth: int, closes: bool = True) -> Json:
    if depth > _DEPTH_MAX:
        raise ValueError(f"the schema of the arguments is nested deeper than {_DEPTH_MAX}")
    if schema is True or schema == {}:
        return {"type": list(_ANY)}
    if not isinstance(schema, dict):
        return {"not": {}}
    out = {key: _part(key, value, depth=depth + 1) for key, value in schema.items()}
    if "const" in out and out["const"] is None:
        del out["const"]
        out["type"] = "null"
    properties = out.get("properties")
    if not isinstance(properties, dict):
        return out
    required = schema.get("required")
    needed = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    for name in needed:
        properties.setdefault(name, {"type": list(_ANY)})
    out["properties"] = {name: each if name in needed else _nullable(each) for name, each in properties.items()}
    out["required"] = cast("Json", sorted(properties))
    out.setdefault("type", "object")
    if closes and (properties or depth == 0):
        out["additionalProperties"] = False
    return out


def _part(key: str, value: Json, *, depth: int) -> Json:
    if key in {"properties", "$defs", "definitions"} and isinstance(value, dict):
        return {name: _strict(each, depth=depth) for name, each in value.items()}
    if key in _SAME_VALUE and isinstance(value, list):
        # What is said in several places about one object, no place may close.
        return [_strict(each, depth=depth, closes=key != "allOf") for each in value]
    if key == "prefixItems" and isinstance(value, list):
        return [_strict(each, depth=depth) for each in value]
    if key == "items" and isinstance(value, dict | bool):
        return _strict(value, depth=depth)
    if key == "additionalProperties" and isinstance(value, dict) and value:
        return _strict(value, depth=depth)
    return value


def _nullable(schema: Json) -> Json:
    """Return a schema that allows null too."""
    if not isinstance(schema, dict) or _allows_null(schema):
        return schema
    kind, ways, values = schema.get("type"), schema.get("anyOf"), schema.get("enum")
    if "const" in schema or "$ref" in schema or "allOf" in schema or "oneOf" in schema or "not" in schema:
        return {"anyOf": [schema, dict(_NULL)]}
    if isinstance(ways, list):
        return {"anyOf": [schema, dict(_NULL)]} if kind is not None else {**schema, "anyOf": [*ways, dict(_NULL)]}
    out = dict(schema)
    if isinstance(values, list):
        out["enum"] = [*values, None]
    if kind is not None:
        out["type"] = [*(kind if isinstance(kind, list) else [kind]), "null"]
    return out


def _allows_null(schema: Schema) -> bool:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if len(schema) == 1:
        return "null" in kinds
    values = schema.get("enum")
    says_so = "null" in kinds and "const" not in schema and not any(key in schema for key in (*_SAME_VALUE, "$ref"))
    return says_so and (not isinstance(values, list) or None in values)


def _stripped(value: Json, schemas: list[Schema], *, root: Schema, depth: int) -> Json:
    """Take nulls out of a value that these schemas are about."""
    if depth > _DEPTH_MAX:
        return value
    about = [each for schema in schemas for each in _about(schema, root=root, depth=0)]
    if isinstance(value, dict):
        known: dict[str, list[Schema]] = {}
        needed: set[str] = set()
        for schema in about:
            for name, each in _mapping(schema.get("properties")).items():
                known.setdefault(name, []).append(each if isinstance(each, dict) else {})
            required = schema.get("required")
            needed |= {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        maps = [each for schema in about if isinstance(each := schema.get("additionalProperties"), dict)]
        return {
            name: _stripped(each, known.get(name, maps), root=root, depth=depth + 1)
            for name, each in value.items()
            if each is not None or name not in known or name in needed
        }
    if isinstance(value, list):
        items = [each for schema in about if isinstance(each := schema.get("items"), dict)]
        return [_stripped(each, items, root=root, depth=depth + 1) for each in value]
    return value


def _about(schema: Schema, *, root: Schema, depth: int) -> Iterator[Schema]:
    """Yield a schema and all that it says of the same value elsewhere."""
    if depth > _DEPTH_MAX:
        return
    yield schema
    for key in _SAME_VALUE:
        ways = schema.get(key)
        for each in ways if isinstance(ways, list) else ():
            if isinstance(each, dict):
                yield from _about(each, root=root, depth=depth + 1)
    pointer = schema.get("$ref")
    if isinstance(pointer, str) and pointer.startswith("#/"):
        found: Json = root
        for part in pointer[2:].split("/"):
            found = _mapping(found).get(part.replace("~1", "/").replace("~0", "~"))
        if isinstance(found, dict):
            yield from _about(found, root=root, depth=depth + 1)


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}
