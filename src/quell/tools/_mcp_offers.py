"""What a server offers: its tools, page by page and within bounds, as they came over the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.inbound import find_invalid_x_mcp_header, x_mcp_header_map
from pydantic import RootModel

from quell.domain import BoundExceededError, Offer, ServerIdentity, ToolServer, WorldError
from quell.tools._canonical import canonical
from quell.tools._mcp_schema import OutputSchema
from quell.tools._pins import definition_digest

PAGES_MAX = 100


class Raw(RootModel[dict[str, Any]]):
    """A result as it came: the SDK's own types would drop what they do not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A tool of a connection, with what a call of it needs at hand."""

    offer: Offer
    output: OutputSchema | None
    header_map: Mapping[tuple[str, ...], str]
    """Arguments that are mirrored into headers (MCP 2026-07-28, x-mcp-header)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All tools of a connection, and when they were listed."""

    tools: Mapping[str, Known] = field(default_factory=dict)
    at_s: float = float("-inf")
    """Monotonic."""


async def list_tools(session: ClientSession, server: ToolServer, identity: ServerIdentity) -> dict[str, Known]:
    """List every tool that the globs of the server's settings take.

    Raises:
        BoundExceededError: there are too many of them or of their pages.
        WorldError: the pages never end, or two tools have one name.
    """
    tools: dict[str, Known] = {}
    cursor: str | None = None
    seen: set[str] = set()
    for _ in range(PAGES_MAX):
        page = await session.send_request(
            types.ListToolsRequest(params=types.PaginatedRequestParams(cursor=cursor)), Raw
        )
        for definition in page.root["tools"]:
            name = definition["name"]
            if name in tools:
                raise WorldError(f"tool server {server.name} lists {name!r} twice", hint="tell who runs it")
            if any(fnmatchcase(name, glob) for glob in server.tools) and (
                known := _known(definition, server, identity)
            ):
                tools[name] = known
            if len(tools) > server.offers_max:
                raise BoundExceededError(f"tools of server {server.name}", limit=server.offers_max)
        cursor = page.root.get("nextCursor")
        if not cursor:
            return tools
        if cursor in seen:
            raise WorldError(f"the pages of tool server {server.name} go round in a circle", hint="tell who runs it")
        seen.add(cursor)
    raise BoundExceededError(f"pages of tools of server {server.name}", limit=PAGES_MAX)


def _known(definition: dict[str, Any], server: ToolServer, identity: ServerIdentity) -> Known | None:
    """Take one definition; None when the protocol says that such a tool is to be left out."""
    inputs, outputs = definition.get("inputSchema"), definition.get("outputSchema")
    if find_invalid_x_mcp_header(inputs) is not None:
        return None
    text = canonical(definition)
    return Known(
        offer=Offer(
            server=server.name,
            original=definition["name"],
            definition=text,
            digest=definition_digest(json.loads(text), identity),
            identity=identity,
        ),
        output=None if outputs is None else OutputSchema(text=canonical(outputs)),
        header_map=x_mcp_header_map(inputs),
    )
