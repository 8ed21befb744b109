"""What a crew leaves on disk: AURA's layout, artifacts that its own session may read, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import cast

import pytest

from quell.agent import Stop
from quell.config import ArtifactSettings, OrchestrationSettings
from quell.domain import OutcomeKind, ToolOutcome
from quell.models._scripted import Turn, wants
from tests.doors._crew_bench import (
    CrewRoom,
    Mind,
    call,
    crew_room,
    manifest_in,
    plans,
    responds,
    search,
    step,
    submits,
    texts,
)

LONG = "found it. " * 300
SETTINGS = OrchestrationSettings(
    enabled=True, artifacts=ArtifactSettings(result_artifact_threshold=1_000, result_summary_length=100)
)


def reads(name: str, **more: object) -> Turn:
    return wants(call("read_artifact", filename=name, **more))


def test_the_files_of_a_run_are_auras_and_long_results_are_read_from_them(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        turns = [plans(step("a")), reads("task-1-reader-iter-1-result.txt"), responds("I read it.")]
        mind = Mind(script=[wants(search(_aura_reasoning="to see")), submits(LONG)])
        async with crew_room(tmp_path, turns, {"reader": mind}, memory=memory, settings=SETTINGS) as room:
            room.world.says.append(
                ToolOutcome(call="", tool="logs_search", kind=OutcomeKind.OK, content="line\n" * 200)
            )
            run = await room.start("?")
            assert (await room.answer(run)).stop is Stop.ANSWERED
            place = memory / "s1" / run.id
            assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == [
                "artifacts/task-1-reader-iter-1-logs_search-0-output.txt",
                "artifacts/task-1-reader-iter-1-result.txt",
                "iteration-1/plan.json",
                "iteration-1/planning.prompt.txt",
                "iteration-1/planning.response.txt",
                "iteration-1/task-1.attempt-1.prompt.txt",
                "iteration-1/task-1.attempt-1.response.txt",
                "iteration-1/task-1.attempt-1.result.json",
                "iteration-1/task-1.attempt-1.tool-calls.json",
                "iteration-2/planning.prompt.txt",
                "iteration-2/planning.response.txt",
                "manifest.json",
            ]
            assert {path.stat().st_mode & 0o077 for path in place.rglob("*")} == {0}
            shown = texts(room.coordinator.asked)
            assert "read_artifact task-1-reader-iter-1-result.txt" in shown[1]
            assert LONG.strip() not in shown[1]
            assert LONG.strip() in shown[2]
            assert "task-1-reader-iter-1-logs_search-0-output.txt (logs_search, 1000 bytes)" in shown[1]
            (record,) = json.loads((place / "iteration-1" / "task-1.attempt-1.tool-calls.json").read_text())
            assert (record["tool"], record["reasoning"]) == ("logs_search", "to see")
            (summary,) = cast("list[dict[str, object]]", manifest_in(memory, run)["task_summaries"])
            assert [each["kind"] for each in cast("list[dict[str, object]]", summary["artifacts"])] == [
                "result",
                "tool_output",
            ]

    asyncio.run(story())


def test_a_failed_call_is_a_failure_in_the_files_too(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        mind = Mind(script=[wants(search()), submits("I could not see it.")])
        async with crew_room(tmp_path, [plans(step("a")), responds("No.")], {"reader": mind}, memory=memory) as room:
            failed = ToolOutcome(call="", tool="logs_search", kind=OutcomeKind.TOOL_ERROR, detail="boom")
            room.world.says.append(failed)
            run = await room.start("?")
            await room.answer(run)
            (summary,) = cast("list[dict[str, object]]", manifest_in(memory, run)["task_summaries"])
            (trace,) = cast("list[dict[str, object]]", summary["tool_trace"])
            assert trace["outcome"] == {"error": {"message": "boom"}}

    asyncio.run(story())


async def _first(room: CrewRoom, memory: Path, *, session: str = "s1") -> str:
    """Let a run of a session leave an artifact; return its id."""
    run = await room.start("Remember this.", session=session)
    assert (await room.answer(run)).stop is Stop.ANSWERED
    place = memory / session
    assert (place / run.id / "artifacts" / "task-1-reader-iter-1-result.txt").is_file()
    return run.id


def _remembering(*later: Turn) -> list[Turn]:
    return [plans(step("a")), responds("Remembered."), *later]


def test_a_session_knows_its_earlier_runs_and_reads_what_they_left(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        earlier: list[str] = []

        def turn(request: object) -> Turn:
            number = len(room.coordinator.asked)
            given = _remembering(
                wants(call("list_prior_runs")),
                reads("task-1-reader-iter-1-result.txt", run_id=earlier[0] if earlier else ""),
                responds("I know it."),
            )
            return given[number - 1]

        mind = Mind(script=[submits(LONG)])
        async with crew_room(tmp_path, turn, {"reader": mind}, memory=memory, settings=SETTINGS) as room:
            earlier.append(await _first(room, memory))
            assert (await room.ask("What was it?")).text == "I know it."
            asked = texts(room.coordinator.asked)
            assert f'<run id="{earlier[0]}" status="success">' in asked[2]
            assert "answer: Remembered." in asked[2]
            assert earlier[0] in asked[3].partition("<result")[2]
            assert LONG.strip() in asked[4]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("session", "tenant", "user"),
    [("s2", "local", "owner"), ("s1", "acme", "owner"), ("", "local", "owner"), ("s1", "local", "bob")],
)
def test_nobody_reads_runs_of_another_session_tenant_or_user(
    tmp_path: Path, session: str, tenant: str, user: str
) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        earlier: list[str] = []

        def turn(request: object) -> Turn:
            number = len(room.coordinator.asked)
            stolen = reads("task-1-reader-iter-1-result.txt", run_id=earlier[0] if earlier else "")
            return _remembering(stolen, responds("I do not know."))[number - 1]

        mind = Mind(script=[submits(LONG)])
        async with crew_room(tmp_path, turn, {"reader": mind}, memory=memory, settings=SETTINGS) as room:
            earlier.append(await _first(room, memory))
            run = await room.start("What was it?", session=session, tenant=tenant, user=user)
            await room.answer(run)
            asked = texts(room.coordinator.asked)
            assert "Earlier runs" not in asked[2]
            assert 'outcome="denied"' in asked[3]
            assert LONG.strip() not in asked[3]

    asyncio.run(story())


@pytest.mark.parametrize(
    "given",
    [
        {"filename": "../manifest.json"},
        {"filename": "/etc/passwd"},
        {"filename": "a/../../manifest.json"},
        {"filename": ".latest.part"},
        {"filename": ""},
        {"filename": "link.txt"},
        {"filename": "pipe"},
        {"filename": "secret.txt", "run_id": "../../outside"},
        {"filename": "secret.txt", "run_id": "latest"},
        {"filename": "secret.txt", "run_id": "linked_run"},
        {"filename": "missing.txt"},
    ],
)
def test_no_name_and_no_link_leads_out_of_a_sessions_artifacts(tmp_path: Path, given: dict[str, object]) -> None:
    async def story() -> None:
        memory, outside = tmp_path / "memory", tmp_path / "outside"
        (outside / "artifacts").mkdir(parents=True)
        (outside / "artifacts" / "secret.txt").write_text("TOP SECRET")

        def turn(request: object) -> Turn:
            if len(room.coordinator.asked) > 1:
                return responds("No.")
            (place,) = [path for path in (memory / "s1").iterdir() if path.name.startswith("run_")]
            (place / "artifacts").mkdir()
            (place / "artifacts" / "link.txt").symlink_to(outside / "artifacts" / "secret.txt")
            os.mkfifo(place / "artifacts" / "pipe")
            (memory / "s1" / "linked_run").symlink_to(outside)
            return wants(call("read_artifact", **given))

        async with crew_room(tmp_path, turn, {"reader": Mind(script=[])}, memory=memory) as room:
            await room.ask("?")
            told = texts(room.coordinator.asked)[1]
            assert 'outcome="denied"' in told
            assert "TOP SECRET" not in told

    asyncio.run(story())


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    async def story() -> None:
        memory, outside = tmp_path / "memory", tmp_path / "outside"
        outside.mkdir()
        memory.mkdir()
        (memory / "s1").symlink_to(outside)
        async with crew_room(tmp_path, [responds("Hello.")], {"reader": Mind(script=[])}, memory=memory) as room:
            assert (await room.ask("?")).text == "Hello."
            assert list(outside.iterdir()) == []

    asyncio.run(story())


@pytest.mark.parametrize("session", ["../up", "run_1", "a/b", ".", "x" * 300, "@acme", "\x00", "latest\n"])
def test_whatever_a_client_calls_its_session_it_names_no_place(tmp_path: Path, session: str) -> None:
    async def story() -> None:
        memory = tmp_path / "deep" / "memory"
        async with crew_room(tmp_path, [responds("Hello.")], {"reader": Mind(script=[])}, memory=memory) as room:
            run = await room.start("?", session=session)
            await room.answer(run)
            (found,) = memory.rglob("manifest.json")
            assert found.parent.name == run.id
            assert found.parent.parent.parent == memory
            assert found.parent.parent.name.startswith("x-")

    asyncio.run(story())


def test_the_oldest_runs_of_a_session_go_and_one_under_way_stays(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        for number in range(4):
            place = memory / "s1" / f"run_0000000000000000000000000{number}"
            place.mkdir(parents=True)
            if number:
                (place / "manifest.json").write_text("{}")
        settings = OrchestrationSettings(enabled=True, artifacts=ArtifactSettings(max_session_runs=2))
        turns = [responds("Hello.")]
        async with crew_room(tmp_path, turns, {"reader": Mind(script=[])}, memory=memory, settings=settings) as room:
            run = await room.start("?")
            await room.answer(run)
            left = sorted(path.name for path in (memory / "s1").iterdir() if not path.is_symlink())
            assert left == ["run_00000000000000000000000000", "run_00000000000000000000000003", run.id]

    asyncio.run(story())


def test_a_long_artifact_is_read_in_parts(tmp_path: Path) -> None:
    async def story() -> None:
        memory = tmp_path / "memory"
        name = "task-1-reader-iter-1-result.txt"
        turns = [plans(step("a")), reads(name), reads(name, offset=32_000), responds("I read it.")]
        mind = Mind(script=[submits("x" * 40_000)], evidence="off")
        async with crew_room(tmp_path, turns, {"reader": mind}, memory=memory, settings=SETTINGS) as room:
            await room.ask("?")
            asked = texts(room.coordinator.asked)
            assert "8000 characters follow: read on with offset 32000" in asked[2]
            assert 'outcome="ok"' in asked[3].rpartition("<result")[2]

    asyncio.run(story())


def test_without_a_place_for_files_a_crew_works_and_offers_none(tmp_path: Path) -> None:
    async def story() -> None:
        mind = Mind(script=[submits(LONG)])
        async with crew_room(
            tmp_path, [plans(step("a")), responds("Done.")], {"reader": mind}, settings=SETTINGS
        ) as room:
            await room.ask("?")
            assert LONG.strip() in texts(room.coordinator.asked)[1]
            offered = {tool.name for tool in room.coordinator.asked[0].tools}
            assert offered == {"respond_directly", "create_plan", "request_clarification"}

    asyncio.run(story())
