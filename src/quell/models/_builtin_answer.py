"""Say what was found: sentences of the senses, each with its citation, gaps and failures told, nothing added."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from quell.domain import Sensed
from quell.models._builtin_grammar import Intent
from quell.models._builtin_plan import TIMED, Result, Settled

_LINES_SHORT = 9
_MORE_SHORT = 4
_STEPS_SHORT = 6
_CITING = re.compile(r"\[(?=\s*e\d)")
_NAMES_CUT = "names left out"
_FACT = re.compile(r"E\d+ ")
_WORDS_AND_NAMES = 40
WHICH = "Which one do you mean?"
"""What is asked back where a word may stand for several names."""

ABLE = """\
I answer questions about the live system, without a language model:
- whether anything is wrong, with all of it or with one service
- what changed, and since when
- why something is slow, failing or down
- which incidents there are, and what is known of one
- what I would do about it, and who may approve it"""
_OTHER = (
    "I cannot do that: without a language model I answer questions about the live system only, such as what changed, "
    "why a service is slow, or whether anything is wrong."
)
_PLAIN = {
    Intent.GREET: "Hello. " + ABLE,
    Intent.THANK: "Gladly. Ask again whenever something looks odd.",
    Intent.ABLE: ABLE,
    Intent.OTHER: _OTHER,
    Intent.MORE: _OTHER,
}
_FAILED = {
    "tool_error": "the look itself failed",
    "transport_error": "it could not be reached",
    "denied": "it is not allowed here",
    "timeout": "there was no answer in time",
    "empty": "nothing came back",
    "truncated": "only a part came back",
    "stale": "what came back is old",
    "suspicious": "what came back looks forged",
    "unreadable": "what came back cannot be read",
}
_SOUGHT = {
    Intent.STATUS: "whether anything is wrong",
    Intent.NAMES: "which services there are",
    Intent.CHANGED: "what changed",
    Intent.WHY: "the cause",
    Intent.LIST: "which incidents there are",
    Intent.SHOW: "what is known of the incident",
    Intent.FIX: "what to do about it",
    Intent.ACT: "what to do about it",
    Intent.BRIEF: "what stands out",
}
_UNOFFERED = "I cannot find out {sought}: the tool that tells it is not offered to me here."
_STOPPED = "I did not find out {sought}: I may not look any further in this conversation."


def unable(intent: Intent, *, is_over: bool) -> str:
    """Say that a look is not possible, and why."""
    return (_STOPPED if is_over else _UNOFFERED).format(sought=_SOUGHT[intent])


def answer(settled: Settled) -> Iterator[str]:
    """Yield the lines of an answer."""
    ask, result = settled.ask, settled.result
    if result is None and settled.naming is None:
        yield _PLAIN[ask.intent]
        return
    if ask.remark:
        yield f"{ask.remark}."
    if ask.minutes is not None and ask.intent not in TIMED:
        yield "The time that was named narrows nothing here."
    if settled.naming is not None:
        yield from _named(settled, settled.naming)
    if result is None:
        return
    if result.sensed is None:
        yield f"I could not find out {_SOUGHT[ask.intent]}: {_FAILED.get(result.outcome, 'what came back is of no use')}."
        return
    yield from _told(settled, result, result.sensed)


def _named(settled: Settled, naming: Result) -> Iterator[str]:
    """Say which name was taken, ask which one is meant, or say what there is."""
    assert naming.sensed is not None, "names come from a sense"
    topic, choice = settled.ask.topic or settled.ask.incident, settled.choice
    if choice.name:
        yield _cited(f"I took “{topic}” to mean {choice.name}", naming)
        return
    if choice.others:
        *first, last = choice.others
        yield _cited(f"“{topic}” may be several: {', '.join(first)} or {last}", naming)
        yield WHICH
        return
    yield _cited(naming.sensed.lines[0], naming)
    if settled.result is not None:
        yield "So I looked at the whole system."
        return
    known = [name for each in naming.sensed.names.values() for name in each]
    if known:
        left = ", and others" if len(known) > _WORDS_AND_NAMES else ""
        yield _cited(f"Known are {', '.join(known[:_WORDS_AND_NAMES])}{left}", naming)


def _told(settled: Settled, result: Result, sensed: Sensed) -> Iterator[str]:
    ask = settled.ask
    is_more = ask.detail == "more"
    if ask.intent is Intent.ACT:
        yield "I change nothing myself, I only say what I would do."
    if ask.intent is Intent.NAMES:
        yield from _names(result, sensed)
        return
    first, *rest = sensed.lines
    shown = rest if is_more or ask.intent in {Intent.LIST, Intent.BRIEF} else rest[:_LINES_SHORT]
    yield _cited(first, result)
    yield from (f"{'' if _is_heading(ask.intent, line) else '- '}{_cited(line, result)}" for line in shown)
    yield from _more(ask.intent, result, sensed, is_more=is_more)
    if sensed.steps and (is_more or ask.intent in {Intent.FIX, Intent.ACT}):
        yield "What I would do:" if ask.intent in {Intent.FIX, Intent.ACT} else "What can be done:"
        steps = sensed.steps if is_more else sensed.steps[:_STEPS_SHORT]
        yield from (f"{number}. {_cited(step, result)}" for number, step in enumerate(steps, start=1))
    if sensed.gaps:
        yield "What I could not see:"
        yield from (f"- {_cited(gap, result)}" for gap in sensed.gaps)
    if ending := _ending(ask.intent, sensed):
        yield ending


def _is_heading(intent: Intent, line: str) -> bool:
    """Tell the name of a service above the facts about it, as a briefing has them."""
    return intent is Intent.BRIEF and not _FACT.match(line)


def _more(intent: Intent, result: Result, sensed: Sensed, *, is_more: bool) -> Iterator[str]:
    wanted = sensed.more if is_more else sensed.more[:_MORE_SHORT] if intent in {Intent.WHY, Intent.SHOW} else ()
    if wanted:
        yield "What it rests on:" if intent in {Intent.WHY, Intent.SHOW} else "Further:"
        yield from (f"- {_cited(line, result)}" for line in wanted)


def _names(result: Result, sensed: Sensed) -> Iterator[str]:
    if not sensed.names:
        yield _cited("Telemetry names no service in the time that was looked at", result)
    for kind, names in sensed.names.items():
        yield _cited(f"{kind.capitalize()}: {', '.join(names)}", result)
    yield from (_cited(line, result) for line in sensed.more if line.endswith(_NAMES_CUT))


def _ending(intent: Intent, sensed: Sensed) -> str:
    """Say what may be asked next, or that nothing more is known."""
    if sensed.state == "running":
        return "Ask again in a moment, or ask to see the incident."
    if sensed.state == "inconclusive" and intent in {Intent.WHY, Intent.SHOW, Intent.FIX, Intent.ACT}:
        return "I do not know the cause."
    if intent is Intent.STATUS and sensed.state == "unclear":
        return "I do not know whether anything is wrong."
    if intent is Intent.STATUS and sensed.state == "wrong":
        return "Ask why for the cause, or what I would do about it."
    if intent is Intent.WHY and sensed.state == "cause_found":
        return "Ask for more to see all the evidence, or what I would do about it."
    return ""


def _cited(line: str, result: Result) -> str:
    """Make one sentence of a line and cite what it came from; marks inside that would end it, or cite, are made harmless."""
    whole = _CITING.sub("(", line.strip().rstrip(".")).replace("?", "\uff1f").replace("!", "\uff01")
    whole = re.sub(r"\.(?=\s)", ";", whole)
    return f"{whole} [{result.id}]." if result.id else f"{whole}."


def joined(parts: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the pieces of the whole text, line by line."""
    for number, part in enumerate(parts):
        if number:
            yield "\n\n"
        for place, line in enumerate(part):
            yield line if place == 0 else f"\n{line}"
