"""One tenant and another: each route says whose it is, and a guest with every role gets nothing of somebody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from starlette.routing import Route

from quell.domain import ApprovalStatus
from quell.governance import Approvals
from quell.server import asgi
from tests.doors._authority_house import KEYS, House, in_a_house, settings_of

pytestmark = pytest.mark.timeout(30)

ROLES = ("viewer", "operator", "approver", "admin", "auditor", "break-glass")
WHOSE = {
    "GET /api/v1/incidents": "the first tenant's",
    "GET /api/v1/incidents/{id}": "the first tenant's",
    "GET /api/v1/incidents/{id}/report.{form}": "the first tenant's",
    "GET /api/v1/runs": "the first tenant's",
    "GET /api/v1/runs/{id}": "the first tenant's",
    "GET /api/v1/runs/{id}/trace": "of one thing",
    "GET /api/v1/alerts": "the first tenant's",
    "GET /api/v1/events": "the first tenant's",
    "GET /api/v1/audit/checkpoint": "the first tenant's",
    "POST /api/v1/changes": "the first tenant's",
    "GET /api/v1/approvals": "listed by tenant",
    "GET /api/v1/switches": "listed by tenant",
    "GET /api/v1/break-glass": "listed by tenant",
    "GET /api/v1/effects": "listed by tenant",
    "GET /api/v1/tools": "listed by tenant",
    "GET /api/v1/tools/{name:path}": "the first tenant's",
    "GET /api/v1/tool-servers": "the first tenant's",
    "GET /api/v1/tool-drift": "the first tenant's",
    "POST /api/v1/offers": "the first tenant's",
    "POST /api/v1/pins": "the first tenant's",
    "DELETE /api/v1/pins/{server}/{tool:path}": "the first tenant's",
    "POST /api/v1/tool-calls": "makes one's own",
    "GET /api/v1/tool-calls/{run}": "of one thing",
    "POST /api/v1/tool-calls/{run}/cancel": "of one thing",
    "GET /api/v1/approvals/{id}": "of one thing",
    "POST /api/v1/approvals/{id}": "of one thing",
    "POST /v1/approvals/{id}": "of one thing",
    "DELETE /api/v1/switches/{id}": "of one thing",
    "POST /api/v1/break-glass/{id}/review": "of one thing",
    "POST /api/v1/switches": "makes one's own",
    "POST /api/v1/break-glass": "makes one's own",
    "GET /health": "open",
    "POST /v1/logs": "open",
    "POST /v1/traces": "open",
    "POST /v1/metrics": "open",
    "POST /webhooks/alertmanager": "open",
}
"""What a route does, by whose it is; `open`: on loopback, and with a credential of the first tenant elsewhere."""


def _routes(house: House) -> set[str]:
    routes = [route for route in asgi(house.app).routes if isinstance(route, Route)]
    return {f"{method} {route.path}" for route in routes for method in (route.methods or set()) - {"HEAD"}}


def test_every_route_says_whose_it_is_and_a_guest_gets_nothing_of_somebody_elses(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        assert _routes(house) == set(WHOSE), "a new route needs a rule here"
        ours, guest = await house.key("ann", *ROLES), await house.key("gu", *ROLES, tenant="acme")
        approval = house.ask()
        stop = {"kind": "kill", "reason": "ours", "tool": "nothing-*"}
        switch = (await house.http.post("/api/v1/switches", headers=ours, json=stop)).json()["switch"]["id"]
        asked = {"reason": "it burns"}
        opened = await house.http.post("/api/v1/break-glass", headers=ours, json=asked)
        assert opened.status_code == 201, opened.text
        glass = opened.json()["break_glass"]["id"]
        secrets = (approval.id, approval.digest, switch, glass)
        things = {"approvals": approval.id, "switches": switch, "break-glass": glass}
        for route in sorted(WHOSE):
            method, path = route.split(" ")
            whose, kind = WHOSE[route], path.split("/")[3] if path.startswith("/api") else "approvals"
            identifier = Approvals.decision_id_of(approval.id) if path.startswith("/v1/") else things.get(kind, "x")
            path = path.replace("{id}", identifier).replace("{form}", "md")
            body = {"decision": "approve", "digest": approval.digest} if path.startswith("/api") else {"approved": True}
            if whose == "open":
                away = {"X-Forwarded-For": "10.1.2.3", **guest}
                told = await house.http.request(method, path, headers=away, json={})
                assert told.status_code == (403 if method == "POST" else 503), route
                assert set(told.json()) in ({"ok", "error"}, {"kind", "ok", "status"}, {"code", "message"}), route
                continue
            if whose == "makes one's own":
                continue
            body = {"review": "it was right"} if kind == "break-glass" else body
            told = await house.http.request(
                method,
                path,
                headers=guest,
                json=body if method == "POST" else None,
                params={"reason": "mine"} if method == "DELETE" else None,
            )
            assert not any(secret in told.text for secret in secrets if secret not in path), route
            wanted = {"the first tenant's": 403, "listed by tenant": 200, "of one thing": 404}[whose]
            assert told.status_code == wanted, (route, told.text)
        found = house.find(approval)
        assert (found.status, found.votes) == (ApprovalStatus.REQUESTED, ())
        for path, kind, thing in (("switches", "switches", switch), ("break-glass", "break_glass", glass)):
            listed = (await house.http.get(f"/api/v1/{path}", headers=ours)).json()
            assert [each["id"] for each in listed[kind]] == [thing], "what was ours is as it was"

    in_a_house(story, settings_of(tmp_path, identity=replace(KEYS, tenants=("local", "acme"))))
