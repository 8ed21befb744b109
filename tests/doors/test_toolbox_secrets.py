"""Secrets on the one path: refused in what a model words, gone from what the world answers before anything keeps it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from quell import telemetry
from quell.audit import Redactor
from quell.config import JournalSettings, McpServerSettings, Secret, Settings
from quell.domain import OutcomeKind, Parked, StepError, ToolCall, ToolOutcome
from quell.runs import Done, Next, RunContext, Runs, system_clock
from tests.doors._hand_bench import Room, hand_room, person

CANARY = "zq7Kd93hVb20Lm"


def in_room(tmp_path: Path, story: Callable[[Room], Awaitable[None]]) -> None:
    async def play() -> None:
        async with hand_room(tmp_path) as room:
            room.authority.redactor.hold("pager", Secret(CANARY))
            await story(room)

    asyncio.run(play())


def everything(room: Room) -> str:
    """Return every row that this call wrote down anywhere."""
    tables = ("quell_effects", "quell_approvals", "quell_approval_votes", "quell_audit", "quell_reservations")
    with room.runs.database.reading() as connection:
        return "\n".join(str(vars(row)) for table in tables for row in connection.all(f"SELECT * FROM {table}"))


@pytest.mark.parametrize("form", [CANARY, CANARY.encode().hex()])
def test_a_call_that_holds_a_secret_is_refused_and_told_by_its_name_only(tmp_path: Path, form: str) -> None:
    async def story(room: Room) -> None:
        for outcome in (
            await room.call("logs_search", service="web", query=f"find {form}"),
            await room.call("scale", call=form, service="web", environment="staging", replicas=1),
            await room.call(f"scale {form}", service="web"),
        ):
            assert isinstance(outcome, ToolOutcome)
            assert outcome.kind is OutcomeKind.DENIED
            assert form not in repr(outcome)
        fetched = await room.call("fetch_page", url=f"http://example.test/{form}")
        assert isinstance(fetched, ToolOutcome)
        assert "the call itself holds a secret (pager)" in fetched.detail
        assert room.world.reads == 0
        assert room.world.done == []
        room.authority.guard.audit.flush()
        assert form not in everything(room)

    in_room(tmp_path, story)


def test_what_an_effect_brings_is_kept_without_secrets(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        answers: list[ToolOutcome | BaseException] = [
            ToolOutcome(call="c1", tool="restart", kind=OutcomeKind.OK, content=f"restarted with {CANARY}"),
            ToolOutcome(call="c2", tool="restart", kind=OutcomeKind.TOOL_ERROR, detail=f"{CANARY} was refused"),
        ]
        for number, answer in enumerate(answers, start=1):
            call = f"c{number}"
            parked = await room.call("restart", call=call, service="web", environment="staging")
            assert isinstance(parked, Parked)
            room.decide(parked, person("bob", "approver"), reason=f"fine, {CANARY}")
            room.world.says.append(answer)
            outcome = await room.call("restart", call=call, service="web", environment="staging")
            again = await room.call("restart", call=call, service="web", environment="staging")
            for told in (outcome, again):
                assert isinstance(told, ToolOutcome)
                assert CANARY not in repr(told)
                assert "[redacted:pager]" in told.content + told.detail
        room.authority.guard.audit.flush()
        kept = everything(room)
        assert CANARY not in kept
        assert "[redacted:pager]" in kept

    in_room(tmp_path, story)


def test_a_hand_that_raises_whatever_it_likes_is_an_outcome(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        room.world.says += [ConnectionError(f"no route to {CANARY}")] * 5
        outcome = await room.call("logs_search", service="web", query="x")
        assert isinstance(outcome, ToolOutcome)
        assert outcome.kind is OutcomeKind.TRANSPORT_ERROR
        assert outcome.detail == "ConnectionError: no route to [redacted:pager]"

    in_room(tmp_path, story)


def test_what_a_model_says_about_a_call_is_asked_without_secrets(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        arguments = {"service": "web", "environment": "staging"}
        parked = await room.authority.toolbox.call(
            ToolCall(id="c1", tool="restart", arguments=json.dumps(arguments)),
            caller=room.caller(),
            diff=f"+{CANARY}",
            explanation=f"because {CANARY}",
            facts=(("owner", CANARY),),
        )
        assert isinstance(parked, Parked)
        with room.runs.database.reading() as connection:
            asked = room.authority.guard.approvals.find(connection, parked.approval, tenant="local")
        assert asked is not None
        assert CANARY not in room.authority.guard.approvals.show(asked, form="text")
        assert "because [redacted:pager]" in room.authority.guard.approvals.show(asked, form="json")

    in_room(tmp_path, story)


def test_held_are_passwords_inside_of_urls_and_not_the_names_of_authors() -> None:
    redactor = Redactor(
        {"journal.url": Secret("postgresql://u:p%40ss-9word@db/quell")}, environment={"GIT_AUTHOR_NAME": "somebody"}
    )
    assert redactor.held_in("password authentication failed for p@ss-9word") == "journal.url"
    assert redactor.held_in("p%40ss-9word") == "journal.url"
    assert redactor.held_in("somebody changed this; ghp_" + "a1" * 18) == ""


def test_errors_of_steps_and_runs_are_kept_without_secrets(tmp_path: Path) -> None:
    redactor = Redactor({"pager": Secret(CANARY)})
    told: list[str] = []

    async def work(context: RunContext) -> Next:
        async def fails() -> str:
            raise ConnectionError(f"no route to {CANARY}")

        with pytest.raises(StepError) as failed:
            await context.step("one", fails, returns=str, timeout_s=5)
        told.append(str(failed.value))
        if context.arguments["ends"] == "badly":
            raise ConnectionError(f"all of it: {CANARY}")
        return Done(result={})

    async def play() -> None:
        runs = await Runs.open(
            JournalSettings(lease_s=2.0),
            state_dir=tmp_path,
            clock=system_clock,
            entropy=os.urandom,
            version="v1",
            clean=redactor.text,
        )
        try:
            runs.register("work", work)
            await runs.launch()
            for ends in ("well", "badly"):
                run = await runs.start("work", subject="x", arguments={"ends": ends})
                ended = await runs.wait(run.id, timeout_s=30)
                told.append(f"{ended} {await runs.steps(run.id)} {await runs.events(run=run.id)}")
        finally:
            await runs.close()

    asyncio.run(play())
    assert len(told) == 4
    for said in told:
        assert CANARY not in said
        assert "[redacted:pager]" in said


def test_the_log_knows_secrets_of_tool_servers_and_every_encoding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = McpServerSettings(
        transport="http_streamable", url="http://127.0.0.1:9", headers={"authorization": Secret(CANARY)}
    )
    settings = Settings(state_dir=tmp_path, mcp=type(Settings().mcp)(servers={"s": server}))
    opened = telemetry.open_telemetry(
        settings,
        role="serve",
        service_version="1",
        instance="i",
        clock=system_clock,
        env={},
        clean=Redactor.of(settings, environment={}).text,
    )
    try:
        message = f"{CANARY} and {CANARY.encode().hex()}"
        telemetry.event("library.logged", logger="x", severity="warning", message=message)
    finally:
        opened.close_now()
    told = capsys.readouterr().err + (tmp_path / "logs" / "quell.log").read_text()
    assert "[redacted" in told
    assert CANARY not in told
    assert CANARY.encode().hex() not in told
