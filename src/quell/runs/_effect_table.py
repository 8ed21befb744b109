"""The table of effects: every statement that reads or writes it, inside a transaction of the caller."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime

import msgspec

from quell.domain import (
    EFFECT_NEXT,
    Effect,
    EffectFacts,
    EffectState,
    Fence,
    FrozenCall,
    Intent,
    JournalError,
    Recovery,
    RefusedError,
    Resource,
    step_to,
)
from quell.runs._begun import SupersededError
from quell.runs._clock import from_text, to_text
from quell.runs._database import Connection, Database, Row, Value
from quell.runs._effect import DETAIL_MAX, RESULT_KEPT_MAX_BYTES, key_of
from quell.runs._outbox import append_event, storable

EFFECT_TABLES: tuple[str, ...] = (
    """CREATE TABLE IF NOT EXISTS quell_effects (
        number {number},
        key TEXT NOT NULL UNIQUE,
        run TEXT NOT NULL,
        call_id TEXT NOT NULL,
        tool TEXT NOT NULL,
        pin TEXT NOT NULL,
        arguments TEXT NOT NULL,
        digest TEXT NOT NULL,
        resource TEXT NOT NULL,
        units BIGINT NOT NULL,
        host TEXT NOT NULL,
        recovery TEXT NOT NULL,
        workflow_digest TEXT NOT NULL,
        principal TEXT NOT NULL,
        tenant TEXT NOT NULL,
        revert TEXT NOT NULL,
        approval TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        detail TEXT NOT NULL DEFAULT '',
        fence TEXT NOT NULL,
        attempts BIGINT NOT NULL DEFAULT 0,
        in_doubt BIGINT NOT NULL DEFAULT 0,
        intended_at TEXT NOT NULL,
        started_at TEXT NOT NULL DEFAULT '',
        sent_at TEXT NOT NULL DEFAULT '',
        ended_at TEXT NOT NULL DEFAULT '',
        result TEXT NOT NULL DEFAULT '',
        result_digest TEXT NOT NULL DEFAULT '',
        result_bytes BIGINT NOT NULL DEFAULT 0,
        settled_by TEXT NOT NULL DEFAULT '',
        UNIQUE (run, call_id)
    )""",
    "CREATE INDEX IF NOT EXISTS quell_effects_past ON quell_effects (workflow_digest, intended_at)",
    """CREATE INDEX IF NOT EXISTS quell_effects_open ON quell_effects (workflow_digest, state)
        WHERE state IN ('intent', 'started')""",
    "CREATE INDEX IF NOT EXISTS quell_effects_sent ON quell_effects (workflow_digest, sent_at)",
    "CREATE INDEX IF NOT EXISTS quell_effects_by_state ON quell_effects (state, ended_at)",
)
# No reference to quell_runs: the account of effects outlives the runs.

_SEEN = "units, resource, state, reason"
_FACTS = f"""
    SELECT COUNT(*) AS calls,
        COUNT(DISTINCT CASE WHEN state <> 'failed' THEN resource END) AS resources,
        COALESCE(MAX(CASE WHEN state <> 'failed' AND resource = :resource THEN 1 ELSE 0 END), 0) AS has_mine,
        COALESCE(SUM(CASE WHEN state <> 'failed' THEN units ELSE 0 END), 0) AS units,
        COALESCE(SUM(CASE WHEN state IN ('failed', 'unknown') THEN 1 ELSE 0 END), 0) AS failures,
        COALESCE(SUM(CASE WHEN state IN ('intent', 'started') THEN 1 ELSE 0 END), 0) AS in_flight
    FROM (
        SELECT {_SEEN}, run, call_id FROM quell_effects
            WHERE workflow_digest = :workflow AND tenant = :tenant AND intended_at >= :since AND state NOT IN ('intent', 'started')
        UNION ALL
        SELECT {_SEEN}, run, call_id FROM quell_effects
            WHERE workflow_digest = :workflow AND tenant = :tenant AND state IN ('intent', 'started')
        UNION ALL
        SELECT {_SEEN}, run, call_id FROM quell_effects
            WHERE workflow_digest = :workflow AND tenant = :tenant AND sent_at >= :since AND intended_at < :since
            AND state NOT IN ('intent', 'started')
    ) AS seen
    WHERE NOT (state = 'failed' AND reason IN ('refused', 'abandoned')) AND NOT (run = :run AND call_id = :call)"""
# What was intended before the window and sent in it, as after a crash, happened in it.
# What we refused ourselves, and what never left before its run ended, is no call; an unknown one is, whatever the reason.


def hold(connection: Connection, fence: Fence, *, is_postgres: bool) -> None:
    """Make sure that the run is held under this fence, and stays so until the transaction ends.

    Raises SupersededError otherwise.
    """
    held = connection.first(
        "SELECT 1 AS held FROM quell_runs WHERE id = :run AND dispatch = :dispatch AND token = :token"
        f" AND status = 'running'{' FOR SHARE' if is_postgres else ''}",
        run=fence.run,
        dispatch=fence.dispatch,
        token=fence.token,
    )
    if held is None:
        raise SupersededError


def insert(connection: Connection, intent: Intent, *, fence: Fence, at: datetime) -> Effect | None:
    """Write a new entry; None when the call has one already."""
    call = intent.call
    key = key_of(call)
    added = connection.run(
        "INSERT INTO quell_effects (key, run, call_id, tool, pin, arguments, digest, resource, units, host, recovery,"
        " workflow_digest, principal, tenant, revert, approval, state, fence, intended_at) VALUES (:key, :run, :call,"
        " :tool, :pin, :arguments, :digest, :resource, :units, :host, :recovery, :workflow, :principal, :tenant,"
        " :revert, :approval, 'intent', :fence, :now) ON CONFLICT (run, call_id) DO NOTHING",
        key=key,
        run=call.run,
        call=call.id,
        tool=call.tool,
        pin=call.pin,
        arguments=call.arguments,
        digest=call.digest,
        resource=_resource_text(call.resource),
        units=call.resource.units,
        host=call.resource.host,
        recovery=intent.recovery,
        workflow=intent.workflow_digest,
        principal=intent.user,
        tenant=intent.tenant,
        revert=intent.revert,
        approval=intent.approval,
        fence=fence.text,
        now=to_text(at),
    )
    return _new(intent, key=key, fence=fence, at=at) if added == 1 else None


def find(connection: Connection, key: str) -> Effect | None:
    """Return the entry of a key, if there is one."""
    row = connection.first("SELECT * FROM quell_effects WHERE key = :key", key=key)
    return None if row is None else _effect(row)


def find_call(connection: Connection, *, run: str, call: str) -> Effect | None:
    """Return the entry of a call id of a run, if there is one."""
    row = connection.first("SELECT * FROM quell_effects WHERE run = :run AND call_id = :call", run=run, call=call)
    return None if row is None else _effect(row)


def locked(connection: Connection, database: Database, *, run: str, call: str) -> Effect:
    """Return the entry of a call, which nobody else changes until the transaction ends."""
    return _effect(
        connection.one(
            f"SELECT * FROM quell_effects WHERE run = :run AND call_id = :call{database.for_update}", run=run, call=call
        )
    )


def locked_by_key(connection: Connection, database: Database, *, key: str) -> Effect | None:
    """Return the entry of a key, which nobody else changes until the transaction ends."""
    row = connection.first(f"SELECT * FROM quell_effects WHERE key = :key{database.for_update}", key=key)
    return None if row is None else _effect(row)


def claim(connection: Connection, effect: Effect, *, fence: Fence) -> Effect:
    """Put the fence of the present holder before an entry: whoever sent it before can no longer end it."""
    if effect.fence == fence.text or not EFFECT_NEXT[effect.state]:
        return effect
    connection.run("UPDATE quell_effects SET fence = :fence WHERE key = :key", fence=fence.text, key=effect.key)
    return replace(effect, fence=fence.text)


def start(connection: Connection, effect: Effect, *, fence: Fence, at: datetime, is_in_doubt: bool) -> Effect:
    """Count one more attempt. Raises SupersededError when somebody else has acted on the entry meanwhile."""
    if effect.state is not EffectState.STARTED:
        step_to(EFFECT_NEXT, effect.state, EffectState.STARTED)
    started = replace(
        effect,
        state=EffectState.STARTED,
        attempts=effect.attempts + 1,
        is_in_doubt=is_in_doubt,
        sent_at=at,
        started_at=effect.started_at or at,
    )
    _change(
        connection,
        effect,
        fence=fence.text,
        state="started",
        attempts=started.attempts,
        in_doubt=int(is_in_doubt),
        sent_at=to_text(at),
        started_at=to_text(started.started_at or at),
    )
    return started


def end(connection: Connection, before: Effect, after: Effect) -> None:
    """Write what is known now. Raises SupersededError when somebody else has acted on the entry meanwhile."""
    step_to(EFFECT_NEXT, before.state, after.state)
    assert after.ended_at is not None, "an end has a time"
    _change(
        connection,
        before,
        fence=before.fence,
        state=after.state,
        reason=after.reason,
        detail=after.detail,
        ended_at=to_text(after.ended_at),
        result=after.result,
        result_digest=after.result_digest,
        result_bytes=after.result_bytes,
        settled_by=after.settled_by,
    )


def with_detail(effect: Effect, detail: str) -> Effect:
    """Return the entry with what is told about it, as every database takes it."""
    return replace(effect, detail=storable(detail)[:DETAIL_MAX])


def with_result(effect: Effect, result: str) -> Effect:
    """Return the entry with its result: all of it if it is small enough to keep, its digest and size always."""
    raw = result.encode(errors="replace")
    kept = storable(result) if len(raw) <= RESULT_KEPT_MAX_BYTES else ""
    return replace(effect, result=kept, result_digest=hashlib.sha256(raw).hexdigest(), result_bytes=len(raw))


def tell(connection: Connection, effect: Effect, name: str, *, is_postgres: bool, at: datetime) -> None:
    """Append what became of an effect to the event log of its run."""
    shown: dict[str, object] = {
        "call": effect.call.id,
        "tool": effect.call.tool,
        "resource": f"{effect.resource.kind}/{effect.resource.name}",
    }
    match name:
        case "effect.started" | "effect.unknown":
            shown |= {"attempt": effect.attempts}
        case "effect.ended":
            shown |= {"attempt": effect.attempts, "state": effect.state.value, "reason": effect.reason}
        case "effect.settled":
            shown |= {"state": effect.state.value, "by": effect.settled_by}
    key = f"{name}.{effect.call.id}.{effect.attempts}"
    append_event(connection, is_postgres=is_postgres, at=at, run=effect.call.run, key=key, name=name, body=shown)


def facts(
    connection: Connection, *, call: FrozenCall, workflow_digest: str, tenant: str, since: datetime
) -> EffectFacts:
    """Count the recent past of a tenant's workflow version in one query: what others do with it is not its past."""
    row = connection.one(
        _FACTS,
        workflow=workflow_digest,
        tenant=tenant,
        since=to_text(since),
        run=call.run,
        call=call.id,
        resource=_resource_text(call.resource),
    )
    return EffectFacts(
        calls=int(row.calls),
        resources=int(row.resources) + (0 if row.has_mine else 1),
        units=int(row.units) + call.resource.units,
        failures=int(row.failures),
        in_flight=int(row.in_flight),
    )


def entries(
    connection: Connection, *, run: str | None, state: EffectState | None, tenant: str | None, rows_max: int
) -> list[Effect]:
    """Return the newest entries first."""
    wanted = {
        name: str(value) for name, value in (("run", run), ("state", state), ("tenant", tenant)) if value is not None
    }
    conditions = " AND ".join(["1 = 1", *(f"{name} = :{name}" for name in wanted)])
    rows = connection.all(
        f"SELECT * FROM quell_effects WHERE {conditions} ORDER BY number DESC LIMIT :most", most=rows_max, **wanted
    )
    return [_effect(row) for row in rows]


def abandoned(connection: Connection, *, is_postgres: bool, before: datetime, rows_max: int) -> list[Effect]:
    """Return entries whose run has ended without them, if nothing was done about them since that time; locked."""
    rows = connection.all(
        "SELECT quell_effects.* FROM quell_effects LEFT JOIN quell_runs ON quell_runs.id = quell_effects.run"
        " WHERE quell_effects.state IN ('intent', 'started')"
        " AND quell_effects.intended_at < :before AND quell_effects.sent_at < :before"
        " AND (quell_runs.id IS NULL OR quell_runs.status IN ('succeeded', 'failed', 'cancelled'))"
        f" ORDER BY quell_effects.number LIMIT :most{' FOR UPDATE OF quell_effects' if is_postgres else ''}",
        before=to_text(before),
        most=rows_max,
    )
    return [_effect(row) for row in rows]


def delete_ended(connection: Connection, *, before: datetime) -> int:
    """Delete entries that ended before that time and that no run can come back to."""
    return connection.run(
        "DELETE FROM quell_effects WHERE state IN ('done', 'failed', 'reverted') AND ended_at < :before"
        " AND NOT EXISTS (SELECT 1 FROM quell_runs WHERE quell_runs.id = quell_effects.run"
        " AND quell_runs.status <> 'succeeded')",
        before=to_text(before),
    )


def refuse_another(effect: Effect, intent: Intent) -> None:
    """Refuse an intent that is not the one of the entry. Raises RefusedError."""
    call = intent.call
    given = (key_of(call), call.tool, call.pin, call.arguments, call.resource, intent.recovery)
    kept = (
        effect.key,
        effect.call.tool,
        effect.call.pin,
        effect.call.arguments,
        effect.resource,
        effect.recovery,
    )
    if given != kept:
        raise RefusedError(
            f"call {call.id} of {call.run} is in the ledger with other arguments, another tool or another definition",
            hint="an id stands for one call for ever: make a new call under a new id",
        )


def _new(intent: Intent, *, key: str, fence: Fence, at: datetime) -> Effect:
    return Effect(
        key=key,
        call=intent.call,
        recovery=intent.recovery,
        user=intent.user,
        tenant=intent.tenant,
        workflow_digest=intent.workflow_digest,
        revert=intent.revert,
        approval=intent.approval,
        state=EffectState.INTENT,
        reason="",
        detail="",
        fence=fence.text,
        attempts=0,
        is_in_doubt=False,
        intended_at=at,
        started_at=None,
        sent_at=None,
        ended_at=None,
        result="",
        result_digest="",
        result_bytes=0,
        settled_by="",
    )


def _change(connection: Connection, effect: Effect, *, fence: str, **columns: Value) -> None:
    """Change an entry only if it still stands as it was read, under the fence it was read with."""
    sets = ", ".join(f"{name} = :{name}" for name in columns)
    changed = connection.run(
        f"UPDATE quell_effects SET {sets} WHERE key = :key AND fence = :held_fence AND state = :held_state"
        " AND attempts = :held_attempts",
        key=effect.key,
        held_fence=fence,
        held_state=effect.state,
        held_attempts=effect.attempts,
        **columns,
    )
    if changed != 1:
        raise SupersededError


def _resource_text(resource: Resource) -> str:
    return msgspec.json.encode([resource.kind, resource.environment, resource.name]).decode()


def _effect(row: Row) -> Effect:
    try:
        kind, environment, name = msgspec.json.decode(row.resource, type=tuple[str, str, str])
        resource = Resource(kind=kind, name=name, environment=environment, units=row.units, host=row.host)
        call = FrozenCall(
            run=row.run,
            id=row.call_id,
            tool=row.tool,
            pin=row.pin,
            arguments=row.arguments,
            resource=resource,
            digest=row.digest,
        )
        return Effect(
            key=row.key,
            call=call,
            recovery=Recovery(row.recovery),
            user=row.principal,
            tenant=row.tenant,
            workflow_digest=row.workflow_digest,
            revert=row.revert,
            approval=row.approval,
            state=EffectState(row.state),
            reason=row.reason,
            detail=row.detail,
            fence=row.fence,
            attempts=row.attempts,
            is_in_doubt=bool(row.in_doubt),
            intended_at=from_text(row.intended_at),
            started_at=_time(row.started_at),
            sent_at=_time(row.sent_at),
            ended_at=_time(row.ended_at),
            result=row.result,
            result_digest=row.result_digest,
            result_bytes=row.result_bytes,
            settled_by=row.settled_by,
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise JournalError(
            f"the ledger holds an entry that cannot be read: {error}",
            hint="it was written by another version, or damaged",
        ) from error


def _time(text: str) -> datetime | None:
    return from_text(text) if text else None
