"""The MCP servers of agents while files change: what each agent calls them, and which are there for all."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quell.app._agent_servers import merged
from quell.config import AgentSettings, McpServerSettings, Settings

if TYPE_CHECKING:
    from quell.app._warden import Warden


class AgentLinks:
    """Joins the servers of agent files to those of the deployment; what runs still call stays until they have ended."""

    def __init__(
        self, warden: Warden, *, own: Mapping[str, McpServerSettings], names: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Take the deployment's own servers, and per agent: name in its file -> name among all; none without files."""
        self._warden = warden
        self._own = own
        self._names = names

    def of(self, agent: AgentSettings) -> Mapping[str, str]:
        """Return the servers of an agent: those of its file, or of the deployment when it names none."""
        return self._names.get(agent.id, {}) if self._names else {name: name for name in self._own}

    @property
    def there(self) -> Mapping[str, McpServerSettings]:
        """Every server that is reached now."""
        return self._warden.settings.mcp.servers

    async def take(self, agents: Sequence[AgentSettings], *, used: Container[str]) -> None:
        """Reach the servers of these agents and of the deployment, and for as long as they are `used` those of before.

        Raises ConfigError with every mistake of the servers: then everything stays as it was.
        """
        kept = {name: each for name, each in self.there.items() if name in used}
        settings, names = merged(self._base(self._own), agents, kept=kept)
        await self._serve(settings)
        self._names = names

    async def join(self, agent: AgentSettings) -> Mapping[str, str]:
        """Reach the servers of an agent as it was once, too; return how they are called. Raises as `take` does."""
        if not agent.mcp.servers:
            return {name: name for name in self._own}
        settings, names = merged(self._base(self._own), [agent], kept=self.there)
        # What today's files say of a server's tools stays.
        await self._serve(self._base({**settings.mcp.servers, **self.there}))
        return names[agent.id]

    def _base(self, servers: Mapping[str, McpServerSettings]) -> Settings:
        now = self._warden.settings
        return replace(now, mcp=replace(now.mcp, servers=servers))

    async def _serve(self, settings: Settings) -> None:
        if settings.mcp.servers != self.there:
            await self._warden.serve(settings)
