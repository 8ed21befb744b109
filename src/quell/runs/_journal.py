"""Every read and write of runs, steps and events: one function, one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal

import msgspec

from quell.domain import RUN_NEXT, Clock, Event, JournalError, RefusedError, Run, RunStatus, Step, UsageError, step_to
from quell.runs._begun import Begun, Due, Hold, SupersededError
from quell.runs._clock import from_text, to_text
from quell.runs._context import Continue, Done, JsonObject, KeptStep, Next, StepRecord, WaitUntil
from quell.runs._database import Connection, Database, Durability, Row, names
from quell.runs._outbox import append_event, json_of, storable
from quell.runs._place import without_place

_ERROR_MAX = 2000
_PREFIX_MATCHES_MAX = 5


class Journal:
    """The tables of runs, and what may be done to them."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._is_postgres = database.dialect == "postgresql"

    # -- runs ---------------------------------------------------------------------------------------------------

    def add_run(
        self,
        *,
        run: str,
        kind: str,
        subject: str,
        arguments: JsonObject,
        key: str | None,
        version: str,
        hold: Hold | None = None,
    ) -> tuple[Run, bool, Begun | None]:
        """Insert a queued run, or find the one of that key; tell whether it is new, and begin a new one if it is held."""
        begun = None
        with self._writing() as connection:
            added = connection.run(
                "INSERT INTO quell_runs (id, start_key, kind, subject, arguments, status, version, created_at, updated_at)"
                " VALUES (:run, :key, :kind, :subject, :arguments, 'queued', :version, :now, :now)"
                " ON CONFLICT (start_key) DO NOTHING",
                run=run,
                key=key,
                kind=kind,
                subject=subject,
                arguments=json_of(arguments),
                version=version,
                now=to_text(self._clock()),
            )
            if added == 0:
                run = connection.one("SELECT id FROM quell_runs WHERE start_key = :key", key=key).id
            else:
                self._add_segment(connection, run=run, segment=0, state={})
                self._event(connection, run, "run.queued", "run.queued", {"kind": kind, "subject": subject})
            if added == 1 and hold is not None and self._has_slot(connection, hold):
                begun = self._begin(connection, run, dispatch=0, hold=hold)
            return _run(self._locked(connection, run)), added == 1, begun

    def get_run(self, id_prefix: str) -> Run:
        """Find one run by its id or a prefix that only it has. Raises UsageError otherwise."""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT * FROM quell_runs WHERE substr(id, 1, :length) = :prefix ORDER BY number LIMIT :most",
                prefix=id_prefix,
                length=len(id_prefix),
                most=_PREFIX_MATCHES_MAX,
            )
        found = [row for row in rows if row.id == id_prefix] or rows
        if not found or not id_prefix:
            raise _missing(id_prefix)
        if len(found) > 1:
            shown = ", ".join(row.id for row in found)
            raise UsageError(f"{id_prefix!r} fits several runs: {shown}", hint="write more of the id")
        return _run(found[0])

    def find_run(self, run: str) -> Run | None:
        """Find a run by its whole id."""
        with self._database.reading() as connection:
            row = connection.first("SELECT * FROM quell_runs WHERE id = :run", run=run)
        return None if row is None else _run(row)

    def arguments(self, run: str) -> JsonObject:
        """Return what a run was started with, by its whole id."""
        with self._database.reading() as connection:
            row = connection.one("SELECT arguments FROM quell_runs WHERE id = :run", run=run)
        return without_place(_object(row.arguments))[0]

    def list_runs(self, *, rows_max: int, kind: str | None, status: RunStatus | None) -> list[Run]:
        """Return the newest runs first, by order of insertion."""
        wanted = {name: str(value) for name, value in (("kind", kind), ("status", status)) if value is not None}
        conditions = " AND ".join(["1 = 1", *(f"{name} = :{name}" for name in wanted)])
        with self._database.reading() as connection:
            rows = connection.all(
                f"SELECT * FROM quell_runs WHERE {conditions} ORDER BY number DESC LIMIT :most", most=rows_max, **wanted
            )
        return [_run(row) for row in rows]

    def steps(self, run: str) -> list[Step]:
        """Return the steps of a run that ended, in the order in which they did."""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT * FROM quell_steps WHERE run = :run AND kind = 'step' ORDER BY number", run=run
            )
        return [
            Step(
                run=row.run,
                index=index,
                name=row.name,
                status=_step_status(row.status),
                started_at=from_text(row.started_at),
                ended_at=from_text(row.ended_at),
            )
            for index, row in enumerate(rows)
        ]

    def cancel(self, run: str) -> Run:
        """Move a run to cancelled; whoever executes it notices. A cancelled run stays as it is."""
        with self._writing() as connection:
            now = self._locked(connection, run)
            if now.status == "cancelled":
                return _run(now)
            _move(now.status, RunStatus.CANCELLED, hint="it has ended; there is nothing to cancel")
            self._update(connection, run, status="cancelled", token="", executor="", wake_at="")
            self._event(connection, run, f"run.cancelled.{now.round}", "run.cancelled", {"kind": now.kind})
            return _run(self._locked(connection, run))

    def resume(self, run: str) -> tuple[Run, int]:
        """Queue a failed or cancelled run again, under the dispatch returned beside it.

        Finished steps keep their results; what failed last is tried again.
        """
        with self._writing() as connection:
            now = self._locked(connection, run)
            _move(now.status, RunStatus.QUEUED, hint="only a failed or cancelled run can be resumed")
            connection.run(
                "DELETE FROM quell_steps WHERE run = :run AND status = 'failed' AND number >"
                " (SELECT COALESCE(MAX(number), 0) FROM quell_steps"
                " WHERE run = :run AND status = 'done' AND kind = 'step')",
                run=run,
            )
            self._update(
                connection,
                run,
                status="queued",
                error="",
                round=now.round + 1,
                dispatch=now.dispatch + 1,
                attempts_before=now.attempts,
                begun=-1,
                token="",
                executor="",
                wake_at="",
            )
            body = {"kind": now.kind, "subject": now.subject}
            self._event(connection, run, f"run.resumed.{now.round + 1}", "run.resumed", body)
            return _run(self._locked(connection, run)), now.dispatch + 1

    def wake(self, run: str) -> Due | None:
        """Let a run that waits go on at once, and one that is about to wait not wait; None when it has ended."""
        with self._writing() as connection:
            now = self._find_locked(connection, run)
            if now is None or now.status not in ("queued", "running", "waiting"):
                return None
            self._update(connection, run, wake_at=to_text(self._clock()))
            return Due(run=run, kind=now.kind, dispatch=now.dispatch)

    # -- segments -----------------------------------------------------------------------------------------------

    def begin(self, run: str, *, dispatch: int, hold: Hold) -> Begun | None:
        """Take hold of a run to execute its present segment; None when there is nothing to do for this dispatch.

        Raises SupersededError when this process has lost its slot.
        """
        with self._writing() as connection:
            if not self._has_slot(connection, hold):
                raise SupersededError
            return self._begin(connection, run, dispatch=dispatch, hold=hold)

    def _has_slot(self, connection: Connection, hold: Hold) -> bool:
        share = " FOR SHARE" if self._is_postgres else ""
        held = connection.first(f"SELECT token FROM quell_slots WHERE name = :slot{share}", slot=hold.slot)
        return held is not None and held.token == hold.token

    def _begin(self, connection: Connection, run: str, *, dispatch: int, hold: Hold) -> Begun | None:
        now = self._find_locked(connection, run)
        if now is None or now.dispatch != dispatch or now.status not in ("queued", "running", "waiting"):
            return None
        if now.token not in ("", hold.token) and self._is_live(connection, now.token):
            return None  # another process executes it
        if now.status != "running":
            _move(now.status, RunStatus.RUNNING)
        attempts = now.attempts + (1 if now.status == "queued" or now.begun == now.segment else 0)
        if attempts - now.attempts_before > hold.attempts_max:
            error = f"started or recovered {hold.attempts_max} times without ending"
            self._update(connection, run, status="failed", error=error, token="", executor="")
            body = {"kind": now.kind, "error": error}
            self._event(connection, run, f"run.failed.{now.round}", "run.failed", body)
            return None
        self._update(
            connection,
            run,
            status="running",
            executor=hold.slot,
            token=hold.token,
            attempts=attempts,
            begun=now.segment,
            wake_at="",
        )
        if now.begun == now.segment:
            self._tell_recovery(connection, now, slot=hold.slot, attempts=attempts)
        else:
            body = {"kind": now.kind, "subject": now.subject, "attempt": attempts}
            self._event(connection, run, f"run.started.{now.round}", "run.started", body)
        return self._begun(connection, run, token=hold.token)

    @staticmethod
    def _is_live(connection: Connection, token: str) -> bool:
        # Read after the run was locked: who gave it this token had its slot before.
        return connection.first("SELECT 1 AS one FROM quell_slots WHERE token = :token", token=token) is not None

    def _tell_recovery(self, connection: Connection, now: Row, *, slot: str, attempts: int) -> None:
        if now.executor in ("", slot):
            body = {"kind": now.kind, "attempt": attempts}
            self._event(connection, now.id, f"run.recovered.{attempts}", "run.recovered", body)
        else:
            body = {"kind": now.kind, "from_executor": now.executor, "to_executor": slot}
            self._event(connection, now.id, f"run.taken_over.{attempts}", "run.taken_over", body)

    def _begun(self, connection: Connection, run: str, *, token: str) -> Begun:
        row = self._locked(connection, run)
        of_segment = "FROM quell_{} WHERE run = :run AND segment = :segment"
        state = connection.one("SELECT state " + of_segment.format("segments"), run=run, segment=row.segment).state
        kept = connection.all("SELECT name, status, result " + of_segment.format("steps"), run=run, segment=row.segment)
        arguments, place = without_place(_object(row.arguments))
        return Begun(
            run=_run(row),
            arguments=json_of(arguments),
            place=place,
            state=_object(state),
            segment=row.segment,
            dispatch=row.dispatch,
            round=row.round,
            token=token,
            kept={step.name: KeptStep(status=step.status, result=step.result) for step in kept},
        )

    def end(self, begun: Begun, outcome: Next, *, hold: Hold | None = None) -> Begun | None:
        """Keep how a segment ended, and begin the next one if the run goes on at once and stays held.

        Raises SupersededError when the run is not held any more.
        """
        run, following = begun.run.id, {"segment": begun.segment + 1, "dispatch": begun.dispatch + 1}
        body: dict[str, object]
        with self._writing() as connection:
            match outcome:
                case Done(result=result):
                    self._held(connection, begun, status="succeeded", result=json_of(result), token="", executor="")
                    body = self._ending(begun) | {"outcome": str(result.get("outcome", ""))}
                    self._event(connection, run, f"run.finished.{begun.round}", "run.finished", body)
                case Continue(state=state):
                    self._held(connection, begun, token="", **following)
                    self._add_segment(connection, run=run, segment=begun.segment + 1, state=state)
                    body = {"segment": begun.segment + 1}
                    self._event(connection, run, f"run.continued.{begun.segment + 1}", "run.continued", body)
                    if hold is not None and self._has_slot(connection, hold):
                        return self._begin(connection, run, dispatch=begun.dispatch + 1, hold=hold)
                case WaitUntil(at=at, state=state):
                    # Who was woken while it still ran does not go to sleep over it.
                    woken = self._locked(connection, run).wake_at
                    until = min(woken or to_text(at), to_text(at))
                    self._held(connection, begun, status="waiting", token="", executor="", wake_at=until, **following)
                    self._add_segment(connection, run=run, segment=begun.segment + 1, state=state)
                    self._event(connection, run, f"run.waiting.{begun.segment + 1}", "run.waiting", {"until": until})
        return None

    def fail(self, begun: Begun, *, error: str) -> None:
        """End a run as failed. Raises SupersededError when the run is not held any more."""
        run, told = begun.run.id, storable(error)[:_ERROR_MAX]
        with self._writing() as connection:
            self._held(connection, begun, status="failed", error=told, token="", executor="")
            body = self._ending(begun) | {"error": told}
            self._event(connection, run, f"run.failed.{begun.round}", "run.failed", body)

    def _ending(self, begun: Begun) -> dict[str, object]:
        elapsed_s = (self._clock() - begun.run.created_at).total_seconds()
        return {"kind": begun.run.kind, "elapsed_ms": round(max(0.0, elapsed_s) * 1000)}

    def step_started(self, begun: Begun, name: str) -> None:
        """Tell that a step begins, of a run that is held: nothing follows its end. Nothing rests on it, so it costs no flush."""
        with self._writing(durability="written") as connection:
            self._held(connection, begun)
            self._tell_start(connection, begun, name)

    def _tell_start(self, connection: Connection, begun: Begun, name: str) -> None:
        key = f"step.started.{begun.segment}.{name}"
        self._event(connection, begun.run.id, key, "step.started", {"name": name})

    def step_ended(self, begun: Begun, record: StepRecord, *, error: str | None) -> None:
        """Keep the result of a step together with its event. Raises SupersededError when the run is not held."""
        run = begun.run.id
        with self._writing() as connection:
            self._held(connection, begun)
            connection.run(
                "INSERT INTO quell_steps (run, segment, name, kind, status, started_at, ended_at, result)"
                " VALUES (:run, :segment, :name, :kind, :status, :started_at, :ended_at, :result)"
                " ON CONFLICT (run, segment, name) DO NOTHING",
                run=run,
                segment=begun.segment,
                name=record.name,
                kind=record.kind,
                status=record.status,
                started_at=record.started_at,
                ended_at=record.ended_at,
                result=record.result,
            )
            if record.kind != "step":
                return
            ended = connection.one(
                "SELECT COUNT(*) AS steps FROM quell_steps WHERE run = :run AND kind = 'step'", run=run
            ).steps
            body: dict[str, object] = {"name": record.name, "index": ended - 1, "elapsed_ms": record.elapsed_ms}
            self._tell_start(connection, begun, record.name)  # of a step that ended before it was told
            if error is None:
                self._event(connection, run, f"step.finished.{begun.segment}.{record.name}", "step.finished", body)
            else:
                key = f"step.failed.{begun.round}.{begun.segment}.{record.name}"
                self._event(connection, run, key, "step.failed", body | {"error": error})

    def step_retried(self, begun: Begun, name: str, *, attempt: int, error: str) -> None:
        """Tell that an attempt failed and another follows."""
        key = f"step.retried.{begun.run.attempts}.{begun.segment}.{name}.{attempt}"
        with self._writing(durability="written") as connection:
            body = {"name": name, "attempt": attempt, "error": error}
            self._event(connection, begun.run.id, key, "step.retried", body)

    # -- what is to be done -------------------------------------------------------------------------------------

    def due(self, *, kinds: Collection[str], besides: str, ripe: Sequence[str], rows_max: int) -> list[Due]:
        """Return the runs of these kinds that should be on their way now: queued, running, or waiting and due.

        One that a live process executes is on its way; `besides` names the one token that does not count. A wait is
        over at its time, or when it is among the `ripe`: whose time has passed however the clock was set. What had
        begun comes before what is queued, then the oldest first.
        """
        of_kinds, values = names(sorted(kinds), prefix="kind")
        among, chosen = names(ripe, prefix="run")
        or_ripe = f" OR id IN {among}" if ripe else ""
        with self._database.reading() as connection:
            rows = connection.all(
                f"SELECT id, kind, dispatch, status FROM quell_runs WHERE kind IN {of_kinds} AND (status = 'queued' OR"
                " (status = 'running' AND token NOT IN (SELECT token FROM quell_slots WHERE token <> :besides))"
                f" OR (status = 'waiting' AND (wake_at <= :now{or_ripe})))"
                " ORDER BY CASE status WHEN 'queued' THEN 1 ELSE 0 END, number LIMIT :most",
                now=to_text(self._clock()),
                besides=besides,
                most=rows_max,
                **values,
                **chosen,
            )
        return [Due(run=row.id, kind=row.kind, dispatch=row.dispatch, has_begun=row.status != "queued") for row in rows]

    def held_by(self, token: str) -> list[Due]:
        """Return the runs that are being executed under a token."""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT id, kind, dispatch FROM quell_runs WHERE status = 'running' AND token = :token", token=token
            )
        return [Due(run=row.id, kind=row.kind, dispatch=row.dispatch) for row in rows]

    def redispatch(self, run: str, *, dispatch: int) -> bool:
        """Give a run a fresh workflow in place of one that ended without it; only one caller succeeds."""
        with self._writing() as connection:
            changed = connection.run(
                "UPDATE quell_runs SET dispatch = dispatch + 1, token = ''"
                " WHERE id = :run AND dispatch = :dispatch AND status IN ('queued', 'running', 'waiting')",
                run=run,
                dispatch=dispatch,
            )
        return changed == 1

    def no_longer_held(self, held: Mapping[str, str]) -> dict[str, RunStatus]:
        """Of the runs (id -> token) that a process executes, return those that it should stop."""
        among, values = names(list(held), prefix="run")
        with self._database.reading() as connection:
            rows = connection.all(f"SELECT id, status, token FROM quell_runs WHERE id IN {among}", **values)
        return {row.id: RunStatus(row.status) for row in rows if row.status != "running" or row.token != held[row.id]}

    # -- events -------------------------------------------------------------------------------------------------

    def emit(self, run: str, name: str, *, key: str, body: JsonObject) -> None:
        """Append an event, once per (run, key)."""
        with self._writing() as connection:
            self._event(connection, run, key, name, body)

    def event(self, run: str, *, key: str) -> Event:
        """Return the event of that key, which is there."""
        with self._database.reading() as connection:
            return _event(
                connection.one("SELECT * FROM quell_events WHERE run = :run AND key = :key", run=run, key=key)
            )

    def events(self, *, run: str | None, after: int, rows_max: int) -> list[Event]:
        """Return events past a sequence number, in order."""
        wanted = {} if run is None else {"run": run}
        of_run = "" if run is None else " AND run = :run"
        with self._database.reading() as connection:
            rows = connection.all(
                f"SELECT * FROM quell_events WHERE seq > :after{of_run} ORDER BY seq LIMIT :most",
                after=after,
                most=rows_max,
                **wanted,
            )
        return [_event(row) for row in rows]

    def news(self, run: str | None, *, after: int, rows_max: int) -> tuple[bool, list[Event]]:
        """Return whether a run has ended, and its events past a number; of all runs when none is named."""
        # The status first: a run that had ended then has no event after those that are read next.
        now = None if run is None else self.find_run(run)
        return now is not None and now.status.is_final, self.events(run=run, after=after, rows_max=rows_max)

    def runs_with_news(self, after: int | None) -> tuple[int, list[str]]:
        """Return the newest sequence number, and which runs have events past that one."""
        with self._database.reading() as connection:
            if after is None:
                return connection.one("SELECT COALESCE(MAX(seq), 0) AS last FROM quell_events").last, []
            rows = connection.all(
                "SELECT run, MAX(seq) AS last FROM quell_events WHERE seq > :after GROUP BY run", after=after
            )
        return max((row.last for row in rows), default=after), [row.run for row in rows]

    def last_seq(self, *, run: str | None) -> int:
        """Return the newest sequence number, 0 when there is none."""
        wanted = {} if run is None else {"run": run}
        of_run = "" if run is None else " WHERE run = :run"
        with self._database.reading() as connection:
            row = connection.one(f"SELECT COALESCE(MAX(seq), 0) AS last FROM quell_events{of_run}", **wanted)
        return int(row.last)

    # -- retention ----------------------------------------------------------------------------------------------

    def ended_before(self, at: datetime, *, rows_max: int) -> list[tuple[str, int]]:
        """Return finished runs (id, number of dispatches) that nothing has touched since that time."""
        with self._database.reading() as connection:
            rows = connection.all(
                "SELECT id, dispatch FROM quell_runs WHERE status IN ('succeeded', 'failed', 'cancelled')"
                " AND updated_at < :at ORDER BY number LIMIT :most",
                at=to_text(at),
                most=rows_max,
            )
        return [(row.id, row.dispatch) for row in rows]

    def forget(self, runs: Sequence[str]) -> int:
        """Delete runs with all that belongs to them, if they have still ended."""
        among, values = names(runs, prefix="run")
        with self._writing() as connection:
            gone = connection.all(
                f"DELETE FROM quell_runs WHERE id IN {among} AND status IN ('succeeded', 'failed', 'cancelled')"
                " RETURNING id",
                **values,
            )
            if gone:
                among, values = names([row.id for row in gone], prefix="run")
                connection.run(f"DELETE FROM quell_events WHERE run IN {among}", **values)
        return len(gone)

    # -- inside a transaction -----------------------------------------------------------------------------------

    def _writing(self, *, durability: Durability = "flushed") -> AbstractContextManager[Connection]:
        return self._database.writing(durability=durability)

    def _find_locked(self, connection: Connection, run: str) -> Row | None:
        return connection.first(f"SELECT * FROM quell_runs WHERE id = :run{self._database.for_update}", run=run)

    def _locked(self, connection: Connection, run: str) -> Row:
        row = self._find_locked(connection, run)
        if row is None:
            raise _missing(run)
        return row

    def _update(self, connection: Connection, run: str, **columns: str | int) -> None:
        sets = ", ".join(f"{name} = :{name}" for name in columns)
        connection.run(
            f"UPDATE quell_runs SET {sets}, updated_at = :now WHERE id = :run",
            run=run,
            now=to_text(self._clock()),
            **columns,
        )

    def _held(self, connection: Connection, begun: Begun, **columns: str | int) -> None:
        """Change a run only while this process holds it: the fence of every write."""
        sets = "".join(f", {name} = :{name}" for name in columns)
        changed = connection.run(
            f"UPDATE quell_runs SET updated_at = :now{sets} WHERE id = :run AND dispatch = :held_dispatch"
            " AND token = :held_token AND status = 'running'",
            run=begun.run.id,
            held_dispatch=begun.dispatch,
            held_token=begun.token,
            now=to_text(self._clock()),
            **columns,
        )
        if changed != 1:
            raise SupersededError

    @staticmethod
    def _add_segment(connection: Connection, *, run: str, segment: int, state: JsonObject) -> None:
        connection.run(
            "INSERT INTO quell_segments (run, segment, state) VALUES (:run, :segment, :state)",
            run=run,
            segment=segment,
            state=json_of(state),
        )

    def _event(self, connection: Connection, run: str, key: str, name: str, body: JsonObject) -> None:
        append_event(
            connection, is_postgres=self._is_postgres, at=self._clock(), run=run, key=key, name=name, body=body
        )


def _missing(run: str) -> UsageError:
    return UsageError(f"there is no run {run!r}", hint="quell run list shows the runs there are")


def _move(now: str, then: RunStatus, *, hint: str = "") -> None:
    """Check a change of status against the table of the domain."""
    try:
        step_to(RUN_NEXT, RunStatus(now), then)
    except RefusedError as error:
        raise RefusedError(f"a run that is {now} cannot become {then}", hint=hint or error.hint) from None


def _object(raw: str) -> JsonObject:
    return msgspec.json.decode(raw, type=dict[str, object])


def _step_status(text: str) -> Literal["done", "failed"]:
    return "done" if text == "done" else "failed"


def _run(row: Row) -> Run:
    try:
        return Run(
            id=row.id,
            kind=row.kind,
            status=RunStatus(row.status),
            subject=row.subject,
            version=row.version,
            created_at=from_text(row.created_at),
            updated_at=from_text(row.updated_at),
            attempts=row.attempts,
            executor=row.executor,
            error=row.error,
            result=row.result,
        )
    except ValueError as error:
        raise JournalError(
            f"the journal holds a run that cannot be read: {error}",
            hint="it was written by another version, or damaged",
        ) from error


def _event(row: Row) -> Event:
    return Event(seq=row.seq, run=row.run, key=row.key, name=row.name, at=from_text(row.at), body=row.body)
