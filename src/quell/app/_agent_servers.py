"""The MCP servers of agent files among those of the deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quell.config import AgentMcpServer, AgentSettings, McpServerSettings, Settings


def merged(settings: Settings, agents: Sequence[AgentSettings]) -> tuple[Settings, Mapping[str, Mapping[str, str]]]:
    """Return settings that have the servers of all agents, and for each agent how its servers are called there."""
    servers = dict(settings.mcp.servers)
    names: dict[str, dict[str, str]] = {}
    for agent in agents:
        own = names[agent.id] = {}
        for name, each in agent.mcp.servers.items():
            made = _server_of(each)
            taken = name if servers.get(name, made) == made else f"{name}-{agent.id}"
            servers[taken] = made
            own[name] = taken
    return replace(settings, mcp=replace(settings.mcp, servers=servers)), names


def _server_of(server: AgentMcpServer) -> McpServerSettings:
    return McpServerSettings(
        transport=server.transport,
        cmd=server.cmd,
        args=server.args,
        env=server.env,
        url=server.url,
        headers=server.headers,
        forward_headers=tuple(server.headers_from_request.values()),
    )
