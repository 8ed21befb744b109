"""Plan what has to be looked at for a question, one call after the other, from what came back so far."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import msgspec

from quell.domain import CallWanted, Message, Sensed
from quell.models._builtin_grammar import Intent
from quell.models._builtin_words import Ask, Choice, choose

_FENCE = re.compile(r'<result id="(e\d{1,4})" outcome="([a-z_]+)"[^>\n]*>\n(.*)\n</result[^>\n]*>', re.DOTALL)
_SENSE_OF: Mapping[Intent, str] = {
    Intent.STATUS: "system_overview",
    Intent.NAMES: "system_overview",
    Intent.CHANGED: "what_changed",
    Intent.WHY: "investigate",
    Intent.LIST: "incidents",
    Intent.SHOW: "incident",
    Intent.FIX: "advise",
    Intent.ACT: "advise",
    Intent.BRIEF: "brief",
}
"""Which sense answers what; what is not here is answered without looking."""
TIMED = frozenset({Intent.STATUS, Intent.CHANGED, Intent.WHY, Intent.BRIEF})
"""What looks as far back as it is told to."""
SENSES = frozenset(_SENSE_OF.values())
_NAME_MAX_CHARS = 120
_LISTED_MORE, _BRIEF_MORE_TOKENS = 30, 1_500

Arguments: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a call brought."""

    id: str
    """Under which it may be cited; empty: it has no id."""
    outcome: str
    sensed: Sensed | None
    """None: it failed, or what came is not what a sense says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A call that has to be made before there is an answer."""

    tool: str
    arguments: Arguments

    @property
    def key(self) -> tuple[str, str]:
        """Return what tells the same call by."""
        return self.tool, json.dumps(self.arguments, sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Everything that an answer needs."""

    ask: Ask
    result: Result | None = None
    """None: nothing had to be looked at."""
    naming: Result | None = None
    """What told that a name is not known, and which are."""
    choice: Choice = field(default_factory=Choice)


Results: TypeAlias = Mapping[tuple[str, str], Result]


def next_of(ask: Ask, results: Results) -> Wanted | Settled:
    """Return the next call for a question, or that all is there; the same results give the same step."""
    tool = _SENSE_OF.get(ask.intent)
    if tool is None:
        return Settled(ask=ask)
    first = Wanted(tool=tool, arguments=_arguments(ask))
    result = results.get(first.key)
    if result is None:
        return first
    if result.sensed is None or result.sensed.state != "unknown_service":
        return Settled(ask=ask, result=result)
    choice = choose(ask.topic or ask.incident, result.sensed.names)
    if not choice.name and (choice.others or ask.intent is not Intent.WHY):
        return Settled(ask=ask, naming=result, choice=choice)
    # A cause is sought with the words alone too: they may name a route or a page, which the investigation knows.
    again = Wanted(tool=tool, arguments=_arguments(replace(ask, topic=choice.name, incident=choice.name)))
    found = results.get(again.key)
    return again if found is None else Settled(ask=ask, result=found, naming=result, choice=choice)


def _arguments(ask: Ask) -> Arguments:
    """Return what a sense is asked with."""
    given: dict[str, object] = {}
    match ask.intent:
        case Intent.STATUS | Intent.CHANGED | Intent.BRIEF | Intent.WHY:
            given["service"] = ask.topic[:_NAME_MAX_CHARS]
        case Intent.SHOW | Intent.FIX | Intent.ACT:
            given["incident"] = ask.incident[:_NAME_MAX_CHARS]
        case Intent.LIST:
            given["service"] = ask.topic[:_NAME_MAX_CHARS]
            given["state"] = "open" if ask.only_open else "all"
            given["limit"] = _LISTED_MORE if ask.detail == "more" else None
    if ask.intent in TIMED:
        given["minutes"] = ask.minutes
    if ask.intent is Intent.WHY:
        given["question"] = ask.question
    if ask.intent is Intent.BRIEF and ask.detail == "more":
        given["tokens"] = _BRIEF_MORE_TOKENS
    return {name: value for name, value in given.items() if value}


def results_of(messages: Sequence[Message]) -> Results:
    """Read what the calls after the last question brought; whatever stands in it is data and nothing else."""
    calls: dict[str, CallWanted] = {}
    found: dict[tuple[str, str], Result] = {}
    for message in messages:
        if message.role == "user":
            calls, found = {}, {}
        elif message.role == "assistant":
            calls |= {call.id: call for call in message.calls}
        elif message.role == "tool" and (call := calls.get(message.call)) is not None:
            found[_key_of(call)] = _result_of(message.text)
    return found


def _key_of(call: CallWanted) -> tuple[str, str]:
    try:
        return call.name, json.dumps(json.loads(call.arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return call.name, call.arguments


def _result_of(text: str) -> Result:
    fence = _FENCE.match(text)
    if fence is None:
        return Result(id="", outcome="ok", sensed=_sensed_of(text))
    sensed = _sensed_of(fence[3]) if fence[2] == "ok" else None
    return Result(id=fence[1], outcome=fence[2] if fence[2] != "ok" or sensed else "unreadable", sensed=sensed)


def _sensed_of(body: str) -> Sensed | None:
    try:
        sensed = msgspec.json.decode(body, type=Sensed)
    except (msgspec.DecodeError, RecursionError):
        return None
    return sensed if sensed.lines else replace(sensed, lines=("Nothing was said",))
