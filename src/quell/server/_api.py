"""The API: incidents, runs, alerts and health as JSON, reports as files."""

from __future__ import annotations

import asyncio
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from quell import __version__, telemetry
from quell.app import App
from quell.domain import QuellError, Stage
from quell.incidents import render
from quell.server._approvals import caller_of
from quell.server._body import Bodies
from quell.server._errors import WireError, json_response
from quell.server._identity import is_from_here
from quell.server._query import limit_of
from quell.signals import parse_alertmanager

_FORMS: dict[str, tuple[Literal["text", "markdown", "json", "html"], str]] = {
    "md": ("markdown", "text/markdown; charset=utf-8"),
    "json": ("json", "application/json"),
    "html": ("html", "text/html; charset=utf-8"),
    "txt": ("text", "text/plain; charset=utf-8"),
}
_ALERTS_MAX_MB = 4.0
_AURA_VERSION = "0.2.3"
"""Of the wire that agents speak."""


class Api:
    """Answers the questions of programs and people about incidents and runs."""

    def __init__(self, app: App, *, bodies: Bodies) -> None:
        self._app = app
        self._bodies = bodies

    async def health(self, request: Request) -> Response:
        """Say whether this server does its work; 503 while an organ is missing. Who is elsewhere learns no more."""
        store = self._app.store
        parts: dict[str, object] = {"journal": "ok", "store": "ok" if store is not None else "not open"}
        if store is not None:
            try:
                parts["store_status"] = await store.status()
            except QuellError as error:
                parts["store"] = str(error)
        ping = await self._ping()
        if not ping["ok"]:
            parts["journal"] = ping["error"]
        is_well = parts["journal"] == parts["store"] == "ok"
        body: dict[str, object] = {"kind": "health", "ok": is_well, "status": "healthy" if is_well else "degraded"}
        if is_from_here(request):
            body |= {"version": __version__, "workflow_version": self._app.version, "parts": parts}
            backend = "postgres" if self._app.settings.journal.url else "sqlite"
            # AURA's own keys: what keeps its sessions is, here, the journal.
            session_store = {"backend": backend, "ping": ping}
            body |= {"timestamp": self._app.clock(), "aura_version": _AURA_VERSION, "session_store": session_store}
        return json_response(body, status=200 if is_well else 503)

    async def _ping(self) -> dict[str, object]:
        """Ask the journal for something small."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            await self._app.runs.list(limit=1)
        except QuellError as error:
            return {"ok": False, "error": str(error)}
        return {"ok": True, "latency_ms": round((loop.time() - began_s) * 1000)}

    async def incidents(self, request: Request) -> Response:
        """List incidents, newest first."""
        limit = limit_of(request)
        stage = request.query_params.get("stage")
        if stage is not None and stage not in set(Stage):
            raise WireError(400, "UsageError", f"there is no stage {stage[:40]!r}", hint=f"one of {', '.join(Stage)}")
        stages = [Stage(stage)] if stage else []
        found = await self._app.desk.incidents(limit=limit + 1, stages=stages)
        body = {"kind": "incidents", "ok": True, "incidents": found[:limit], "is_cut": len(found) > limit}
        return json_response(body)

    async def incident(self, request: Request) -> Response:
        """Return one case file."""
        case = await self._app.desk.case_file(request.path_params["id"])
        return Response(render(case, "json"), media_type="application/json")

    async def report(self, request: Request) -> Response:
        """Return one report as a file."""
        entry = _FORMS.get(request.path_params["form"])
        if entry is None:
            raise WireError(404, "UsageError", "there is no such form of a report", hint=f"one of {', '.join(_FORMS)}")
        form, media = entry
        case = await self._app.desk.case_file(request.path_params["id"])
        response = Response(render(case, form), media_type=media)
        # Our own page carries its own policy; this one holds even if it were ever edited.
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def runs(self, request: Request) -> Response:
        """List runs, newest first."""
        limit = limit_of(request)
        found = await self._app.runs.list(limit=limit + 1)
        return json_response({"kind": "runs", "ok": True, "runs": found[:limit], "is_cut": len(found) > limit})

    async def run(self, request: Request) -> Response:
        """Return one run with its steps."""
        run = await self._app.runs.get(request.path_params["id"])
        steps = await self._app.runs.steps(run.id)
        return json_response({"kind": "run", "ok": True, "run": run, "steps": steps})

    async def trace(self, request: Request) -> Response:
        """Return one run as a tree, of another tenant than the first only what was asked in it."""
        trace = await self._app.trace(request.path_params["id"], by=caller_of(request))
        told = {"kind": "trace", "ok": True, "run": trace.run, "tree": trace.tree, "totals": trace.totals}
        return json_response(told)

    async def alerts(self, request: Request) -> Response:
        """List alerts, newest first."""
        limit = limit_of(request)
        found = await self._app.desk.alerts(limit=limit + 1)
        return json_response({"kind": "alerts", "ok": True, "alerts": found[:limit], "is_cut": len(found) > limit})

    async def alertmanager(self, request: Request) -> Response:
        """Take in what Alertmanager sends (webhook, version 4)."""
        body = await self._bodies.read(request, body_max_mb=_ALERTS_MAX_MB)
        alerts = parse_alertmanager(body, received_at=self._app.clock(), entropy=self._app.entropy)
        firing = sum(alert.status == "firing" for alert in alerts)
        telemetry.event("alert.received", source="alertmanager", firing=firing, resolved=len(alerts) - firing)
        incidents = await self._app.desk.handle(alerts)
        ids = [incident.id for incident in incidents]
        return json_response({"kind": "alerts_received", "ok": True, "alerts": len(alerts), "incidents": ids})
