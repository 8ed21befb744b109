"""An edit: other arguments in the place of those that people were asked about, decided by others, and nothing else runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from quell.domain import Approval, OutcomeKind, Parked, QuellError, RefusedError, ToolOutcome, UsageError
from tests.doors._hand_bench import Room, hand_room, person

BEN, CAL, ANN = (person(name, "approver") for name in ("ben", "cal", "ann"))
SCALE: dict[str, Any] = {"service": "web", "environment": "staging", "replicas": 40}
FEWER: dict[str, Any] = {**SCALE, "replicas": 4}


def play(state_dir: Path, story: Callable[[Room], Awaitable[None]], **more: Any) -> None:
    async def run() -> None:
        async with hand_room(state_dir, **more) as room:
            await story(room)

    asyncio.run(run())


async def scale(room: Room, **arguments: Any) -> ToolOutcome | Parked:
    return await room.call("scale", call="c1", **(arguments or SCALE))


async def asked(room: Room) -> Parked:
    parked = await scale(room)
    assert isinstance(parked, Parked)
    room.clock.forward(seconds=1)
    return parked


async def edit(room: Room, parked: Parked, by: Any = BEN, *, seen: str = "", **arguments: Any) -> Approval:
    return await room.authority.toolbox.edit(
        parked.approval,
        arguments=json.dumps(arguments or FEWER),
        by=by,
        digest_seen=seen or parked.digest,
        way="cli",
    )


def say(room: Room, approval: Approval, by: Any, verdict: Any = "approve") -> None:
    with room.runs.database.writing() as connection:
        room.authority.guard.approvals.decide(
            connection, approval.id, by=by, verdict=verdict, digest_seen=approval.digest, reason="because"
        )


def test_the_call_that_waits_runs_with_the_edited_arguments_once_others_approved_them(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = await asked(room)
        new = await edit(room, parked)
        assert new.terms.supersedes == parked.approval
        assert json.loads(new.terms.calls[0].call.arguments) == FEWER
        facts = dict(new.terms.calls[0].facts)
        assert (facts["edited by"], json.loads(facts["arguments before the edit"])) == ("ben", SCALE)

        waits = await scale(room)
        assert isinstance(waits, Parked)
        assert (waits.approval, waits.digest) == (new.id, new.digest)
        for nobody in (BEN, ANN):
            with pytest.raises(RefusedError, match="may not decide"):
                say(room, new, nobody)
        say(room, new, CAL)
        done = await scale(room)
        assert isinstance(done, ToolOutcome)
        assert done.kind is OutcomeKind.OK
        assert done.evidence["edited"] == new.id
        assert json.loads(done.evidence["arguments"]) == FEWER
        assert [arguments for _, arguments, _, _ in room.world.done] == [FEWER]
        again = await scale(room)
        assert isinstance(again, ToolOutcome)
        assert again.kind is OutcomeKind.OK
        assert len(room.world.done) == 1

    play(tmp_path, story)


def test_an_edit_takes_back_the_yes_that_was_given_already(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        parked = await asked(room)
        room.decide(parked, CAL)
        new = await edit(room, parked)
        assert isinstance(await scale(room), Parked)
        assert room.world.done == []
        say(room, new, CAL)
        await scale(room)
        assert [arguments for _, arguments, _, _ in room.world.done] == [FEWER]

    play(tmp_path, story)


@pytest.mark.parametrize("end", ["rejected", "expired"])
def test_an_edit_that_came_to_nothing_does_not_bring_the_old_arguments_back(tmp_path: Path, end: str) -> None:
    async def story(room: Room) -> None:
        parked = await asked(room)
        room.decide(parked, CAL)
        new = await edit(room, parked)
        if end == "rejected":
            say(room, new, CAL, "reject")
        else:
            room.clock.forward(seconds=901)
        for arguments in (SCALE, FEWER):
            outcome = await scale(room, **arguments)
            assert isinstance(outcome, ToolOutcome)
            assert outcome.kind is OutcomeKind.DENIED
            assert end in outcome.detail
            assert new.id in outcome.detail
        assert room.world.done == []

    play(tmp_path, story)


def test_an_edit_can_be_edited_and_both_editors_stay_out_of_the_decision(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        first = await edit(room, await asked(room))
        room.clock.forward(seconds=1)
        second = await room.authority.toolbox.edit(
            first.id, arguments=json.dumps({**SCALE, "replicas": 2}), by=CAL, digest_seen=first.digest, way="api"
        )
        assert second.terms.barred == ("ann", "ben", "cal")
        for nobody in (BEN, CAL, ANN):
            with pytest.raises(RefusedError, match="may not decide"):
                say(room, second, nobody)
        say(room, second, person("dan", "approver"))
        await scale(room)
        assert [arguments["replicas"] for _, arguments, _, _ in room.world.done] == [2]

    play(tmp_path, story)


def test_other_arguments_of_the_run_are_asked_about_by_themselves(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        new = await edit(room, await asked(room))
        say(room, new, CAL)
        room.clock.forward(seconds=1)
        other = await scale(room, **{**SCALE, "replicas": 50})
        assert isinstance(other, Parked)
        assert other.approval != new.id
        assert room.world.done == []

    play(tmp_path, story)


OWN = """
@id("own.small-scale")
permit (principal, action == Quell::Action::"scale", resource) when { resource.units <= 5 };
"""


def test_an_edit_to_what_policy_would_let_through_still_waits_for_others(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        new = await edit(room, await asked(room))
        assert "quell.edited" in new.terms.policies
        assert isinstance(await scale(room), Parked)
        assert room.world.done == []
        say(room, new, CAL)
        await scale(room)
        assert len(room.world.done) == 1

    play(tmp_path, story, policies=[OWN])


@pytest.mark.parametrize(
    ("by", "seen", "arguments", "told"),
    [
        (ANN, "", FEWER, ("forbidden", "who asked")),
        (person("vic", "viewer"), "", FEWER, ("forbidden", "none of the roles")),
        (person("eve", "approver", tenant="other"), "", FEWER, ("unknown", "no approval")),
        (BEN, "0" * 64, FEWER, ("mismatch", "something else")),
        (BEN, "", {**SCALE, "replicas": 101}, ("forbidden", "replicas")),
        (BEN, "", {**SCALE, "extra": 1}, ("forbidden", "extra")),
        (BEN, "", SCALE, ("", "changes nothing")),
    ],
)
def test_an_edit_that_may_not_be_changes_nothing_and_is_on_record(
    tmp_path: Path, by: Any, seen: str, arguments: dict[str, Any], told: tuple[str, str]
) -> None:
    async def story(room: Room) -> None:
        (code, said), parked = told, await asked(room)
        with pytest.raises((RefusedError, UsageError), match=said) as caught:
            await edit(room, parked, by, seen=seen, **arguments)
        if code:
            assert isinstance(caught.value, RefusedError)
            assert caught.value.code == code
        assert isinstance(caught.value, QuellError)
        audit = room.authority.guard.audit
        audit.flush()
        (newest,) = audit.newest(items_max=1)
        assert newest.kind == "refusal"
        assert json.loads(newest.body)["verdict"] == "edit"
        room.decide(parked, CAL)
        await scale(room)
        assert [arguments for _, arguments, _, _ in room.world.done] == [SCALE]

    play(tmp_path, story)
