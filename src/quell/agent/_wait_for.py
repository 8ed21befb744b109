"""Waiting as a tool: probes that only read are repeated until what they bring fits, settles, or the time is over.

Every probe goes through the toolbox as any call does, with an origin of its own that policies see; it is a step of the run,
so that a run that comes back goes on waiting where it stood. A probe that failed never counts as what was waited for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quell.agent._seat import Closing, Given, Native, brought, refused
from quell.domain import (
    CallOrigin,
    CallWanted,
    OutcomeKind,
    Parked,
    StepError,
    Tool,
    ToolCall,
    ToolCaller,
    ToolOutcome,
    ToolSpec,
)
from quell.runs import RunContext
from quell.tools import Toolbox

WAIT = "wait_for"
_WAIT_S, _WAIT_MAX_S = 120.0, 300.0
_POLL_S, _POLL_MIN_S = 2.0, 0.05
_OBSERVATION_MAX_BYTES = 256 << 10
_PATTERN_MAX_CHARS = 512
_ENDS = frozenset({OutcomeKind.TRANSPORT_ERROR, OutcomeKind.DENIED, OutcomeKind.SUSPICIOUS, OutcomeKind.TRUNCATED})
"""Outcomes of a probe after which waiting on makes no sense."""
_SEEN = frozenset({OutcomeKind.OK, OutcomeKind.EMPTY})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What is waited for."""

    tool: Tool
    arguments: str
    matches: Callable[[str], bool] | None
    is_negated: bool
    quiet_s: float
    poll_s: float
    most_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """One look: what it brought, and when in the wait it ended."""

    outcome: ToolOutcome | None
    """None: it did not end in time."""
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """When and as what to look."""

    name: str
    began_s: float
    pause_s: float
    left_s: float
    """Of the whole wait."""


def waiting(toolbox: Toolbox, tools: Sequence[Tool], *, monotonic: Callable[[], float]) -> tuple[Native, ...]:
    """Return the tool that waits; only these tools may be its probes, and they only read."""
    probes = {tool.name: tool for tool in tools}

    async def use(context: RunContext, wanted: CallWanted, given: Given, caller: ToolCaller) -> ToolOutcome | Closing:
        sought = _read(given, probes)
        if isinstance(sought, str):
            return refused(wanted, sought)
        return await _wait(context, wanted, sought, toolbox=toolbox, caller=caller, monotonic=monotonic)

    return (Native(spec=_spec(tuple(probes)), use=use),)


async def _wait(
    context: RunContext,
    wanted: CallWanted,
    sought: _Wanted,
    *,
    toolbox: Toolbox,
    caller: ToolCaller,
    monotonic: Callable[[], float],
) -> ToolOutcome:
    began_s, number = monotonic(), 0
    last, steady, steady_since_s = "", None, 0.0
    while True:
        number += 1
        look = _Look(
            name=f"{wanted.id}.w{number}",
            began_s=began_s,
            pause_s=sought.poll_s if number > 1 else 0.0,
            left_s=sought.most_s - (monotonic() - began_s),
        )
        probe = await _look(context, look, sought, toolbox=toolbox, caller=caller, now=monotonic)
        began_s = monotonic() - probe.elapsed_s  # what was kept tells how far the wait had come before a crash
        outcome = probe.outcome
        if outcome is not None and (fault := _fault(outcome)):
            kind = outcome.kind if outcome.kind in _ENDS else OutcomeKind.TOOL_ERROR
            return replace(refused(wanted, fault), kind=kind)
        if outcome is None or outcome.kind not in _SEEN:
            steady = None  # nobody knows what was there meanwhile
        else:
            last = outcome.content
            if last != steady:
                steady, steady_since_s = last, probe.elapsed_s
            reason = _reason(sought, last, quiet_s=probe.elapsed_s - steady_since_s)
            if reason:
                return _told(wanted, sought, probe, reason=reason, seen=last, samples=number)
        if probe.elapsed_s + sought.poll_s >= sought.most_s:
            return _told(wanted, sought, probe, reason="timeout", seen=last, samples=number)


async def _look(
    context: RunContext,
    look: _Look,
    sought: _Wanted,
    *,
    toolbox: Toolbox,
    caller: ToolCaller,
    now: Callable[[], float],
) -> _Probe:
    """Pause and probe once, within what is left of the wait even when the probe hangs.

    The pause is part of the step, so that a run that comes back does not pause again for what it has seen.
    """
    name, within_s = look.name, max(_POLL_MIN_S, min(look.left_s - look.pause_s, caller.deadline_s))
    looker = replace(caller, origin=CallOrigin.WAIT, deadline_s=within_s)
    call = ToolCall(id=name, tool=sought.tool.name, arguments=sought.arguments)

    async def work() -> _Probe:
        ended: ToolOutcome | Parked | None
        await asyncio.sleep(look.pause_s)
        try:
            async with asyncio.timeout(within_s):
                ended = await toolbox.call(call, caller=looker)
        except TimeoutError:
            ended = None
        if isinstance(ended, Parked):
            told = "people are asked about this probe: it cannot be repeated by itself"
            ended = ToolOutcome(call=name, tool=call.tool, kind=OutcomeKind.DENIED, detail=told)
        return _Probe(outcome=ended, elapsed_s=now() - look.began_s)

    try:
        return await context.step(f"wait.{name}", work, returns=_Probe, timeout_s=look.pause_s + within_s + 1.0)
    except StepError as error:
        told = ToolOutcome(call=name, tool=call.tool, kind=OutcomeKind.TRANSPORT_ERROR, detail=str(error))
        return _Probe(outcome=told, elapsed_s=now() - look.began_s)


def _reason(sought: _Wanted, seen: str, *, quiet_s: float) -> str:
    if sought.matches is not None:
        return "matched" if sought.matches(seen) != sought.is_negated else ""
    return "settled" if quiet_s >= sought.quiet_s else ""


def _fault(outcome: ToolOutcome) -> str:
    if outcome.kind in _ENDS:
        return f"the probe ended as {outcome.kind.value}: {outcome.detail}"
    if outcome.handle or len(outcome.content.encode("utf-8", "replace")) > _OBSERVATION_MAX_BYTES:
        return f"what the probe brings is larger than {_OBSERVATION_MAX_BYTES} bytes: ask for less"
    return ""


def _told(wanted: CallWanted, sought: _Wanted, probe: _Probe, *, reason: str, seen: str, samples: int) -> ToolOutcome:
    outcome = probe.outcome
    body = {
        "reason": reason,
        "last_observation": seen,
        "elapsed_sec": round(probe.elapsed_s, 2),
        "samples": samples,
        "effective_max_wait_sec": sought.most_s,
    }
    if outcome is None or outcome.kind not in _SEEN:
        body["last_probe"] = "no answer in time" if outcome is None else f"{outcome.kind.value}: {outcome.detail}"
    told = brought(wanted, json.dumps(body, ensure_ascii=False))
    return replace(told, is_json=True, elapsed_ms=round(probe.elapsed_s * 1000, 1))


# -- what is asked for ------------------------------------------------------------------------------------------------


def _read(given: Given, probes: dict[str, Tool]) -> _Wanted | str:
    """Read the arguments; return what is wrong instead."""
    probe, until = given.get("probe"), given.get("until")
    if not isinstance(probe, dict) or not isinstance(until, dict):
        return "`probe` is {tool, args} and `until` is one of {matches}, {not_matches}, {quiet_for_sec}"
    tool = probes.get(str(probe.get("tool")))
    if tool is None:
        return f"{str(probe.get('tool'))[:80]!r} is no tool that may be a probe here: one of {', '.join(probes)}"
    sought = _until(until)
    if isinstance(sought, str):
        return sought
    matches, is_negated, quiet_s = sought
    return _Wanted(
        tool=tool,
        arguments=json.dumps(probe.get("args") or {}),
        matches=matches,
        is_negated=is_negated,
        quiet_s=quiet_s,
        poll_s=max(_POLL_MIN_S, _seconds(given.get("poll_sec"), _POLL_S)),
        most_s=min(_WAIT_MAX_S, max(_POLL_MIN_S, _seconds(given.get("max_wait_sec"), _WAIT_S))),
    )


def _until(until: Given) -> tuple[Callable[[str], bool] | None, bool, float] | str:
    named = [name for name in ("matches", "not_matches", "quiet_for_sec") if until.get(name) is not None]
    if len(named) != 1:
        return "`until` has exactly one of matches, not_matches, quiet_for_sec"
    if named == ["quiet_for_sec"]:
        quiet_s = _seconds(until["quiet_for_sec"], -1.0)
        return (None, False, quiet_s) if quiet_s > 0 else "`quiet_for_sec` is a number above 0"
    matcher = _matcher(str(until[named[0]]))
    return matcher if isinstance(matcher, str) else (matcher, named[0] == "not_matches", 0.0)


def _matcher(pattern: str) -> Callable[[str], bool] | str:
    """Compile an expression for an engine of linear time, Rust's regex crate: no expression of a model stops us."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema  # noqa: PLC0415 - only a wait needs it

    if not 0 < len(pattern) <= _PATTERN_MAX_CHARS:
        return f"an expression has 1 to {_PATTERN_MAX_CHARS} characters"
    try:
        schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
        return SchemaValidator(schema).isinstance_python
    except SchemaError as error:
        return f"the expression cannot be used: {str(error).strip().splitlines()[-1]}"


def _seconds(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def _spec(tools: Sequence[str]) -> ToolSpec:
    text = {"type": "string"}
    until = {
        "type": "object",
        "properties": {"matches": text, "not_matches": text, "quiet_for_sec": {"type": "number"}},
        "description": "Exactly one: a regular expression that the result matches or no longer matches, or quiet.",
    }
    probe = {
        "type": "object",
        "properties": {"tool": {"enum": list(tools)}, "args": {"type": "object"}},
        "required": ["tool", "args"],
    }
    properties = {
        "probe": probe,
        "until": until,
        "poll_sec": {"type": "number", "default": _POLL_S},
        "max_wait_sec": {"type": "number", "default": _WAIT_S, "maximum": _WAIT_MAX_S},
    }
    schema = {"type": "object", "properties": properties, "required": ["probe", "until"]}
    return ToolSpec(
        name=WAIT,
        description="Repeat a reading tool until its result fits, settles, or the time is over; a timeout is a result.",
        parameters=json.dumps(schema),
    )
