"""Rows of the book: written inside one transaction that its caller holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import Connection, Engine, Row, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from quell.domain import (
    INCIDENT_NEXT,
    Alert,
    Incident,
    JournalError,
    Severity,
    Stage,
    TimelineEntry,
    UsageError,
    step_to,
)
from quell.incidents._grouping import CallGraph, Gathering, find_episode, find_place, merged, summary_of
from quell.incidents._model import CaseFile
from quell.incidents._tables import alerts, incidents, lock_writers, stamp, timeline, unstamp

Value = str | int | float | None | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One line of an incident's log: an event, and the moment that it is for people."""

    key: str
    """Unique within the incident; writing it again changes nothing."""
    at: datetime
    event: str
    body: dict[str, Value]
    entry: TimelineEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One incident as the book has it."""

    incident: Incident
    rounds: int
    """Investigations begun so far."""
    request: str
    """The question that opened it; empty when alerts did."""
    quiet_since: datetime
    """Newest moment at which one of its alerts began or ended."""


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only one writer at a time holds. Raises JournalError when the database fails."""
    try:
        with engine.begin() as connection:
            lock_writers(connection)
            yield connection
    except SQLAlchemyError as error:
        raise JournalError(
            f"the journal refused to write: {type(error).__name__}", hint="see `quell doctor`; nothing was half-written"
        ) from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a connection for queries. Raises JournalError when the database fails."""
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise JournalError(
            f"the journal cannot be read: {type(error).__name__}", hint="see `quell doctor`; nothing is lost by it"
        ) from error


def page_of(row: Row[tuple[object, ...]]) -> Page:
    """Read one row of the incidents table."""
    return Page(
        incident=msgspec.json.decode(row.body, type=Incident),
        rounds=row.rounds,
        request=row.request,
        quiet_since=unstamp(row.quiet_since),
    )


def page(connection: Connection, incident: str) -> Page:
    """Read one incident that must exist."""
    row = connection.execute(select(incidents).where(incidents.c.id == incident)).first()
    if row is None:
        raise UsageError(f"there is no incident {incident!r}", hint="quell incident list")
    return page_of(row)


def alerts_of(connection: Connection, incident: str) -> tuple[Alert, ...]:
    """Read the alerts of an incident, oldest first."""
    query = select(alerts.c.body).where(alerts.c.incident == incident).order_by(alerts.c.starts_at, alerts.c.id)
    return tuple(msgspec.json.decode(body, type=Alert) for body in connection.scalars(query))


def save(
    connection: Connection, incident: Incident, *, rounds: int | None = None, quiet_since: datetime | None = None
) -> None:
    """Write an incident back."""
    values: dict[str, object] = {"stage": incident.stage.value, "body": msgspec.json.encode(incident).decode()}
    if rounds is not None:
        values["rounds"] = rounds
    if quiet_since is not None:
        values["quiet_since"] = stamp(quiet_since)
    connection.execute(update(incidents).where(incidents.c.id == incident.id).values(**values))


def tell(connection: Connection, incident: str, line: Told) -> None:
    """Write a log line once."""
    known = select(timeline.c.key).where(timeline.c.incident == incident, timeline.c.key == line.key)
    if connection.execute(known).first() is None:
        body = msgspec.json.encode(line).decode()
        last = connection.scalar(select(func.max(timeline.c.number))) or 0
        connection.execute(
            timeline.insert().values(
                incident=incident, key=line.key, at=stamp(line.at), body=body, number=last + 1, told=0
            )
        )


def note(
    key: str,
    at: datetime,
    event: str,
    kind: Literal["alert", "stage", "run", "note", "finding"],
    text: str,
    **body: Value,
) -> Told:
    """Make a log line that people see."""
    return Told(key=key, at=at, event=event, body=dict(body), entry=TimelineEntry(at=at, kind=kind, text=text))


def finding_note(case: CaseFile, at: datetime) -> Told:
    """Make the log line of a finding."""
    finding = case.finding
    assert finding is not None, "only a case with a finding is noted"
    return note(
        f"finding:{case.run}",
        at,
        "finding.made",
        "finding",
        f"Finding, confidence {finding.confidence}: {finding.statement}",
        incident=case.incident.id,
        outcome=finding.outcome.value,
        category=finding.category.value if finding.category else None,
        subject=f"{finding.subject.kind} {finding.subject.name}" if finding.subject else None,
        confidence=finding.confidence.value,
        statement=finding.statement,
    )


def moved_to(connection: Connection, incident: Incident, stage: Stage, *, reason: str, at: datetime) -> Incident:
    """Take an incident to another stage and log it. Raises RefusedError when its life cycle forbids it."""
    if incident.stage is stage:
        return replace(incident, updated_at=at)
    before = incident.stage
    step_to(INCIDENT_NEXT, before, stage)
    line = Told(
        key=f"stage:{stamp(at)}:{stage}",
        at=at,
        event="incident.stage",
        body={"incident": incident.id, "before": before.value, "after": stage.value, "reason": reason},
        entry=TimelineEntry(at=at, kind="stage", text=f"{before} -> {stage}: {reason}"),
    )
    tell(connection, incident.id, line)
    return replace(incident, stage=stage, updated_at=at)


def insert_alert(connection: Connection, alert: Alert, *, incident: str | None) -> None:
    """Write a new episode down."""
    connection.execute(
        alerts.insert().values(
            id=alert.id,
            fingerprint=alert.fingerprint,
            starts_at=stamp(alert.starts_at),
            status=alert.status,
            incident=incident,
            body=msgspec.json.encode(alert).decode(),
        )
    )


def open_incident(
    connection: Connection, identifier: str, members: Sequence[Alert], *, request: str, title: str, at: datetime
) -> Incident:
    """Open an incident for its first alerts, and log it."""
    blank = Incident(
        id=identifier,
        stage=Stage.DETECTED,
        severity=Severity.INFO,
        title=title,
        services=(),
        alerts=(),
        opened_at=at,
        updated_at=at,
        closed_at=None,
        run=None,
        category=None,
        subject=None,
    )
    incident = summary_of(blank, members)
    if title:
        incident = replace(incident, title=title)
    connection.execute(
        incidents.insert().values(
            id=incident.id,
            stage=incident.stage.value,
            opened_at=stamp(at),
            quiet_since=stamp(at),
            rounds=0,
            request=request,
            body=msgspec.json.encode(incident).decode(),
        )
    )
    body: dict[str, Value] = {
        "incident": incident.id,
        "title": incident.title,
        "services": list(incident.services),
        "severity": incident.severity.value,
    }
    text = f"Incident opened: {incident.title}"
    entry = TimelineEntry(at=at, kind="stage", text=text)
    tell(connection, identifier, Told(key="opened", at=at, event="incident.opened", body=body, entry=entry))
    return incident


def _said_by(alert: Alert) -> str:
    """Return what an alert says, with its service named once."""
    said = alert.summary or alert.name
    return said if not alert.service or alert.service in said else f"{alert.service}: {said}"


class Admission:
    """Admits alerts one by one within one transaction."""

    def __init__(
        self,
        connection: Connection,
        *,
        graph: CallGraph,
        group_window_s: float,
        at: datetime,
        new_id: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._graph = graph
        self._group_window_s = group_window_s
        self._at = at
        self._new_id = new_id
        self._open: dict[str, Gathering] | None = None
        """Open incidents, read once: nobody else writes during this transaction."""

    def admit(self, alert: Alert) -> str | None:
        """Write one report down; return the incident it belongs to, None while it belongs to none."""
        query = select(alerts.c.body, alerts.c.incident).where(alerts.c.fingerprint == alert.fingerprint)
        rows = self._connection.execute(query).all()
        known = {
            decoded.id: (decoded, row.incident)
            for row in rows
            for decoded in [msgspec.json.decode(row.body, type=Alert)]
        }
        episode = find_episode(alert, [each for each, _ in known.values()])
        if episode is None:
            if alert.status == "resolved":
                # The end arrived before the beginning: remember it, and let the beginning open the incident.
                insert_alert(self._connection, alert, incident=None)
                return None
            return self._place(alert, is_known=False)
        incident = known[episode.id][1]
        if incident is None:
            return self._place(episode, is_known=True) if alert.status == "firing" else None
        return self._update(episode, alert, incident=incident)

    def _place(self, alert: Alert, *, is_known: bool) -> str:
        """Let an alert join an open incident, or open one for it."""
        place = find_place(
            alert, list(self._gatherings().values()), graph=self._graph, group_window_s=self._group_window_s
        )
        identifier = place or self._new_id()
        if is_known:
            self._connection.execute(update(alerts).where(alerts.c.id == alert.id).values(incident=identifier))
        else:
            insert_alert(self._connection, alert, incident=identifier)
        if place is None:
            open_incident(self._connection, identifier, [alert], request="", title="", at=self._at)
        self._fired(alert, incident=identifier, joined=place is not None)
        return identifier

    def _fired(self, alert: Alert, *, incident: str, joined: bool) -> None:
        body: dict[str, Value] = {
            "incident": incident,
            "alert": alert.id,
            "fingerprint": alert.fingerprint,
            "source": alert.source,
            "service": alert.service,
            "symptom": alert.symptom.value,
            "severity": alert.severity.value,
            "summary": alert.summary,
        }
        entry = TimelineEntry(at=alert.starts_at, kind="alert", text=f"Alert: {_said_by(alert)}")
        tell(
            self._connection,
            incident,
            Told(key=f"fired:{alert.id}", at=self._at, event="alert.fired", body=body, entry=entry),
        )
        if joined:
            tell(
                self._connection,
                incident,
                Told(key=f"joined:{alert.id}", at=self._at, event="incident.joined", body=body),
            )
        if alert.status == "resolved":
            self._ended(alert, incident=incident)
        self._refresh(incident, because=f"{alert.id}:{alert.status}")

    def _update(self, episode: Alert, report: Alert, *, incident: str) -> str:
        """Take one more report of a known episode in."""
        after = merged(episode, report)
        if after == episode:
            return incident
        self._connection.execute(
            update(alerts)
            .where(alerts.c.id == episode.id)
            .values(status=after.status, starts_at=stamp(after.starts_at), body=msgspec.json.encode(after).decode())
        )
        if after.status == "resolved":
            self._ended(after, incident=incident)
        self._refresh(incident, because=f"{after.id}:{after.status}")
        return incident

    def _ended(self, alert: Alert, *, incident: str) -> None:
        at = alert.ends_at or self._at
        body: dict[str, Value] = {
            "incident": incident,
            "alert": alert.id,
            "fingerprint": alert.fingerprint,
            "service": alert.service,
            "symptom": alert.symptom.value,
        }
        text = f"Alert ended: {alert.service or 'all services'}: {alert.symptom}"
        entry = TimelineEntry(at=at, kind="alert", text=text)
        line = Told(key=f"ended:{alert.id}", at=self._at, event="alert.resolved", body=body, entry=entry)
        tell(self._connection, incident, line)

    def _refresh(self, incident: str, *, because: str) -> None:
        """Let title, severity, services and the quiet time of an incident follow its alerts; `because` of one's report."""
        before = page(self._connection, incident)
        members = alerts_of(self._connection, incident)
        after = summary_of(before.incident, members)
        if before.request:
            after = replace(after, title=before.incident.title)
        elif after.stage is not Stage.RESOLVED:
            self._gatherings()[incident] = Gathering(incident=after, alerts=members)
        save(self._connection, replace(after, updated_at=self._at), quiet_since=self._at)
        kept = (before.incident.title, before.incident.severity, before.incident.services)
        if kept != (after.title, after.severity, after.services):
            body: dict[str, Value] = {
                "incident": incident,
                "title": after.title,
                "severity": after.severity.value,
                "services": list(after.services),
            }
            line = Told(key=f"updated:{stamp(self._at)}:{because}", at=self._at, event="incident.updated", body=body)
            tell(self._connection, incident, line)

    def _gatherings(self) -> dict[str, Gathering]:
        if self._open is not None:
            return self._open
        query = select(incidents).where(incidents.c.stage != Stage.RESOLVED.value, incidents.c.request == "")
        pages = [page_of(row) for row in self._connection.execute(query)]
        self._open = {
            p.incident.id: Gathering(incident=p.incident, alerts=alerts_of(self._connection, p.incident.id))
            for p in pages
        }
        return self._open
