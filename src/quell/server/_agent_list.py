"""What agents there are, how they are made up and which tools they have: AURA's view of its configuration, no secret in it."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quell.app import App
from quell.config import AgentSettings, McpServerSettings
from quell.domain import Recovery, ServerStatus, Tool, ToolClass
from quell.server._errors import json_response
from quell.server._openai_errors import ChatError

_DETAILS = ("tools", "tools:summary")
_STATES: Mapping[str, str] = {"connected": "connected", "failed": "failed"}


class AgentList:
    """Tells of agents what their files say, and of their servers what is pinned."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def told(self, request: Request) -> Response:
        """GET /aura/info."""
        detail = request.query_params.get("detail", "")
        if detail and detail not in _DETAILS:
            said = f"there is no detail {detail[:40]!r}: it is one of {', '.join(_DETAILS)}"
            raise ChatError(400, said, reason="invalid_value", param="detail")
        shown = [agent for agent in self._app.agents.agents() if not agent.agent.hidden]
        tools = await self._tools(shown) if detail else ()
        agents = [self._agent(agent, detail=detail, tools=tools) for agent in shown]
        default = self._app.settings.default_agent
        return json_response(({"default_agent": default} if default else {}) | {"agents": agents})

    async def states(self, agent: AgentSettings) -> list[dict[str, object]]:
        """Tell of each MCP server of an agent whether it is there, as `aura.mcp_status` does."""
        servers = self._servers_of(agent)
        if not servers:
            return []
        authority = await self._app.open_authority()
        known = {status.name: status for status in authority.servers.status()}
        transports = {name: each.transport for name, each in self._app.settings.mcp.servers.items()}
        return [_state(name, known[there], transports[there]) for name, there in servers.items() if there in known]

    async def _tools(self, agents: Sequence[AgentSettings]) -> Sequence[Tool]:
        """Return the tools that are there, once every server of these agents was asked; one that is down has none."""
        for agent in agents:
            await self._app.agents.servers(agent)
        return tuple((await self._app.open_authority()).toolbox.catalog())

    def _servers_of(self, agent: AgentSettings) -> Mapping[str, str]:
        """Return the servers of an agent by their names in its file, and what each is called among all."""
        return self._app.agents.servers_of(agent)

    def _agent(self, agent: AgentSettings, *, detail: str, tools: Sequence[Tool]) -> dict[str, object]:
        told: dict[str, object] = {"id": agent.id}
        if agent.agent.description:
            told["description"] = agent.agent.description
        told["model"] = agent.agent.llm.model or agent.agent.llm.provider
        if agent.orchestration.enabled and agent.orchestration.worker:
            told["workers"] = [
                {"name": name, "description": worker.description}
                | ({"model": worker.llm.model} if worker.llm is not None else {})
                for name, worker in agent.orchestration.worker.items()
            ]
        told["mcp_servers"] = {
            name: self._server(agent, name, there, detail=detail, tools=tools)
            for name, there in self._servers_of(agent).items()
        }
        return told

    def _server(
        self, agent: AgentSettings, name: str, there: str, *, detail: str, tools: Sequence[Tool]
    ) -> dict[str, object]:
        server = self._app.settings.mcp.servers[there]
        told = _address(server)
        own = agent.mcp.servers.get(name)
        if own is not None and own.description:
            told["description"] = own.description
        if detail:
            offered = (tool for tool in tools if tool.server == there)
            told["tools"] = [_summary(tool) if detail == "tools:summary" else _whole(tool) for tool in offered]
        return told


def _address(server: McpServerSettings) -> dict[str, object]:
    """Say where a server is: of an address its origin alone, of a command its last part alone."""
    if server.transport == "stdio":
        return {"transport": "stdio", "command": posixpath.basename(server.cmd[0]) if server.cmd else ""}
    parts = urlsplit(server.url)
    host = parts.hostname or ""
    bracketed = f"[{host}]" if ":" in host else host
    origin = f"{parts.scheme}://{bracketed}" + (f":{parts.port}" if parts.port else "")
    return {"transport": server.transport, "url": origin}


def _summary(tool: Tool) -> dict[str, object]:
    told: dict[str, object] = {"name": tool.original}
    return told | ({"description": tool.description} if tool.description else {})


def _whole(tool: Tool) -> dict[str, object]:
    told = _summary(tool) | {"inputSchema": msgspec.Raw(tool.input_schema.encode())}
    if tool.output_schema:
        told["outputSchema"] = msgspec.Raw(tool.output_schema.encode())
    told["annotations"] = {
        "readOnlyHint": tool.tool_class is ToolClass.READ,
        "destructiveHint": tool.tool_class is not ToolClass.READ and not tool.revert,
        "idempotentHint": tool.recovery in {Recovery.KEYED, Recovery.NATURAL},
    }
    return told


def _state(name: str, status: ServerStatus, transport: str) -> dict[str, object]:
    told: dict[str, object] = {
        "server_name": name,
        "transport": transport,
        "status": _STATES.get(status.state, "not_attempted"),
        "tools_count": status.tools,
    }
    return told | ({"reason": status.reason} if status.reason else {})
