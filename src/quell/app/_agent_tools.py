"""Which tools an agent is offered: those of its own MCP servers that its file lets through, and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from quell.config import AgentSettings
from quell.domain import Tool

_SKILLS = frozenset({"load_skill", "read_skill_file"})
_SEARCH = "vector_search_"


def offered(
    tools: Sequence[Tool], agent: AgentSettings, *, servers: Mapping[str, str], stores: Sequence[str] | None = None
) -> tuple[Tool, ...]:
    """Return the tools of a catalogue that an agent may use; an absent filter lets all of its servers' through.

    `stores` are those that it may search; None: all that its file names.
    """
    own = frozenset(servers.values())
    named = {f"{_SEARCH}{name}" for name in (stores if stores is not None else [s.name for s in agent.vector_stores])}
    has_skills = bool(agent.agent.skills.local)

    def is_offered(tool: Tool) -> bool:
        if tool.server:
            globs = agent.agent.mcp_filter
            return tool.server in own and (globs is None or any(fnmatchcase(tool.original, glob) for glob in globs))
        if tool.name in _SKILLS:
            return has_skills
        return tool.name in named if tool.name.startswith(_SEARCH) else True

    return tuple(tool for tool in tools if is_offered(tool))
