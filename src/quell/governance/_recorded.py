"""Decisions of the past, read back from the audit log, to be decided again."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from quell.domain import AuditKind, AuditRecord, Facts, FrozenCall, Principal, RecordedDecision, UsageError, Verdict
from quell.governance._arguments import digest_of

_DECIDING = frozenset({AuditKind.DECISION, AuditKind.EFFECT})


class _Told(msgspec.Struct, frozen=True):
    """What the guard writes down of a decision."""

    call: str
    tool: str
    pin: str
    digest: str
    arguments: str
    resource: dict[str, object]
    principal: Principal
    verdict: Verdict
    facts: Facts


def recorded(record: AuditRecord, *, body: Callable[[str], str | None]) -> RecordedDecision | None:
    """Return the decision that a record tells of; None when it tells of none.

    Args:
        record: One record of the audit log.
        body: Returns a long text by its digest; None when it is no longer kept.

    Raises:
        UsageError: it tells of one that is not whole any more: a body was deleted, or a secret was taken out of it.
    """
    if record.kind not in _DECIDING:
        return None
    try:
        held = json.loads(record.body)
    except ValueError:
        held = None
    if not isinstance(held, dict) or "verdict" not in held:
        return None
    try:
        told = msgspec.convert(_filled(held, body), _Told)
        call = msgspec.convert(
            {
                "run": record.run,
                "id": told.call,
                "tool": told.tool,
                "pin": told.pin,
                "arguments": told.arguments,
                "resource": told.resource,
                "digest": told.digest,
            },
            FrozenCall,
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"its record cannot be read: {error}", hint="`quell audit verify`") from error
    if digest_of(tool=call.tool, pin=call.pin, arguments=call.arguments, resource=call.resource) != call.digest:
        raise UsageError("a secret was taken out of what is recorded", hint="it cannot be decided again")
    return RecordedDecision(call=call, principal=told.principal, facts=told.facts, verdict=told.verdict)


def _filled(value: object, body: Callable[[str], str | None]) -> object:
    """Put long texts back where their digests stand."""
    if isinstance(value, dict):
        digest = value.get("blob")
        if isinstance(digest, str) and set(value) == {"blob", "size_bytes"}:
            if (text := body(digest)) is None:
                raise UsageError("a long text of it is no longer kept", hint="governance.body_retention_days")
            return text
        return {name: _filled(under, body) for name, under in value.items()}
    return [_filled(part, body) for part in value] if isinstance(value, list) else value
