"""What authority leaves in the journal goes with the runs it belongs to; what is open, unknown or on record stays."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from pathlib import Path

import pytest

from quell.app import App, open_app
from quell.domain import (
    Charge,
    Effect,
    Ending,
    Fence,
    FrozenCall,
    Happened,
    Intent,
    Recovery,
    Resource,
    Spender,
    Unclear,
)
from quell.runs import Connection, Done, Next, RunContext
from tests._postgres import fresh_database
from tests.conftest import FakeClock
from tests.doors._authority_house import settings_of

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_rows_go_with_their_runs_and_the_unknown_stays(
    tmp_path: Path, dialect: str, request: pytest.FixtureRequest
) -> None:
    if dialect == "sqlite":
        asyncio.run(_story(tmp_path, url=""))
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url:
        asyncio.run(_story(tmp_path, url=url))


async def _story(tmp_path: Path, *, url: str) -> None:
    clock = FakeClock()
    settings = settings_of(tmp_path, url=url)
    async with open_app(settings, role="command", clock=clock, entropy=random.Random(7).randbytes, env={}) as app:
        app.runs.register("heal", _nothing)
        authority = await app.open_authority()
        old, lives = await _a_run(app), await _a_run(app)
        await _effect(app, old, call="c1", ending=Happened(result="{}"))
        await _effect(app, old, call="c2", ending=Unclear(detail="who knows"))
        await _effect(app, lives, call="c1", ending=Happened(result="{}"))
        for run in (old, lives):
            _spend(app, run, clock=clock)
        with app.runs.database.writing() as connection:
            connection.run("UPDATE quell_runs SET status = 'succeeded' WHERE id = :run", run=old)
        records = len(list(authority.guard.audit.records()))
        await app.warden.sweep()
        assert _rows(app) == {"effects": 3, "reservations": 2, "runs": 2}, "nothing is old yet"
        clock.forward(seconds=timedelta(days=31).total_seconds())
        with app.runs.database.writing() as connection:
            connection.run("DELETE FROM quell_runs WHERE id = :run", run=old)
        await app.warden.sweep()
        with app.runs.database.reading() as connection:
            left = {(each.call.run, each.call.id) for each in authority.guard.ledger.entries(connection)}
        assert left == {(old, "c2"), (lives, "c1")}, (
            "an unknown effect waits for people; a run that lives can come back"
        )
        assert _rows(app) == {"effects": 2, "reservations": 0, "runs": 1}
        assert len(list(authority.guard.audit.records())) == records


async def _a_run(app: App) -> str:
    run = await app.runs.start("heal", subject="web", arguments={})
    with app.runs.database.writing() as connection:
        connection.run("UPDATE quell_runs SET status = 'running', token = 't' WHERE id = :run", run=run.id)
    return run.id


async def _effect(app: App, run: str, *, call: str, ending: Ending) -> None:
    async def send(_key: str, _attempt: int) -> Ending:
        return ending

    def joint(_connection: Connection, _effect: Effect) -> None:
        pass

    at = Resource(kind="Service", name="web", environment="prod", units=1, host="")
    frozen = FrozenCall(run=run, id=call, tool="page", pin="p", arguments="{}", resource=at, digest=call)
    intent = Intent(call=frozen, recovery=Recovery.BLIND, user="ann", revert="[]")
    ledger = (await app.open_authority()).guard.ledger
    fence = Fence(run=run, dispatch=0, token="t")
    await ledger.perform(intent, send=send, probe=None, fence=fence, on_intent=joint, on_start=joint, on_end=joint)


def _spend(app: App, run: str, *, clock: FakeClock) -> None:
    assert app.authority is not None
    budgets, spender = app.authority.guard.budgets, Spender(run=run, agent="sre", feature="", tenant="local")
    charge = Charge(calls=1, wall_ms=1, size_bytes=1, blast_units=1)
    with app.runs.database.writing() as connection:
        held = budgets.reserve(connection, charge, spender=spender, key="k", lifetime_s=60)
        budgets.settle(connection, held, charge, spender=spender)


def _rows(app: App) -> dict[str, int]:
    assert app.authority is not None
    with app.runs.database.reading() as connection:
        return {
            "effects": connection.one("SELECT COUNT(*) AS n FROM quell_effects").n,
            "reservations": connection.one("SELECT COUNT(*) AS n FROM quell_reservations").n,
            "runs": len(app.authority.guard.budgets.runs(connection)),
        }


async def _nothing(_: RunContext) -> Next:
    return Done(result={})
