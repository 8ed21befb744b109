"""The desk: alerts in, each once; incidents out, each investigated."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quell.config import InvestigationSettings, JournalSettings
from quell.domain import (
    Alert,
    Incident,
    Outcome,
    QuestionKind,
    RefusedError,
    Run,
    RunStatus,
    Severity,
    Stage,
    Symptom,
    UsageError,
)
from quell.incidents import Desk, Request, request_of_alerts
from quell.runs import Runs
from quell.signals import Reader
from tests._story import NOON, ONSET, RecordedReader, alert, bad_release, edge
from tests.conftest import FakeClock

pytestmark = pytest.mark.timeout(20)


@dataclass(kw_only=True)
class Room:
    """A desk over a real journal, with a clock in hand."""

    desk: Desk
    runs: Runs
    clock: FakeClock
    reader: RecordedReader

    async def ended(self, run: str | None) -> Run:
        assert run is not None
        return await self.runs.wait(run, timeout_s=10)

    async def handled(self, *alerts: Alert) -> list[Incident]:
        """Hand alerts in and wait until what they started has ended."""
        incidents = await self.desk.handle(alerts)
        for incident in incidents:
            if incident.run:
                await self.ended(incident.run)
        return [await self.desk.incident(incident.id) for incident in incidents]


@asynccontextmanager
async def a_room(
    state_dir: Path, *, reader: RecordedReader | None = None, executes: bool = True, **bounds: float
) -> AsyncIterator[Room]:
    clock = FakeClock()
    clock.at = NOON + timedelta(seconds=60)
    runs = await Runs.open(JournalSettings(), state_dir=state_dir, clock=clock, entropy=os.urandom, version="v1")
    reader = reader or RecordedReader()
    readers: Sequence[Reader] = [reader]
    bounds = {"settle_s": 0.0, "read_timeout_s": 0.3, **bounds}
    bound = replace(InvestigationSettings(), **bounds)  # type: ignore[arg-type]  # every bound of the tests is a float
    desk = Desk(runs=runs, readers=readers, settings=bound, clock=clock, entropy=os.urandom)
    if executes:
        await runs.launch()
    try:
        yield Room(desk=desk, runs=runs, clock=clock, reader=reader)
    finally:
        await runs.close()


def in_a_room(work: Callable[[Room], Awaitable[None]], state_dir: Path, **options: object) -> None:
    async def run() -> None:
        async with a_room(state_dir, **options) as room:  # type: ignore[arg-type]  # forwarded as they are
            await work(room)

    asyncio.run(run())


def test_an_alert_becomes_an_incident_with_a_finding(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        assert incident.stage is Stage.ESCALATED
        assert incident.services == ("payment",)
        case = await room.desk.case_file(incident.id)
        assert case.finding is not None
        assert case.finding.outcome is Outcome.CAUSE_FOUND
        assert case.finding.subject is not None
        assert case.finding.subject.name == "payment"
        assert incident.subject == case.finding.subject
        assert set(room.reader.asked) == set(QuestionKind)
        steps = [step.name for step in await room.runs.steps(incident.run or "")]
        assert steps[0] == "plan"
        assert steps[-5:] == ["survey", "diagnose", "brief", "similar", "report"]
        assert {step for step in steps if step.startswith("read:")} == {
            f"read:recorded:{k.value}" for k in QuestionKind
        }

    in_a_room(story, tmp_path)


def test_the_same_alert_twice_is_one_alert_and_one_investigation(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        again = replace(alert(), id="alr_other", received_at=ONSET + timedelta(seconds=30))
        (first,) = await room.handled(alert(), alert())
        (second,) = await room.handled(again)
        assert second.id == first.id
        assert second.alerts == first.alerts == ("alr_paymenterrors1",)
        assert len(await room.runs.list(limit=10)) == 1
        fired = [event for event in await room.runs.events(run=first.id) if event.name == "alert.fired"]
        assert len(fired) == 1

    in_a_room(story, tmp_path)


def test_an_end_that_arrives_before_its_beginning_is_kept_and_joined(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        end = alert(ends_at=ONSET + timedelta(seconds=20))
        assert await room.handled(end) == []
        assert await room.desk.incidents() == []
        (incident,) = await room.handled(alert())
        (known,) = await room.desk.alerts()
        assert known.status == "resolved"
        assert known.ends_at == end.ends_at
        assert incident.alerts == (known.id,)

    in_a_room(story, tmp_path)


def test_an_alert_for_an_unknown_service_opens_an_incident_over_all_services(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        nameless, stranger = alert("", number=1), alert("no-such-service", number=2)
        (incident,) = await room.handled(nameless, stranger)
        assert incident.services == ("no-such-service",)
        case = await room.desk.case_file(incident.id)
        assert case.finding is not None
        assert case.plan is not None

    in_a_room(story, tmp_path)


def test_neighbours_in_the_call_graph_are_one_incident_and_strangers_are_two(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        await room.handled(alert("payment"))
        assert room.reader.asked.count(QuestionKind.EDGE_GAPS) == 1
        later = ONSET + timedelta(seconds=20)
        (joined,) = await room.handled(alert("web", at=later))
        (apart,) = await room.handled(alert("island", at=later, number=5))
        assert joined.services == ("payment", "web"), "payment is two calls away from web"
        assert apart.id != joined.id
        assert apart.services == ("island",)

    edges = (*bad_release()[QuestionKind.EDGE_GAPS], edge("island", "lagoon", errors=0))
    rows = {**bad_release(), QuestionKind.EDGE_GAPS: edges}
    in_a_room(story, tmp_path, reader=RecordedReader(rows=rows))


def test_without_a_graph_alerts_close_in_time_are_one_incident(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (first,) = await room.handled(alert("one"))
        (near,) = await room.handled(alert("two", at=ONSET + timedelta(seconds=60)))
        (far,) = await room.handled(alert("three", at=ONSET + timedelta(hours=2)))
        assert near.id == first.id
        assert far.id != first.id

    in_a_room(story, tmp_path, reader=RecordedReader(rows={}))


def test_flapping_does_not_open_new_incidents_and_quiet_ends_one(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        at = ONSET
        for number in range(2, 6):
            await room.handled(alert(at=at, ends_at=at + timedelta(seconds=20), number=number - 1))
            await room.desk.tend()
            at += timedelta(seconds=60)
            room.clock.forward(seconds=60)
            (again,) = await room.handled(alert(at=at, number=number))
            assert again.id == incident.id
        await room.handled(alert(at=at, ends_at=at + timedelta(seconds=20), number=5))
        await room.desk.tend()
        assert (await room.desk.incident(incident.id)).stage is Stage.ESCALATED
        room.clock.forward(seconds=121)
        await room.desk.tend()
        closed = await room.desk.incident(incident.id)
        assert closed.stage is Stage.RESOLVED
        assert closed.closed_at == room.clock.at
        (fresh,) = await room.handled(alert(at=room.clock.at, number=9))
        assert fresh.id != incident.id

    in_a_room(story, tmp_path)


def test_new_alerts_make_an_inconclusive_incident_looked_at_again_but_not_for_ever(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert("payment"))
        case = await room.desk.case_file(incident.id)
        assert case.finding is not None
        assert case.finding.outcome is not Outcome.CAUSE_FOUND
        for symptom in (Symptom.LATENCY, Symptom.TRAFFIC, Symptom.SILENCE, Symptom.SATURATION):
            await room.handled(alert("payment", symptom=symptom, at=ONSET + timedelta(seconds=5)))
        assert len(await room.runs.list(limit=10)) == 3

    in_a_room(story, tmp_path, reader=RecordedReader(rows={}))


def test_a_source_that_fails_hangs_or_is_empty_becomes_a_gap_and_the_run_succeeds(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        run = await room.runs.get(incident.run or "")
        assert run.status is RunStatus.SUCCEEDED
        case = await room.desk.case_file(incident.id)
        reasons = {gap.question: gap.reason for gap in case.gaps}
        assert reasons[QuestionKind.CHANGES] == "failed"
        assert reasons[QuestionKind.FLOW_BREAKS] == "timeout"

    reader = RecordedReader(
        broken=frozenset({QuestionKind.CHANGES}), hanging=frozenset({QuestionKind.FLOW_BREAKS}), rows=bad_release()
    )
    in_a_room(story, tmp_path, reader=reader, read_timeout_s=0.05)


def test_a_source_that_never_answers_in_time_is_not_asked_for_ever(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        case = await room.desk.case_file(incident.id)
        assert case.finding is not None
        assert case.finding.outcome is Outcome.INCONCLUSIVE
        assert len(room.reader.asked) < len(QuestionKind)
        assert any("not asked" in gap.detail for gap in case.gaps)

    in_a_room(story, tmp_path, reader=RecordedReader(hanging=frozenset(QuestionKind)), read_timeout_s=0.05)


def test_past_its_deadline_an_investigation_is_inconclusive_and_names_what_it_has(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        case = await room.desk.case_file(incident.id)
        assert case.finding is not None
        assert case.finding.outcome is Outcome.INCONCLUSIVE
        assert "deadline" in case.finding.statement

    in_a_room(story, tmp_path, deadline_s=0.0)


def test_a_read_that_hangs_does_not_outlive_the_deadline_of_the_investigation(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        case = await room.desk.case_file(incident.id)
        assert case.finding is not None
        assert case.finding.outcome is Outcome.INCONCLUSIVE
        assert "deadline" in case.finding.statement
        assert any(gap.question is QuestionKind.FLOW_BREAKS and "deadline" in gap.detail for gap in case.gaps)

    reader = RecordedReader(hanging=frozenset({QuestionKind.FLOW_BREAKS}), rows=bad_release())
    in_a_room(story, tmp_path, reader=reader, deadline_s=1.0, read_timeout_s=600)


def test_an_investigation_with_no_data_at_all_ends_inconclusive(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        run = await room.ended((await room.desk.investigate(Request(text="checkout is slow"))).id)
        assert run.status is RunStatus.SUCCEEDED
        case = await room.desk.case_file(run.id)
        assert case.finding is not None
        assert case.finding.outcome is Outcome.INCONCLUSIVE
        assert case.plan is not None
        assert "no service yet" in " ".join(case.plan.notes)

    in_a_room(story, tmp_path, reader=RecordedReader(broken=frozenset(QuestionKind)))


def test_settling_is_counted_from_the_first_alert_and_costs_no_live_run(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.desk.handle([alert(at=room.clock.at)])
        async with asyncio.timeout(3):
            while (run := await room.runs.get(incident.run or "")).status is not RunStatus.WAITING:
                await asyncio.sleep(0.02)
        assert room.reader.asked == []
        room.clock.forward(seconds=9)
        ended = await room.ended(run.id)
        assert ended.status is RunStatus.SUCCEEDED
        case = await room.desk.case_file(incident.id)
        assert case.cost is not None
        assert case.cost.waited_s >= 8

    in_a_room(story, tmp_path, settle_s=8.0)


@pytest.mark.parametrize(
    ("text", "services", "symptom", "since_s"),
    [
        ("checkout is slow", ("checkout",), Symptom.LATENCY, None),
        ("why does payment fail since 30m?", ("payment",), Symptom.ERRORS, 1800),
        (
            "errors in the Payment service and on checkout for the last hour",
            ("checkout", "payment"),
            Symptom.ERRORS,
            3600,
        ),
        ("POST /items is slow", ("catalogue",), Symptom.LATENCY, None),
        ("chekcout is down", ("checkout",), Symptom.SILENCE, None),
        ("payment fails for 1h30m", ("payment",), Symptom.ERRORS, 5400),
        ("errors of payment in the last two hours", ("payment",), Symptom.ERRORS, 7200),
        ("payment fails since 1.5 h", ("payment",), Symptom.ERRORS, 5400),
        ("is it slow for web and payment?", ("payment", "web"), Symptom.LATENCY, None),
        ("payment fails since 10 am", ("payment",), Symptom.ERRORS, None),
        ("everything is on fire", (), Symptom.OTHER, None),
    ],
)
def test_a_question_is_read_with_the_names_that_telemetry_knows(
    tmp_path: Path, text: str, services: tuple[str, ...], symptom: Symptom, since_s: float | None
) -> None:
    async def story(room: Room) -> None:
        run = await room.ended((await room.desk.investigate(Request(text=text))).id)
        case = await room.desk.case_file(run.id)
        assert case.plan is not None
        assert case.plan.focus == services
        assert case.plan.alerts[0].symptom is symptom
        asked_s = since_s or InvestigationSettings().window_minutes * 60
        assert case.plan.window.seconds == asked_s
        if not services:
            assert "all" in " ".join(case.plan.notes)

    in_a_room(story, tmp_path)


def test_flags_win_over_words_and_an_unknown_service_is_named_as_such(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        request = Request(text="payment is slow", services=("ghost",), since_s=600)
        run = await room.ended((await room.desk.investigate(request)).id)
        case = await room.desk.case_file(run.id)
        assert case.plan is not None
        assert case.plan.focus == ("ghost",)
        assert case.plan.window.seconds == 600
        assert "'ghost'" in " ".join(case.plan.notes)

    in_a_room(story, tmp_path)


def test_alerts_of_a_file_are_investigated_in_our_form_or_in_that_of_alertmanager(tmp_path: Path) -> None:
    ours = msgspec.json.encode({"alerts": [alert()]})
    theirs = msgspec.json.encode(
        {
            "version": "4",
            "status": "firing",
            "alerts": [
                {
                    "status": "firing",
                    "labels": {"alertname": "HighErrors", "service": "payment", "severity": "critical"},
                    "annotations": {"summary": "payment fails"},
                    "startsAt": ONSET.isoformat(),
                    "endsAt": "0001-01-01T00:00:00Z",
                    "fingerprint": "abc",
                }
            ],
        }
    )

    async def story(room: Room) -> None:
        for body in (ours, theirs):
            request = request_of_alerts(body, received_at=room.clock.at, entropy=os.urandom)
            run = await room.ended((await room.desk.investigate(request)).id)
            case = await room.desk.case_file(run.id)
            assert "payment" in case.incident.services

    in_a_room(story, tmp_path)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"alerts": [{"starts_at": 1, "fingerprint": 2}]}', b'{"a": 1}', b"7"]
)
def test_a_file_that_holds_no_alert_is_refused_with_a_hint(body: bytes) -> None:
    with pytest.raises(UsageError) as refused:
        request_of_alerts(body, received_at=NOON, entropy=os.urandom)
    assert refused.value.hint


def test_an_empty_request_is_refused(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        with pytest.raises(UsageError):
            await room.desk.investigate(Request(text="   "))

    in_a_room(story, tmp_path, executes=False)


def test_a_failed_investigation_hands_the_incident_over_with_its_reason(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.desk.handle([alert()])
        await room.runs.cancel(incident.run or "")
        await room.desk.tend()
        after = await room.desk.incident(incident.id)
        assert after.stage is Stage.ESCALATED
        case = await room.desk.case_file(incident.id)
        assert case.finding is None
        assert "without a finding" in case.state

    in_a_room(story, tmp_path, executes=False)


def test_what_died_between_two_writes_is_begun_by_tending(tmp_path: Path) -> None:
    """An incident that was opened but whose run was never started is picked up by the next process."""

    async def opened() -> str:
        async with a_room(tmp_path, executes=False) as room:

            async def no_start(*_: object, **__: object) -> Run:
                raise ConnectionError("killed here")

            room.runs.start = no_start  # type: ignore[method-assign]  # stands for a kill at this very line
            with pytest.raises(ConnectionError):
                await room.desk.handle([alert()])
            (incident,) = await room.desk.incidents()
            assert incident.stage is Stage.DETECTED
            return incident.id

    async def picked_up(identifier: str) -> None:
        async with a_room(tmp_path) as room:
            await room.desk.tend()
            incident = await room.desk.incident(identifier)
            assert (await room.ended(incident.run)).status is RunStatus.SUCCEEDED

    asyncio.run(picked_up(asyncio.run(opened())))


def test_a_person_closes_an_incident_once_and_not_while_it_is_being_applied(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        closed = await room.desk.close(incident.id[:12], by="ada", reason="rolled back")
        again = await room.desk.close(incident.id, by="bob", reason="too")
        assert closed.stage is again.stage is Stage.RESOLVED
        case = await room.desk.case_file(incident.id)
        assert any("ada" in entry.text for entry in case.timeline)
        assert not any("bob" in entry.text for entry in case.timeline)
        with pytest.raises(UsageError):
            await room.desk.close("inc_nothing", by="ada", reason="")

    in_a_room(story, tmp_path)


def test_a_recurrence_names_the_earlier_incident_and_what_differed(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (first,) = await room.handled(alert())
        await room.handled(alert(ends_at=ONSET + timedelta(seconds=30)))
        room.clock.forward(seconds=200)
        await room.desk.tend()
        room.clock.forward(seconds=3600)
        at = room.clock.at - timedelta(seconds=55)
        (second,) = await room.handled(alert("checkout", at=at, number=2))
        case = await room.desk.case_file(second.id)
        (similar,) = case.similar
        assert similar.incident == first.id
        assert any("bad_release" in text for text in similar.same)
        assert similar.differed
        assert "resolved" in similar.ending

    in_a_room(story, tmp_path)


def test_events_tell_the_life_of_an_incident_each_once(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert(), alert("checkout"))
        await room.desk.tend()
        names = [event.name for event in await room.runs.events(run=incident.id)]
        assert names[0] == "incident.opened"
        assert names.count("incident.opened") == 1
        assert names.count("alert.fired") == 2
        assert names.count("incident.stage") == 2
        in_run = [event.name for event in await room.runs.events(run=incident.run)]
        assert in_run.count("finding.made") == 1

    in_a_room(story, tmp_path)


@st.composite
def deliveries(draw: st.DrawFn) -> list[Alert]:
    """Reports of a few episodes, each at least once, in any order, some ended, some repeated."""
    reports: list[Alert] = []
    names = draw(st.lists(st.sampled_from(["payment", "checkout", "web", ""]), min_size=1, max_size=3, unique=True))
    for service in names:
        start = ONSET
        for number in range(1, draw(st.integers(1, 3)) + 1):
            end = start + timedelta(seconds=draw(st.integers(5, 40)))
            reports.append(alert(service, at=start, number=number))
            if draw(st.booleans()):
                reports.append(alert(service, at=start, ends_at=end, number=number))
                start = end + timedelta(seconds=draw(st.integers(1, 50)))
            else:
                break
    repeated = draw(st.lists(st.sampled_from(reports), max_size=4))
    return list(draw(st.permutations(reports + repeated)))


def _episodes(reports: Sequence[Alert]) -> dict[tuple[str, datetime], str]:
    known: dict[tuple[str, datetime], str] = {}
    for report in reports:
        key = (report.fingerprint, report.starts_at)
        known[key] = "resolved" if "resolved" in (report.status, known.get(key)) else "firing"
    return known


@pytest.mark.timeout(60)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reports=deliveries())
def test_no_order_and_no_repetition_of_reports_loses_or_doubles_an_alert(reports: list[Alert]) -> None:
    async def story() -> None:
        with TemporaryDirectory() as directory:
            async with a_room(Path(directory), executes=False) as room:
                for report in reports:
                    await room.desk.handle([report])
                known = await room.desk.alerts()
                incidents = await room.desk.incidents()
                homes = [identifier for incident in incidents for identifier in incident.alerts]
                assert len(homes) == len(set(homes)), "an alert belongs to one incident"
                assert set(homes) == {each.id for each in known}, "every alert that fired belongs to an incident"
                assert {(each.fingerprint, each.starts_at): each.status for each in known} == _episodes(reports)
                before = [(each.id, each.status, each.ends_at) for each in known]
                for report in reports:
                    await room.desk.handle([report])
                after = [(each.id, each.status, each.ends_at) for each in await room.desk.alerts()]
                assert after == before, "saying it all again changes nothing"

    asyncio.run(story())


def test_severity_and_title_follow_the_worst_alert(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        mild = alert("web", severity=Severity.WARNING, symptom=Symptom.LATENCY)
        (incident,) = await room.handled(mild, alert("payment"))
        assert incident.severity is Severity.CRITICAL
        assert incident.title.startswith("payment")
        assert "web" in incident.title

    in_a_room(story, tmp_path)


def test_a_finished_incident_cannot_be_investigated_again_by_its_life_cycle(tmp_path: Path) -> None:
    async def story(room: Room) -> None:
        (incident,) = await room.handled(alert())
        await room.desk.close(incident.id, by="ada", reason="over")
        with pytest.raises(RefusedError):
            room.desk._book.begin(incident.id, run="run_x", at=room.clock.at)

    in_a_room(story, tmp_path)
