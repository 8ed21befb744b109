"""Agents as clients of OpenAI's protocol list them: as models."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from quell.app import App
from quell.config import AgentSettings
from quell.server._chat_request import unknown_model
from quell.server._errors import json_response

_OWNER = "quell"


class Models:
    """Lists the agents; a hidden one is left out, and is there for who knows its id."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def listed(self, _request: Request) -> Response:
        """GET /v1/models."""
        shown = [self._row(agent) for agent in self._app.agents.agents() if not agent.agent.hidden]
        return json_response({"object": "list", "data": shown})

    async def one(self, request: Request) -> Response:
        """GET /v1/models/ID; an id may hold a slash."""
        wanted = request.path_params["id"]
        for agent in self._app.agents.agents():
            if agent.id == wanted:
                return json_response(self._row(agent))
        raise unknown_model(wanted)

    def _row(self, agent: AgentSettings) -> dict[str, object]:
        table = agent.agent
        # The file says milliseconds, as AURA's do; on the wire of OpenAI it is seconds.
        created = table.created_at // 1000 if table.created_at is not None else int(self._app.clock().timestamp())
        row: dict[str, object] = {
            "id": agent.id,
            "object": "model",
            "created": created,
            "owned_by": table.model_owner or _OWNER,
        }
        llm = table.llm
        model = "builtin" if llm.provider == "builtin" else f"{llm.provider}/{llm.model}"
        row["quell"] = {"model": model, "takes_client_tools": table.enable_client_tools}
        return row | ({"description": table.description} if table.description else {})
