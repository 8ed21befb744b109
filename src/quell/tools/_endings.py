"""How calls end: what an answer says of an effect, what the ledger knows of it, and what telemetry is told."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import msgspec

from quell import telemetry
from quell.domain import (
    CallRequest,
    Effect,
    EffectState,
    Ending,
    Happened,
    NotHappened,
    OutcomeKind,
    Parked,
    Recovery,
    ToolOutcome,
    Unclear,
    Verdict,
)

_BELIEVED = frozenset({Recovery.KEYED, Recovery.NATURAL})
"""Tools whose own word that they failed ends an effect: doing it again is safe by their class.

Of any other it may have failed halfway: a probeable one is looked at, and a person looks at a blind one.
"""


def tell(request: CallRequest, ended: ToolOutcome | Parked) -> None:
    """Tell telemetry how a call ended, or that it waits."""
    call = request.call
    telemetry.genai.count_call(call.tool, ended)
    if isinstance(ended, Parked):
        telemetry.event(
            "tool.parked",
            run=call.run,
            call=call.id,
            tool=call.tool,
            approval=ended.approval,
            quorum=ended.quorum,
            expires_at=ended.expires_at.isoformat(),
        )
        return
    if ended.kind is OutcomeKind.DENIED:
        telemetry.event("tool.denied", run=call.run, call=call.id, tool=call.tool, reason=ended.detail)
    telemetry.event(
        "tool.called",
        run=call.run,
        call=call.id,
        tool=call.tool,
        outcome=ended.kind.value,
        attempts=ended.attempts,
        elapsed_ms=round(ended.elapsed_ms, 1),
        size_bytes=ended.size_bytes,
    )


def with_edit(request: CallRequest, outcome: ToolOutcome) -> ToolOutcome:
    """Say that people put other arguments in the place of the caller's: what came back is of those."""
    if not request.edited:
        return outcome
    told = {"edited": request.edited, "arguments": request.call.arguments}
    return replace(outcome, evidence={**outcome.evidence, **told})


def denied(request: CallRequest, verdict: Verdict) -> ToolOutcome:
    """Say no in the words of the policies that decided."""
    told = f"denied by {', '.join(verdict.policies) or 'default'}: {verdict.reason}"
    return ToolOutcome(call=request.call.id, tool=request.call.tool, kind=OutcomeKind.DENIED, detail=told, attempts=0)


def ending(request: CallRequest, outcome: ToolOutcome) -> Ending:
    """Say what an answer tells about an effect: whether it happened, did not, or nobody knows."""
    kept = msgspec.json.encode(replace(outcome, evidence={})).decode()
    match outcome.kind:
        case kind if kind.is_answer:
            return Happened(result=kept)
        case OutcomeKind.DENIED:
            return NotHappened(detail=outcome.detail)
        case OutcomeKind.TRANSPORT_ERROR | OutcomeKind.TIMEOUT if _was_not_sent(outcome):
            return NotHappened(detail=outcome.detail)
        case OutcomeKind.TOOL_ERROR if request.tool.recovery in _BELIEVED:
            return NotHappened(detail=f"the tool said that it failed: {outcome.detail}")
        case _:
            return Unclear(detail=f"{outcome.kind}: {outcome.detail}")


def _was_not_sent(outcome: ToolOutcome) -> bool:
    return outcome.attempts == 0 or outcome.evidence.get("sent") == "no"


def seen(outcome: ToolOutcome) -> Ending:
    """Read what a look found: an object with `happened` true or false, and perhaps `result`."""
    found: object = None
    with suppress(ValueError):
        found = json.loads(outcome.content)
    happened = found.get("happened") if isinstance(found, dict) else None
    if happened is True:
        assert isinstance(found, dict)
        return Happened(result=json.dumps(found.get("result")))
    if happened is False:
        return NotHappened(detail="a look found that it did not happen")
    return Unclear(detail="the look does not say whether it happened")


def outcome_of(request: CallRequest, effect: Effect, last: ToolOutcome | None) -> ToolOutcome:
    """Say what the ledger knows of an effect, in the words of an outcome."""
    ids = {"effect": effect.key} | ({"approval": effect.approval} if effect.approval else {})
    if effect.state is EffectState.DONE:
        kept = last or _kept(request, effect)
        return replace(kept, call=request.call.id, evidence={**kept.evidence, **ids})
    failed = OutcomeKind.TOOL_ERROR if last is None else last.kind
    kind = {
        EffectState.FAILED: OutcomeKind.DENIED if effect.reason == "refused" else failed,
        EffectState.UNKNOWN: OutcomeKind.TIMEOUT,
    }.get(effect.state, OutcomeKind.TRANSPORT_ERROR)
    told = effect.detail
    if effect.state is EffectState.UNKNOWN:
        told = f"nobody knows whether it happened; a person decides: {effect.detail}"
    return ToolOutcome(
        call=request.call.id,
        tool=request.call.tool,
        kind=kind,
        detail=told,
        attempts=effect.attempts,
        evidence=ids,
    )


def _kept(request: CallRequest, effect: Effect) -> ToolOutcome:
    """Return the outcome as the ledger kept it, from this or an earlier life."""
    with suppress(msgspec.DecodeError, msgspec.ValidationError):
        return msgspec.json.decode(effect.result, type=ToolOutcome)
    is_whole = effect.result or not effect.result_bytes
    return ToolOutcome(
        call=request.call.id,
        tool=request.call.tool,
        kind=OutcomeKind.OK if is_whole else OutcomeKind.TRUNCATED,
        content=effect.result,
        detail="" if is_whole else "it happened; its result was too large to be kept",
        digest=effect.result_digest,
        size_bytes=effect.result_bytes,
        attempts=effect.attempts,
    )
