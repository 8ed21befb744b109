"""The book of incidents: every write is one transaction, and says what it did in the log of the incident."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import Connection, Engine, Select, and_, select, update

from quell.domain import Alert, Incident, Outcome, Stage, TimelineEntry, UsageError
from quell.incidents._grouping import CallGraph, as_ended, still_firing
from quell.incidents._model import CaseFile
from quell.incidents._rows import (
    Admission,
    Page,
    Told,
    Value,
    alerts_of,
    finding_note,
    insert_alert,
    moved_to,
    note,
    open_incident,
    page,
    page_of,
    reading,
    save,
    tell,
    writing,
)
from quell.incidents._tables import alerts, calls, cases, create_tables, incidents, stamp, timeline

_SHOWN_MAX = 500
_NAME_MAX = 300


class Book:
    """Alerts, incidents, their logs and case files."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        create_tables(engine)

    # -- alerts ------------------------------------------------------------------------------------------------------

    def admit(
        self,
        arriving: Sequence[Alert],
        *,
        graph: CallGraph,
        group_window_s: float,
        at: datetime,
        new_id: Callable[[], str],
    ) -> list[str]:
        """Write alerts down once each, in the incidents that they belong to. Return those incidents, oldest first."""
        touched: dict[str, None] = {}
        with writing(self._engine) as connection:
            admission = Admission(connection, graph=graph, group_window_s=group_window_s, at=at, new_id=new_id)
            for alert in arriving:
                if place := admission.admit(alert):
                    touched[place] = None
        return list(touched)

    def open_question(self, asked: Sequence[Alert], *, incident: str, question: str, at: datetime) -> None:
        """Open an incident for a person's question; `asked` is one alert per service named, or one for all."""
        with writing(self._engine) as connection:
            for alert in asked:
                insert_alert(connection, alert, incident=incident)
            open_incident(connection, incident, asked, request=question, title=question, at=at)

    # -- life cycle --------------------------------------------------------------------------------------------------

    def begin(self, incident: str, *, run: str, at: datetime) -> None:
        """Note that a run investigates an incident; the same run twice changes nothing."""
        with writing(self._engine) as connection:
            held = page(connection, incident)
            if held.incident.run == run:
                return
            moved = moved_to(connection, held.incident, Stage.INVESTIGATING, reason="an investigation began", at=at)
            save(connection, replace(moved, run=run), rounds=held.rounds + 1)
            tell(
                connection,
                incident,
                note(
                    f"investigating:{run}",
                    at,
                    "incident.investigating",
                    "run",
                    "Investigation began",
                    incident=incident,
                    investigation=run,
                ),
            )

    def conclude(self, case: CaseFile, *, at: datetime) -> None:
        """Keep a case file and hand the incident over; the same run twice changes nothing."""
        assert case.run is not None, "a case file belongs to a run"
        assert case.finding is not None, "a case file is kept when its investigation ended"
        finding = case.finding
        with writing(self._engine) as connection:
            if connection.execute(select(cases.c.run).where(cases.c.run == case.run)).first():
                return
            held = page(connection, case.incident.id)
            body = msgspec.json.encode(case).decode()
            connection.execute(
                cases.insert().values(
                    run=case.run, incident=held.incident.id, made_at=stamp(at), outcome=finding.outcome.value, body=body
                )
            )
            moved = _handed_over(connection, held, finding.outcome, at=at)
            found = finding.outcome is Outcome.CAUSE_FOUND
            category = finding.category if found else held.incident.category
            subject = finding.subject if found else held.incident.subject
            services = held.incident.services or (case.plan.focus if case.plan else ())
            save(connection, replace(moved, category=category, subject=subject, services=services))
            tell(connection, held.incident.id, finding_note(case, at))

    def give_up(self, incident: str, *, run: str, reason: str, at: datetime) -> None:
        """Hand an incident over whose investigation ended without a finding."""
        with writing(self._engine) as connection:
            held = page(connection, incident)
            if held.incident.stage is not Stage.INVESTIGATING or held.incident.run != run:
                return
            save(connection, moved_to(connection, held.incident, Stage.ESCALATED, reason=reason, at=at))
            tell(
                connection,
                incident,
                note(f"gave-up:{run}", at, "incident.escalated", "run", reason, incident=incident, reason=reason),
            )

    def close(self, incident: str, *, by: str, reason: str, at: datetime) -> None:
        """End an incident. Raises RefusedError while its life cycle forbids it."""
        with writing(self._engine) as connection:
            held = page(connection, incident)
            if held.incident.stage is Stage.RESOLVED:
                return
            closed = moved_to(connection, held.incident, Stage.RESOLVED, reason=reason, at=at)
            save(connection, replace(closed, closed_at=at))
            text = f"Closed by {by}: {reason}"
            tell(
                connection,
                incident,
                note("closed", at, "incident.closed", "stage", text, incident=incident, by=by, reason=reason),
            )

    def close_quiet(self, *, quiet_s: float, at: datetime) -> list[str]:
        """End every incident whose investigation is over and whose alerts have all been quiet for `quiet_s`."""
        before = stamp(at - timedelta(seconds=quiet_s))
        query = select(incidents.c.id).where(
            incidents.c.stage == Stage.ESCALATED.value, incidents.c.quiet_since <= before, incidents.c.request == ""
        )
        with reading(self._engine) as connection:
            candidates = connection.scalars(query).all()
            due = [incident for incident in candidates if not still_firing(alerts_of(connection, incident))]
        for incident in due:
            self.close(incident, by="quell", reason=f"every alert ended and stayed quiet for {quiet_s:.0f} s", at=at)
        return due

    # -- the call graph ----------------------------------------------------------------------------------------------

    def learn_calls(self, edges: Iterable[tuple[str, str]], *, at: datetime) -> None:
        """Remember who calls whom."""
        with writing(self._engine) as connection:
            known = {(row.caller, row.callee) for row in connection.execute(select(calls.c.caller, calls.c.callee))}
            fresh = sorted(edge for edge in set(edges) - known if all(map(_is_storable, edge)))
            if fresh:
                connection.execute(calls.insert(), [{"caller": a, "callee": b, "seen_at": stamp(at)} for a, b in fresh])

    def graph(self) -> CallGraph:
        """Return who calls whom, as far as it was learned."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(calls.c.caller, calls.c.callee))
            return CallGraph(edges=frozenset((row.caller, row.callee) for row in rows))

    # -- reading -----------------------------------------------------------------------------------------------------

    def find_page(self, prefix: str) -> Page | None:
        """Find one incident by its id or a unique beginning of it. Raises UsageError when several begin so."""
        with reading(self._engine) as connection:
            query = select(incidents).where(incidents.c.id.startswith(prefix, autoescape=True)).limit(2)
            rows = connection.execute(query).all()
        if len(rows) > 1:
            raise UsageError(f"several incidents begin with {prefix!r}", hint="write more of the id")
        return page_of(rows[0]) if rows else None

    def get_page(self, incident: str) -> Page:
        """Return one incident that must exist."""
        with reading(self._engine) as connection:
            return page(connection, incident)

    def pages(self, *, limit: int, stages: Sequence[Stage] = ()) -> list[Page]:
        """List incidents, newest first."""
        query = select(incidents).order_by(incidents.c.opened_at.desc(), incidents.c.id.desc()).limit(limit)
        if stages:
            query = query.where(incidents.c.stage.in_([stage.value for stage in stages]))
        with reading(self._engine) as connection:
            return [page_of(row) for row in connection.execute(query)]

    def alerts_of(self, incident: str) -> tuple[Alert, ...]:
        """Return the alerts of an incident, oldest first."""
        with reading(self._engine) as connection:
            return alerts_of(connection, incident)

    def alerts(self, *, limit: int) -> list[Alert]:
        """List alerts, newest first."""
        query = select(alerts.c.body).order_by(alerts.c.starts_at.desc(), alerts.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [msgspec.json.decode(body, type=Alert) for body in connection.scalars(query)]

    def firing(self) -> list[Alert]:
        """Return the alerts of open incidents that still fire, oldest first."""
        query = select(alerts.c.body).join(incidents, incidents.c.id == alerts.c.incident)
        query = query.where(incidents.c.stage != Stage.RESOLVED.value).order_by(alerts.c.starts_at, alerts.c.id)
        with reading(self._engine) as connection:
            found = [msgspec.json.decode(body, type=Alert) for body in connection.scalars(query)]
        return still_firing(found)

    def timeline_of(self, incident: str) -> tuple[TimelineEntry, ...]:
        """Return the log of an incident as moments for people, oldest first."""
        query = (
            select(timeline.c.body).where(timeline.c.incident == incident).order_by(timeline.c.number).limit(_SHOWN_MAX)
        )
        with reading(self._engine) as connection:
            told = [msgspec.json.decode(body, type=Told) for body in connection.scalars(query)]
        return tuple(line.entry for line in told if line.entry)

    def case_of(self, incident: str) -> CaseFile | None:
        """Return the newest case file of an incident."""
        query = select(cases.c.body).where(cases.c.incident == incident).order_by(cases.c.made_at.desc()).limit(1)
        return self._one_case(query)

    def case_of_run(self, run: str) -> CaseFile | None:
        """Return the case file that a run made."""
        return self._one_case(select(cases.c.body).where(cases.c.run == run))

    def earlier_cases(self, *, before: datetime, incident: str, limit: int = 200) -> list[CaseFile]:
        """Return the newest case file of each earlier incident, newest incident first."""
        query = (
            select(cases.c.incident, cases.c.body)
            .where(cases.c.made_at < stamp(before), cases.c.incident != incident)
            .order_by(cases.c.made_at.desc(), cases.c.run)
            .limit(limit)
        )
        newest: dict[str, CaseFile] = {}
        with reading(self._engine) as connection:
            for row in connection.execute(query).all():
                if row.incident not in newest:
                    case = msgspec.json.decode(row.body, type=CaseFile)
                    newest[row.incident] = replace(case, incident=page(connection, row.incident).incident)
        return list(newest.values())

    def trouble_before(self, at: datetime, *, incident: str, limit: int = 50) -> list[tuple[Alert, ...]]:
        """Return the alerts of each other incident opened before `at`, newest first, unless it was found to be healthy.

        Alerts whose end was never reported end with what ended them: their next episode, or the closing of the incident.
        """
        was_well = select(cases.c.run).where(
            cases.c.incident == incidents.c.id, cases.c.outcome == Outcome.HEALTHY.value
        )
        query = (
            select(incidents)
            .where(incidents.c.id != incident, incidents.c.opened_at < stamp(at), ~was_well.exists())
            .order_by(incidents.c.opened_at.desc(), incidents.c.id)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            others = [page_of(row).incident for row in connection.execute(query).all()]
            return [as_ended(alerts_of(connection, other.id), closed_at=other.closed_at) for other in others]

    # -- telling -----------------------------------------------------------------------------------------------------

    def untold(self) -> list[tuple[str, Told]]:
        """Return the log lines whose event was not emitted yet, oldest first."""
        query = (
            select(timeline.c.incident, timeline.c.body)
            .where(timeline.c.told == 0)
            .order_by(timeline.c.number)
            .limit(_SHOWN_MAX)
        )
        with reading(self._engine) as connection:
            return [(row.incident, msgspec.json.decode(row.body, type=Told)) for row in connection.execute(query)]

    def mark_told(self, lines: Sequence[tuple[str, Told]]) -> None:
        """Note that the events of these lines are out."""
        with writing(self._engine) as connection:
            for incident, line in lines:
                match = and_(timeline.c.incident == incident, timeline.c.key == line.key)
                connection.execute(update(timeline).where(match).values(told=1))

    def _one_case(self, query: Select[*tuple[str]]) -> CaseFile | None:
        with reading(self._engine) as connection:
            row = connection.execute(query).first()
        return msgspec.json.decode(row[0], type=CaseFile) if row else None


def _is_storable(name: str) -> bool:
    """Whether a name out of telemetry may be a key: PostgreSQL takes no NUL, and no key of any length."""
    return "\x00" not in name and len(name) <= _NAME_MAX


def _handed_over(connection: Connection, held: Page, outcome: Outcome, *, at: datetime) -> Incident:
    """Take an incident to where its finding leaves it: over, when a question has the answer that all is well."""
    if held.incident.stage is Stage.RESOLVED:
        return held.incident
    incident, run = held.incident.id, held.incident.run
    if held.request and outcome is Outcome.HEALTHY:
        reason = "asked and answered: nothing is wrong"
        closed = moved_to(connection, held.incident, Stage.RESOLVED, reason=reason, at=at)
        body: dict[str, Value] = {"incident": incident, "by": "quell", "reason": reason}
        tell(connection, incident, Told(key="closed", at=at, event="incident.closed", body=body))
        return replace(closed, closed_at=at)
    reason = "handed to a person with the case file"
    body = {"incident": incident, "reason": f"{outcome.value}: {reason}"}
    tell(connection, incident, Told(key=f"escalated:{run}", at=at, event="incident.escalated", body=body))
    return moved_to(connection, held.incident, Stage.ESCALATED, reason=reason, at=at)
