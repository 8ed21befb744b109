"""Bad days of an investigation: clocks, restarts, hostile names, a journal that goes away."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from quell.config import InvestigationSettings, JournalSettings, Secret
from quell.domain import JournalError, MetricShift, Outcome, QuestionKind, RunStatus, Stage, UsageError
from quell.incidents import Desk, Request, request_of_alerts
from quell.runs import Runs
from quell.signals import Reader
from tests._postgres import fresh_database
from tests._story import NOON, ONSET, RecordedReader, alert, bad_release, edge
from tests.conftest import FakeClock
from tests.doors.test_incidents_desk import Room, in_a_room

pytestmark = pytest.mark.timeout(20)


def test_an_investigation_that_lay_still_past_its_deadline_reads_what_it_had_not_read_when_it_is_resumed(
    tmp_path: Path,
) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.desk.handle([alert()])
        async with asyncio.timeout(10):
            while QuestionKind.FLOW_BREAKS not in room.reader.asked:
                await asyncio.sleep(0.02)
        await room.runs.cancel(incident.run or "")
        room.clock.forward(seconds=3600)
        room.reader.hanging = frozenset()
        await room.runs.resume(incident.run or "")
        assert (await room.ended(incident.run)).status is RunStatus.SUCCEEDED
        case = await room.desk.case_file(incident.id)
        assert case.finding is not None
        assert case.finding.outcome is Outcome.CAUSE_FOUND
        assert not case.gaps
        assert case.cost is not None
        assert case.cost.seconds < 60, "the hour in which nobody worked on it is no work"

    reader = RecordedReader(hanging=frozenset({QuestionKind.FLOW_BREAKS}), rows=bad_release())
    in_a_room(story, tmp_path, reader=reader, read_timeout_s=600)


@pytest.mark.parametrize("jump_s", [-86400, -1800, 86400])
def test_a_clock_that_is_set_neither_delays_nor_cuts_short_what_is_asked(tmp_path: Path, jump_s: float) -> None:
    async def story(room: Room) -> None:
        (first,) = await room.handled(alert())
        room.clock.forward(seconds=jump_s)
        (second,) = await room.handled(alert("payment", at=room.clock.at, number=7, summary="it is worse"))
        assert second.id == first.id
        assert second.run != first.run, "an inconclusive incident is looked at again"
        assert (await room.runs.get(second.run or "")).status is RunStatus.SUCCEEDED

    in_a_room(story, tmp_path, reader=RecordedReader(rows={}))


def test_events_tell_what_an_incident_came_to_be_when_many_alerts_arrive_at_once(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert("a"), alert("b"), alert("c"), alert("d"))
        told = [e for e in await room.runs.events(run=incident.id) if e.name == "incident.updated"]
        assert '"services":["a","b","c","d"]' in told[-1].body

    in_a_room(story, tmp_path)


def test_an_incident_closed_while_its_alert_fires_does_not_spoil_every_later_baseline(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (first,) = await room.handled(alert("web"))
        await room.desk.close(first.id, by="ann", reason="known and accepted")
        room.clock.forward(seconds=7200)
        at = room.clock.at
        (second,) = await room.handled(alert("payment", at=at - timedelta(seconds=20), number=2))
        case = await room.desk.case_file(second.id)
        assert case.plan is not None
        assert not case.plan.notes
        length_s = 60 * InvestigationSettings().baseline_minutes
        assert case.plan.baseline.seconds == pytest.approx(length_s)

    in_a_room(story, tmp_path)


@pytest.mark.parametrize("ends_at", [ONSET + timedelta(seconds=300), datetime.max.replace(tzinfo=UTC)])
def test_an_end_that_was_never_reported_or_never_comes_spoils_no_later_investigation(
    tmp_path: Path, ends_at: datetime
) -> None:
    """One episode lacks its end and the next has one, be it the last moment that a sender can write."""

    async def story(room: Room) -> None:
        await room.handled(alert("web"))
        again = alert("web", at=ONSET + timedelta(seconds=50), number=2)
        await room.handled(again, replace(again, status="resolved", ends_at=ends_at))
        room.clock.forward(seconds=7200)
        at = room.clock.at - timedelta(seconds=20)
        (second,) = await room.handled(alert("payment", at=at, number=2))
        case = await room.desk.case_file(second.id)
        assert case.plan is not None, case.state
        if ends_at < room.clock.at:
            assert not case.plan.notes

    in_a_room(story, tmp_path, reader=RecordedReader(rows={}))


def test_an_alert_that_says_it_begins_at_the_end_of_time_is_investigated_now(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(replace(alert(), starts_at=datetime.max.replace(tzinfo=UTC)))
        assert (await room.runs.get(incident.run or "")).status is RunStatus.SUCCEEDED
        (other,) = await room.handled(alert("web", at=room.clock.at))
        assert (await room.runs.get(other.run or "")).status is RunStatus.SUCCEEDED

    in_a_room(story, tmp_path, settle_s=0.1)


def test_what_cannot_be_read_of_the_book_is_told_as_trouble_of_the_journal(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        with sqlite3.connect(tmp_path / "quell.db") as raw:
            raw.execute("ALTER TABLE incidents RENAME TO lost")
        raw.close()
        with pytest.raises(JournalError) as told:
            await room.desk.incidents()
        assert told.value.hint
        with pytest.raises(JournalError):
            await room.desk.case_file(incident.id)

    in_a_room(story, tmp_path)


def test_a_question_of_bytes_that_are_no_text_is_asked_all_the_same(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        run = await room.desk.investigate(Request(text="\udcff\x00 checkout is slow\x1b[2J"))
        assert (await room.ended(run.id)).status is RunStatus.SUCCEEDED
        (incident,) = await room.desk.incidents()
        assert incident.title == "\\udcff\\x00 checkout is slow\\x1b[2J"
        case = await room.desk.case_file(run.id)
        assert case.plan is not None
        assert case.plan.focus == ("checkout",)

    in_a_room(story, tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_answer_with_numbers_that_are_none_is_a_gap_and_not_the_end(tmp_path: Path, number: float) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        assert (await room.runs.get(incident.run or "")).status is RunStatus.SUCCEEDED
        case = await room.desk.case_file(incident.id)
        assert [(gap.question, gap.reason) for gap in case.gaps] == [(QuestionKind.METRIC_SHIFTS, "nonsense")]

    rows = bad_release()
    (shift,) = rows[QuestionKind.METRIC_SHIFTS]
    assert isinstance(shift, MetricShift)
    rows[QuestionKind.METRIC_SHIFTS] = (replace(shift, after=number),)
    in_a_room(story, tmp_path, reader=RecordedReader(rows=rows))


@pytest.mark.parametrize("field", ["starts_at", "ends_at", "received_at"])
@pytest.mark.parametrize("at", ["2026-11-20T12:00:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_a_file_of_alerts_without_zone_or_of_another_age_is_refused(field: str, at: str) -> None:
    told = {**msgspec.to_builtins(alert()), field: at}
    with pytest.raises(UsageError) as refused:
        request_of_alerts(msgspec.json.encode([told]), received_at=NOON, entropy=os.urandom)
    assert refused.value.hint


@pytest.mark.timeout(30)  # what grew with the cube of the number took longer
def test_a_storm_of_alerts_is_taken_in_before_anybody_waits_long_for_the_journal(tmp_path: Path) -> None:
    """All of it is one transaction, and who renews a lease waits for its end."""
    count = 400

    async def story(room: Room) -> None:
        await room.handled(alert("s0"))
        await room.handled(*(alert(f"s{number}") for number in range(count)))
        assert len(await room.desk.alerts(limit=1000)) == count

    calls = tuple(edge(f"s{number}", f"s{number * 7 % count}", errors=0) for number in range(1, count))
    in_a_room(story, tmp_path, reader=RecordedReader(rows={QuestionKind.EDGE_GAPS: calls}))


@pytest.mark.timeout(60)
def test_names_that_no_database_takes_keep_nobody_from_investigating(postgres_url: str, tmp_path: Path) -> None:
    """Telemetry is written by strangers: a service may be called anything, and be called by anything."""
    strange = (edge("we\x00b", "payment", errors=0), edge("x" * 5000, "y" * 5000, errors=0))
    rows = bad_release()
    rows[QuestionKind.EDGE_GAPS] = (*rows[QuestionKind.EDGE_GAPS], *strange)
    readers: Sequence[Reader] = [RecordedReader(rows=rows)]

    async def tell(url: str) -> None:
        clock = FakeClock()
        clock.at = NOON + timedelta(seconds=60)
        settings = JournalSettings(url=Secret(url))
        runs = await Runs.open(settings, state_dir=tmp_path, clock=clock, entropy=os.urandom, version="v1")
        try:
            bounds = InvestigationSettings(settle_s=0.0)
            desk = Desk(runs=runs, readers=readers, settings=bounds, clock=clock, entropy=os.urandom)
            await runs.launch()
            both = [alert("payment"), replace(alert("we\x00b"), id="alr_strange")]
            await desk.handle(both[:1])
            (incident,) = await desk.handle(both)
            run = await runs.wait(incident.run or "", timeout_s=30)
            assert run.status is RunStatus.SUCCEEDED, run.error
            asked = await desk.investigate(Request(text="is we\x00b slow?"))
            assert (await runs.wait(asked.id, timeout_s=30)).status is RunStatus.SUCCEEDED
            assert (await desk.incident(incident.id)).stage is Stage.ESCALATED
        finally:
            await runs.close()

    with fresh_database(postgres_url) as url:
        asyncio.run(tell(url))
