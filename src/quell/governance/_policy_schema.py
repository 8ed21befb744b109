"""The Cedar schema of a set of pinned tools: what policies may say of a call, with types."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from quell.domain import RefusedError, Tool, ToolClass
from quell.governance._canonical import INTEGER_MAX, Json

RESERVED = frozenset({"__entity", "__extn", "__expr"})
"""Keys by which Cedar's JSON means something else than a record; no attribute may carry one."""
_TYPE_DEPTH_MAX = 8
_DECIMAL_MAX = Decimal("922337203685477.5807")
_STRINGS: Json = {"type": "Set", "element": {"type": "String"}}
PRINCIPAL: Mapping[str, Json] = {
    **{name: {"type": "String"} for name in ("user", "tenant", "agent", "workflow", "workflow_digest", "stage")},
    "level": {"type": "Long"},
    "tainted": {"type": "Boolean"},
    "roles": _STRINGS,
}
RESOURCE: Mapping[str, Json] = {
    **{name: {"type": "String"} for name in ("kind", "name", "environment")},
    "units": {"type": "Long"},
}
HISTORY = ("calls_1h", "services_1h", "units_1h", "failures_1h", "in_flight")
CONTEXT: Mapping[str, Json] = {
    "host": {"type": "String"},
    "server": {"type": "String"},
    "recovery": {"type": "String"},
    "origin": {"type": "String"},
    **{name: {"type": "Boolean"} for name in ("approved", "frozen", "killed", "break_glass")},
    **{name: {"type": "Long"} for name in ("approvals", "blast_percent")},
    "history": {"type": "Record", "attributes": {name: {"type": "Long"} for name in HISTORY}},
}
_ENTITIES: Mapping[str, Json] = {
    "Run": {
        "memberOfTypes": ["User", "Role", "Agent", "Workflow", "Tenant"],
        "shape": {"type": "Record", "attributes": dict(PRINCIPAL)},
    },
    "Resource": {"memberOfTypes": ["Environment"], "shape": {"type": "Record", "attributes": dict(RESOURCE)}},
    **{name: {} for name in ("User", "Role", "Agent", "Workflow", "Tenant", "Environment")},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentType:
    """What policies know of one argument: a type of Cedar, made from the tool's JSON Schema."""

    kind: Literal["long", "string", "bool", "decimal", "set", "record"]
    element: ArgumentType | None = None
    attributes: Mapping[str, tuple[ArgumentType, bool]] | None = None
    """Of a record: type, and whether it is always there."""
    words: frozenset[str] | None = None
    """All values that a text may have, where the schema says so."""

    @property
    def is_loose(self) -> bool:
        """Whether a valid argument may have no value in Cedar: decimals have four digits after the point."""
        return self.kind == "decimal" or (self.element is not None and self.element.is_loose)


_SCALARS: Mapping[str, ArgumentType] = {
    "integer": ArgumentType(kind="long"),
    "string": ArgumentType(kind="string"),
    "boolean": ArgumentType(kind="bool"),
    "number": ArgumentType(kind="decimal"),
}


def effective_class(tool: Tool) -> ToolClass:
    """Return the class by which a tool is judged: a read that reaches a destination is egress, what nothing undoes is irreversible."""
    if tool.tool_class is ToolClass.READ and tool.resource.destination:
        return ToolClass.EGRESS
    if tool.tool_class is ToolClass.REVERSIBLE and not tool.revert:
        return ToolClass.IRREVERSIBLE
    return tool.tool_class


def group_of(tool_class: ToolClass) -> str:
    """Name the group of a class; a colon can stand in no tool's name, so that no tool can pose as a group."""
    return f"class:{tool_class}"


def server_group_of(tool: Tool) -> str:
    """Name the group of the tools of one server."""
    return f"server:{tool.server}"


def stand_in_of(tool_class: ToolClass) -> str:
    """Name the action that keeps a class from being empty; no call can carry its name."""
    return f"none:{tool_class}"


def cedar_schema(types: Mapping[str, ArgumentType], tools: Iterable[Tool]) -> dict[str, Json]:
    """Build the schema, in Cedar's JSON form, so that no name of a tool or argument is ever read as Cedar."""
    listed = list(tools)
    actions: dict[str, Json] = {group_of(each): {} for each in ToolClass}
    actions |= {server_group_of(tool): {} for tool in listed}
    empty = ArgumentType(kind="record", attributes={})
    for each in ToolClass:
        actions[stand_in_of(each)] = _action([group_of(each)], empty)
    for tool in listed:
        groups = [group_of(effective_class(tool)), server_group_of(tool)]
        actions[tool.name] = _action(groups, types[tool.name])
    return {"Quell": {"entityTypes": dict(_ENTITIES), "actions": actions}}


def under_other_names(tool: Tool, *, known: Container[str]) -> tuple[Tool, ...]:
    """Return a tool as policies may mean it, too: under the name that its server was given, and under those of `known` tools."""
    server = tool.stands_for or tool.server
    names = [name for name in tool.also if name in known]
    if tool.stands_for and not names:
        names = [tool.name]
    return tuple(replace(tool, name=name, server=server) for name in names)


def _action(groups: list[str], arguments: ArgumentType) -> Json:
    context: Json = {"type": "Record", "attributes": {"args": cedar_type(arguments), **CONTEXT}}
    principals: list[Json] = ["Run"]
    resources: list[Json] = ["Resource"]
    applies: Json = {"principalTypes": principals, "resourceTypes": resources, "context": context}
    return {"memberOf": [{"id": group} for group in groups], "appliesTo": applies}


def cedar_type(argument: ArgumentType) -> Json:
    """Write a type in Cedar's JSON form."""
    if argument.kind == "record":
        attributes: dict[str, Json] = {}
        for name, (inner, always) in (argument.attributes or {}).items():
            written = cedar_type(inner)
            assert isinstance(written, dict)
            attributes[name] = {**written, "required": always}
        return {"type": "Record", "attributes": attributes}
    if argument.kind == "set":
        assert argument.element is not None
        return {"type": "Set", "element": cedar_type(argument.element)}
    if argument.kind == "decimal":
        return {"type": "Extension", "name": "decimal"}
    return {"type": {"long": "Long", "string": "String", "bool": "Boolean"}[argument.kind]}


def argument_type(schema: Json, *, root: dict[str, Json], depth: int = _TYPE_DEPTH_MAX) -> ArgumentType | None:
    """Derive the Cedar type of a JSON Schema; None for what Cedar cannot type (unions, free-form values, too deep)."""
    if not isinstance(schema, dict) or depth == 0:
        return None
    schema = _without_null(_resolved(schema, root))
    words = _words_of(schema)
    kind = schema.get("type")
    if words is not None and kind in {None, "string"}:
        return ArgumentType(kind="string", words=words)
    if {"anyOf", "oneOf", "allOf", "if", "$ref"} & schema.keys() and kind != "object":
        return None
    if kind == "array":
        element = argument_type(schema.get("items"), root=root, depth=depth - 1)
        return ArgumentType(kind="set", element=element) if element and "prefixItems" not in schema else None
    if kind == "object":
        return _record_type(schema, root, depth)
    return _SCALARS.get(kind) if isinstance(kind, str) else None


def _record_type(schema: dict[str, Json], root: dict[str, Json], depth: int) -> ArgumentType:
    properties = schema.get("properties")
    required = schema.get("required")
    attributes: dict[str, tuple[ArgumentType, bool]] = {}
    for name, inner in (properties if isinstance(properties, dict) else {}).items():
        found = None if name in RESERVED else argument_type(inner, root=root, depth=depth - 1)
        if found is not None:
            always = isinstance(required, list) and name in required and not _may_be_null(inner, root)
            attributes[name] = (found, always and not found.is_loose)
    return ArgumentType(kind="record", attributes=attributes)


def _resolved(schema: dict[str, Json], root: dict[str, Json]) -> dict[str, Json]:
    """Follow references by pointer; the schema as it is when one leads nowhere or round in a circle."""
    at: Json = schema
    for _ in range(_TYPE_DEPTH_MAX):
        if not isinstance(at, dict):
            break
        reference = at.get("$ref")
        if not isinstance(reference, str):
            return at
        at = root
        for token in reference.removeprefix("#").split("/")[1:]:
            key = token.replace("~1", "/").replace("~0", "~")
            at = at.get(key) if isinstance(at, dict) else None
    return schema


def _branches(schema: dict[str, Json]) -> list[Json]:
    for keyword in ("anyOf", "oneOf"):
        forms = schema.get(keyword)
        if isinstance(forms, list):
            return forms
    return []


def _may_be_null(schema: Json, root: dict[str, Json]) -> bool:
    if not isinstance(schema, dict):
        return True
    found = _resolved(schema, root)
    kinds = found.get("type")
    values = found.get("enum")
    return (
        (isinstance(kinds, list) and "null" in kinds)
        or (isinstance(values, list) and None in values)
        or any(isinstance(form, dict) and form.get("type") == "null" for form in _branches(found))
    )


def _without_null(schema: dict[str, Json]) -> dict[str, Json]:
    """Write `X or null` as X: an argument that is null is absent for policies."""
    kinds = schema.get("type")
    if isinstance(kinds, list):
        rest = [kind for kind in kinds if kind != "null"]
        return {**schema, "type": rest[0]} if len(rest) == 1 else schema
    forms = [form for form in _branches(schema) if not (isinstance(form, dict) and form.get("type") == "null")]
    only = forms[0] if len(forms) == 1 and len(_branches(schema)) == 2 else None
    return only if isinstance(only, dict) and "$ref" not in only else schema


def _words_of(schema: dict[str, Json]) -> frozenset[str] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list):
        return None
    words = frozenset(value for value in values if isinstance(value, str))
    return words if all(isinstance(value, str | None) for value in values) else None


_EXACT = re.compile(r"-?[0-9]+\.[0-9]{1,4}\Z")


def cedar_value(argument: ArgumentType, value: Json, *, read: frozenset[str]) -> Json:
    """Write an argument in Cedar's JSON form by its type; what has no type is left out.

    Raises RefusedError when a value is not of its type, or is a number that a policy reads (`read` holds the names
    of attributes that policies mention) and that decimals cannot hold exactly.
    """
    match argument.kind, value:
        case "record", dict():
            return _cedar_record(argument, value, read)
        case "set", list():
            assert argument.element is not None
            return [cedar_value(argument.element, item, read=read) for item in value if item is not None]
        case "decimal", int() | float() if not isinstance(value, bool):
            return _cedar_decimal(value)
        case "long", int() if not isinstance(value, bool) and abs(value) <= INTEGER_MAX:
            return value
        case ("string", str()) | ("bool", bool()):
            return value
    raise RefusedError(f"an argument is no {argument.kind}", hint="send what the schema of the tool asks for")


def _cedar_record(argument: ArgumentType, value: dict[str, Json], read: frozenset[str]) -> Json:
    record: dict[str, Json] = {}
    for name, (inner, _) in (argument.attributes or {}).items():
        part = value.get(name)
        if part is None:
            continue
        try:
            record[name] = cedar_value(inner, part, read=read)
        except RefusedError:
            if not inner.is_loose or name in read:
                raise
    return record


def _cedar_decimal(value: float) -> Json:
    exact = Decimal(repr(value))
    text = f"{exact:f}"
    text = text if "." in text else f"{text}.0"
    if abs(exact) > _DECIMAL_MAX or not _EXACT.match(text):
        raise RefusedError(
            f"policies compare numbers of at most four digits after the point; {value!r} has more",
            hint="round the number to four digits after the point",
        )
    return {"__extn": {"fn": "decimal", "arg": text}}
