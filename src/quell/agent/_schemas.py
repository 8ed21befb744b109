"""Schemas as a model is shown them: those of MCP servers in the strict shape that some providers want, where a role says so."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from quell.agent._talk import Role
from quell.domain import CallWanted, Tool, ToolSpec, strict_schema, without_nulls


def spec_of(tool: Tool, role: Role) -> ToolSpec:
    """Return a tool as a model is told of it."""
    schema = _strict(tool.input_schema) if _is_strict(tool, role) else tool.input_schema
    return ToolSpec(name=tool.name, description=tool.description, parameters=schema)


def as_meant(wanted: CallWanted, tool: Tool | None, role: Role) -> CallWanted:
    """Return a call without the nulls that a strict schema made its model say; what was pinned knows none of them."""
    if tool is None or not _is_strict(tool, role) or _strict(tool.input_schema) == tool.input_schema:
        return wanted
    return replace(wanted, arguments=without_nulls(wanted.arguments, schema=tool.input_schema))


def _is_strict(tool: Tool, role: Role) -> bool:
    return role.schemas == "strict" and bool(tool.server)


@lru_cache(maxsize=1024)
def _strict(schema: str) -> str:
    """Return the strict shape; where there is none, the schema as it is."""
    try:
        return strict_schema(schema)
    except ValueError:
        return schema
