"""Waiting is a tool: its probes only read, are the worker's own, pass the guard, and end in time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from quell.domain import CallRequest, OutcomeKind, ToolOutcome
from quell.models._scripted import Turn, wants
from tests.doors._crew_bench import Mind, call, crew_room, plans, responds, step, submits, texts
from tests.doors._hand_bench import SmallWorld

PROBE = {"tool": "logs_search", "args": {"service": "web", "query": "ready"}}


def waits(until: dict[str, object], probe: dict[str, object] | None = None, **more: object) -> Turn:
    return wants(call("wait_for", probe=probe or PROBE, until=until, **{"poll_sec": 0.05, "max_wait_sec": 5, **more}))


def brought(content: str, kind: OutcomeKind = OutcomeKind.OK, detail: str = "") -> ToolOutcome:
    return ToolOutcome(call="", tool="logs_search", kind=kind, content=content, detail=detail)


def _wait(
    tmp_path: Path, turn: Turn, says: list[ToolOutcome], *, tools: tuple[str, ...] = ("logs_search", "scale")
) -> tuple[str, SmallWorld]:
    """Play one wait; return what the worker was told of it."""

    async def story() -> tuple[str, SmallWorld]:
        mind = Mind(script=[turn, submits("I waited.")], tools=tools)
        async with crew_room(tmp_path, [plans(step("wait")), responds("Done.")], {"reader": mind}) as room:
            room.world.says += says
            await room.ask("?")
            return room.workers["reader"].asked[-1].messages[-1].text, room.world

    return asyncio.run(story())


def told(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(text.partition(">\n")[2].rpartition("\n</result")[0])
    return found


def test_it_looks_until_what_it_sees_fits(tmp_path: Path) -> None:
    text, world = _wait(
        tmp_path, waits({"matches": "rea.y$"}), [brought("starting"), brought("starting"), brought("ready")]
    )
    body = told(text)
    assert (body["reason"], body["last_observation"], body["samples"]) == ("matched", "ready", 3)
    assert world.reads == 3
    assert 'id="t1e1" outcome="ok"' in text


def test_it_waits_until_something_is_gone_and_a_failing_probe_is_no_sign_of_that(tmp_path: Path) -> None:
    says = [brought("error"), brought("", OutcomeKind.TOOL_ERROR, "boom"), brought("all well")]
    text, world = _wait(tmp_path, waits({"not_matches": "error"}), says)
    assert (told(text)["reason"], world.reads) == ("matched", 3)


def test_it_waits_until_nothing_changes_any_more(tmp_path: Path) -> None:
    says = [brought("1"), brought("2"), *[brought("3")] * 10]
    text, world = _wait(tmp_path, waits({"quiet_for_sec": 0.2}), says)
    assert (told(text)["reason"], told(text)["last_observation"]) == ("settled", "3")
    assert world.reads >= 4


def test_a_wait_that_brings_nothing_ends_in_time_and_that_is_a_result(tmp_path: Path) -> None:
    text, _ = _wait(tmp_path, waits({"matches": "never"}, max_wait_sec=0.3), [])
    body = told(text)
    assert (body["reason"], body["effective_max_wait_sec"]) == ("timeout", 0.3)
    assert 'outcome="ok"' in text


@pytest.mark.parametrize(
    ("kind", "detail"),
    [(OutcomeKind.TRANSPORT_ERROR, "gone"), (OutcomeKind.SUSPICIOUS, "forged")],
)
def test_a_probe_that_cannot_be_believed_ends_the_wait(tmp_path: Path, kind: OutcomeKind, detail: str) -> None:
    text, world = _wait(tmp_path, waits({"not_matches": "x"}), [brought("", kind, detail)] * 9)
    assert f'outcome="{kind.value}"' in text
    assert detail in text
    assert world.reads < 9


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        (
            waits(
                {"matches": "x"}, {"tool": "scale", "args": {"service": "web", "environment": "staging", "replicas": 0}}
            ),
            "no tool that may be a probe",
        ),
        (waits({"matches": "x"}, {"tool": "is_volume_deleted", "args": {}}), "no tool that may be a probe"),
        (waits({"matches": "x"}, {"tool": "submit_result", "args": {}}), "no tool that may be a probe"),
        (waits({"matches": "x"}, {"tool": "ghost", "args": {}}), "no tool that may be a probe"),
        (waits({"matches": "(?=x)"}), "cannot be used"),
        (waits({"matches": ""}), "1 to 512 characters"),
        (waits({"matches": "x", "quiet_for_sec": 1}), "exactly one of"),
        (waits({"quiet_for_sec": 0}), "above 0"),
        (wants(call("wait_for", probe="logs_search", until="x")), "`probe` is {tool, args}"),
    ],
)
def test_what_no_wait_may_do_is_refused_before_anything_happens(tmp_path: Path, turn: Turn, why: str) -> None:
    text, world = _wait(tmp_path, turn, [])
    assert why in text
    assert 'outcome="denied"' in text
    assert (world.done, world.reads) == ([], 0)


def test_a_worker_that_reads_nothing_is_not_offered_to_wait(tmp_path: Path) -> None:
    async def story() -> None:
        mind = Mind(script=[submits("Nothing.")], tools=("scale",))
        async with crew_room(tmp_path, [plans(step("a")), responds("Done.")], {"reader": mind}) as room:
            await room.ask("?")
            assert {tool.name for tool in room.workers["reader"].asked[0].tools} == {"scale", "submit_result"}

    asyncio.run(story())


@pytest.mark.timeout(20)
def test_a_probe_that_hangs_does_not_outlive_the_wait_and_policies_see_where_it_comes_from(tmp_path: Path) -> None:
    class Hanging(SmallWorld):
        origins: list[str] = []  # noqa: RUF012 - of this test only

        async def use(self, request: CallRequest, key: str) -> ToolOutcome:
            self.origins.append(request.caller.origin.value)
            if request.caller.origin.value == "wait":
                await asyncio.sleep(60)
            return await super().use(request, key)

    async def story() -> None:
        world = Hanging()
        mind = Mind(script=[waits({"matches": "x"}, max_wait_sec=0.4), submits("I waited.")])
        async with crew_room(tmp_path, [plans(step("a")), responds("Done.")], {"reader": mind}, world=world) as room:
            await room.ask("?")
            text = texts(room.workers["reader"].asked)[-1]
            assert '"reason": "timeout"' in text
            assert set(world.origins) == {"wait"}

    asyncio.run(story())


def test_a_probe_that_failed_between_two_looks_breaks_the_quiet(tmp_path: Path) -> None:
    failed = brought("", OutcomeKind.TOOL_ERROR, "boom")
    says = [brought("same"), failed, brought("same"), failed, *[brought("same")] * 10]
    text, world = _wait(tmp_path, waits({"quiet_for_sec": 0.12}), says)
    assert told(text)["reason"] == "settled"
    assert world.reads >= 6
