"""Close a JSON Schema: what it does not name is not allowed, and it may look at nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator

from quell.domain import RefusedError
from quell.governance._canonical import Json

SCHEMA_DEPTH_MAX = 64

_MAPS = {"properties": True, "patternProperties": True, "$defs": False, "definitions": False, "dependentSchemas": False}
"""Keywords that hold schemas by name; whether those judge values of their own, and so are closed."""
_LISTS = {"allOf": False, "anyOf": False, "oneOf": False, "prefixItems": True}
_SINGLES = {"items": True, "additionalProperties": True, "unevaluatedProperties": True, "unevaluatedItems": True}
_SINGLES |= {"not": False, "if": False, "then": False, "else": False, "contains": False, "propertyNames": False}
_IN_PLACE = {"allOf", "anyOf", "oneOf", "if", "then", "else", "$ref", "dependentSchemas"}
"""Keywords whose schemas judge the same value; with one of them, only `unevaluatedProperties` sees all that was named."""
_SHORTHANDS = {"d": "[0-9]", "D": "[^0-9]", "w": "[A-Za-z0-9_]", "W": "[^A-Za-z0-9_]", "/": "/"}
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_SET_OPERATORS = re.compile(r"&&|--|~~")


def close(schema: dict[str, Json]) -> dict[str, Json]:
    """Return the schema with `additionalProperties` false wherever it does not say otherwise.

    Raises RefusedError for references out of it or to a part of it that is no schema, and for patterns that cannot be
    matched in linear time.
    """
    local = {key: part for key, part in schema.items() if key not in {"$id", "$schema"}}
    closed = _closed(local, judges_own=True)
    assert isinstance(closed, dict)
    _judge_references(closed)
    closed.setdefault("type", "object")
    if closed["type"] != "object":
        raise RefusedError("the schema of the arguments is not of type object", hint="arguments are one JSON object")
    if "additionalProperties" not in closed and "unevaluatedProperties" not in closed:
        closed["unevaluatedProperties" if _IN_PLACE & closed.keys() else "additionalProperties"] = False
    return closed


def _closed(schema: Json, *, judges_own: bool) -> Json:
    if not isinstance(schema, dict):
        return schema
    _judge_keywords(schema)
    if isinstance(schema.get("items"), list):
        schema = _tuple_of_today(schema)
    result: dict[str, Json] = {}
    for key, part in schema.items():
        if key in _MAPS and isinstance(part, dict):
            result[key] = {name: _closed(inner, judges_own=_MAPS[key]) for name, inner in part.items()}
        elif key in _LISTS and isinstance(part, list):
            result[key] = [_closed(inner, judges_own=_LISTS[key]) for inner in part]
        elif key in _SINGLES:
            result[key] = _closed(part, judges_own=_SINGLES[key])
        else:
            result[key] = part
    says_otherwise = "additionalProperties" in schema or "unevaluatedProperties" in schema
    if judges_own and _may_be_object(schema) and not says_otherwise:
        result["unevaluatedProperties" if _IN_PLACE & schema.keys() else "additionalProperties"] = False
    return result


def _judge_references(closed: dict[str, Json]) -> None:
    """Refuse references to places that were not closed and judged above, such as an example or a keyword nobody knows.

    An evaluator follows them anywhere, and would run there what was refused everywhere else.
    """
    judged = dict(_places(closed, ()))
    for schema in judged.values():
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if isinstance(reference, str) and _pointed_at(reference) not in judged:
            raise RefusedError(
                f"the schema refers to {ascii(reference)[:80]}, which is no schema of it",
                hint="put what it refers to under `$defs`, and write `#/$defs/name`",
            )


def _places(schema: Json, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Json]]:
    """Yield every schema in a schema that is evaluated, with its place."""
    yield at, schema
    if not isinstance(schema, dict):
        return
    for key, part in schema.items():
        if key in _MAPS and isinstance(part, dict):
            inner = [((*at, key, name), each) for name, each in part.items()]
        elif key in _LISTS and isinstance(part, list):
            inner = [((*at, key, str(index)), each) for index, each in enumerate(part)]
        else:
            inner = [((*at, key), part)] if key in _SINGLES else []
        for place, each in inner:
            yield from _places(each, place)


def _pointed_at(reference: str) -> tuple[str, ...]:
    """Read a reference within a document: a JSON pointer, percent-decoded; an anchor is no place."""
    pointer = _PERCENT.sub(
        lambda found: bytes.fromhex(found[0].replace("%", "")).decode("utf-8", "replace"), reference.removeprefix("#")
    )
    first, *tokens = pointer.split("/")
    return (first, *tokens) if first else tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)


def _may_be_object(schema: dict[str, Json]) -> bool:
    kinds = schema.get("type")
    if kinds is None:
        return bool((_IN_PLACE | {"properties", "patternProperties", "required"}) & schema.keys())
    return kinds == "object" or (isinstance(kinds, list) and "object" in kinds)


def _tuple_of_today(schema: dict[str, Json]) -> dict[str, Json]:
    """Write the tuple form of older drafts (`items` a list) as the draft of 2020 does."""
    rest: dict[str, Json] = {key: part for key, part in schema.items() if key not in {"items", "additionalItems"}}
    rest["prefixItems"] = schema["items"]
    if "additionalItems" in schema:
        rest["items"] = schema["additionalItems"]
    return rest


def _judge_keywords(schema: dict[str, Json]) -> None:
    """Refuse keywords that reach outside, or that cost more than they are worth."""
    reference = schema.get("$ref", "#")
    if not (isinstance(reference, str) and reference.startswith("#")):
        raise RefusedError(
            f"the schema refers to {ascii(reference)[:80]}, outside itself", hint="put it under `$defs` of the schema"
        )
    for keyword in ("$id", "$dynamicRef", "$recursiveRef", "dependencies"):
        if keyword in schema:
            raise RefusedError(f"the schema uses `{keyword}`", hint="write it without; `$ref`, `$defs` are understood")
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        linear_pattern(pattern)
    by_pattern = schema.get("patternProperties")
    for text in by_pattern if isinstance(by_pattern, dict) else ():
        linear_pattern(text)
        # The library matches names by a backtracking engine: one repetition over a bounded name is cheap.
        if len(re.findall(r"[*+?{|]", text)) > 1 or re.search(r"\\[1-9]", text):
            raise RefusedError(
                f"the pattern {ascii(text)[:80]} for names is too involved", hint="use at most one repetition in it"
            )


def linear_pattern(text: str) -> str:
    r"""Write a pattern of JSON Schema (ECMA 262) for an engine of linear time; `\d` and `\w` mean ASCII, as there.

    Raises RefusedError when it needs what such an engine cannot do (look-around, references back).
    """
    refusal = RefusedError(
        f"the pattern {ascii(text)[:80]} cannot be matched in linear time",
        hint="write it without look-around and without references back to groups",
    )
    if _SET_OPERATORS.search(text) or len(text) > 2_000:
        raise refusal
    written = re.sub(r"\\(.)", lambda found: _SHORTHANDS.get(found[1], found[0]), text)
    try:
        SchemaValidator({"type": "str", "pattern": written, "regex_engine": "rust-regex"})
    except PatternError:
        raise refusal from None
    return written
