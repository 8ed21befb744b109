"""Emergencies over real HTTP: opened by who has the role, listed to their tenant, reviewed once by another, on record."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quell.domain import AuditKind, Principal
from tests._postgres import fresh_database
from tests.doors._authority_house import KEYS, House, in_a_house, settings_of

pytestmark = pytest.mark.timeout(30)

AT = "/api/v1/break-glass"
WHY = {"reason": "payments are down"}
FINE = {"review": "it was needed"}


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_an_emergency_is_opened_listed_and_reviewed_once_on_record(
    tmp_path: Path, dialect: str, request: pytest.FixtureRequest
) -> None:
    async def story(house: House) -> None:
        gus, ivy = await house.key("gus", "break-glass"), await house.key("ivy", "auditor")
        vi, ad = await house.key("vi", "viewer"), await house.key("ad", "admin")
        made = await house.http.post(AT, json=WHY, headers=gus)
        assert made.status_code == 201, made.text
        one = made.json()["break_glass"]
        assert (one["user"], one["run"], one["reviewed_at"]) == ("gus", "", None)
        for headers in (gus, ivy, vi):
            assert (await house.http.get(AT, headers=headers)).json()["break_glass"] == [one]
        path = f"{AT}/{one['id']}/review"
        assert (await house.http.post(path, json=FINE, headers=gus)).status_code == 403
        assert (await house.http.post(path, json=FINE, headers=vi)).status_code == 403
        assert (await house.http.post(path, json={"review": " "}, headers=ivy)).status_code == 400
        assert (await house.http.post(f"{AT}/brk_x/review", json=FINE, headers=ivy)).status_code == 404
        assert (await house.http.post(f"{AT}/%00/review", json=FINE, headers=ivy)).status_code == 404
        answers = await asyncio.gather(*(house.http.post(path, json=FINE, headers=who) for who in (ivy, ad) * 4))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 410: 7}
        assert (await house.http.get(AT, headers=vi)).json()["break_glass"] == []
        (whole,) = (await house.http.get(f"{AT}?state=all", headers=vi)).json()["break_glass"]
        assert (whole["id"], whole["review"]) == (one["id"], "it was needed")
        told = [body for body in house.bodies(AuditKind.IDENTITY) if "break_glass" in body]
        assert [(body["verb"], body["break_glass"]) for body in told] == [
            ("break-glass.open", one["id"]),
            ("break-glass.review", one["id"]),
        ]
        refused = Counter(record.principal for record in house.records(AuditKind.REFUSAL))
        assert (refused["gus"], refused["vi"], refused["ivy"] + refused["ad"]) == (1, 1, 2 + 7)

    if dialect == "sqlite":
        in_a_house(story, settings_of(tmp_path, identity=KEYS))
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url:
        in_a_house(story, settings_of(tmp_path, identity=KEYS, url=url))


def test_only_the_role_opens_it_and_only_with_a_reason_and_a_run_that_is_there(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        gus = await house.key("gus", "break-glass")
        scoped = await house.key("sam", "break-glass", scopes=("verb:break-glass.list",))
        for who in ("viewer", "operator", "approver", "admin", "auditor"):
            answer = await house.http.post(AT, json={**WHY, "run": "run_x"}, headers=await house.key(f"a-{who}", who))
            assert answer.status_code == 403, "and nobody of them learns which runs there are"
        assert (await house.http.post(AT, json=WHY, headers=scoped)).status_code == 403
        assert (await house.http.get(AT, headers=scoped)).status_code == 200
        for body in ({}, {"reason": " "}, {**WHY, "run": "run_x"}, {**WHY, "run": "\x00"}, {**WHY, "more": 1}):
            assert (await house.http.post(AT, json=body, headers=gus)).status_code == 400, body
        assert (await house.http.get(f"{AT}?state=late", headers=gus)).status_code == 400
        assert (await house.http.get(f"{AT}?state=all", headers=gus)).json()["break_glass"] == []
        wanted = [record.principal for record in house.records(AuditKind.REFUSAL)]
        assert wanted == ["a-viewer", "a-operator", "a-approver", "a-admin", "a-auditor"]

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_it_covers_the_run_that_is_named_whole_for_half_an_hour(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        run = "run_01m7wkk1fbvvhpc0206g3as5gq"
        with house.app.runs.database.writing() as connection:
            connection.run(
                "INSERT INTO quell_runs (id, kind, subject, arguments, status, version, created_at, updated_at)"
                " VALUES (:run, 'heal', 'web', '{}', 'cancelled', 'v1', :now, :now)",
                run=run,
                now=house.clock.at.isoformat(),
            )
        gus = await house.key("gus", "break-glass")
        cut = await house.http.post(AT, json={**WHY, "run": run[:-1]}, headers=gus)
        assert cut.status_code == 400
        made = await house.http.post(AT, json={**WHY, "run": run}, headers=gus)
        assert made.status_code == 201, made.text
        (event,) = [each for each in await house.app.runs.events(run=run) if each.name == "break_glass.opened"]
        assert made.json()["break_glass"]["id"] in event.body
        agent = Principal(user="gus", agent="bot", agent_tools=("*",))
        break_glass = house.authority.guard.approvals.break_glass

        def covers(principal: Principal, run: str) -> str:
            with house.app.runs.database.reading() as connection:
                return break_glass.covers(connection, principal, run=run)

        assert covers(agent, run) == made.json()["break_glass"]["id"]
        assert covers(agent, "run_other") == covers(replace(agent, user="ana"), run) == ""
        house.clock.at += timedelta(minutes=30)
        assert covers(agent, run) == ""

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_tenants_see_and_review_nothing_of_each_other(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        gus, theirs = await house.key("gus", "break-glass"), await house.key("eve", "admin", tenant="acme")
        one = (await house.http.post(AT, json=WHY, headers=gus)).json()["break_glass"]
        assert (await house.http.get(f"{AT}?state=all", headers=theirs)).json()["break_glass"] == []
        assert (await house.http.post(f"{AT}/{one['id']}/review", json=FINE, headers=theirs)).status_code == 404

    in_a_house(story, settings_of(tmp_path, identity=replace(KEYS, tenants=("local", "acme"))))


def test_the_owner_of_an_embedded_quell_may_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    async def opens(house: House) -> None:
        assert (await house.http.post(AT, json=WHY)).status_code == 201

    async def opens_not(house: House) -> None:
        assert (await house.http.post(AT, json=WHY)).status_code == 403

    in_a_house(opens, settings_of(tmp_path / "one"))
    bare = replace(settings_of(tmp_path).identity, owner_roles=("viewer", "admin"))
    in_a_house(opens_not, settings_of(tmp_path / "two", identity=bare))
