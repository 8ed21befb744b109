"""Say in short sentences what stands in a case file or a look; a stranger's words only as visible, quoted text."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from quell.app._senses_look import Look
from quell.domain import (
    Alert,
    Gap,
    Incident,
    ObservedChange,
    Outcome,
    Sensed,
    SenseState,
    Stage,
)
from quell.incidents import CaseFile

_LINE_MAX_CHARS, _WIDEST_CHARS = 420, 600
_NAME_MAX_CHARS = 80
_RESULT_MAX_CHARS = 7_000
"""Less than an agent keeps of a result to hold claims against."""
_LINES_MAX_CHARS, _STEPS_MAX_CHARS, _GAPS_MAX_CHARS, _NAMES_MAX_CHARS = 3_600, 1_400, 900, 700
_GAPS_MAX = 6
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_STATES: dict[Outcome, SenseState] = {
    Outcome.CAUSE_FOUND: "cause_found",
    Outcome.HEALTHY: "healthy",
    Outcome.INCONCLUSIVE: "inconclusive",
}


def plain(text: str, *, chars_max: int = _LINE_MAX_CHARS) -> str:
    """Return one visible line, cut between words."""
    shown = "".join(" " if unicodedata.category(letter) in _HIDDEN else letter for letter in text[: chars_max * 4])
    line = " ".join(shown.split())
    if len(line) <= chars_max:
        return line
    return line[: chars_max - 1].rpartition(" ")[0] + " …"


def moment(at: datetime) -> str:
    """Write a time with its zone."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def quoted(text: str, *, chars_max: int = 200) -> str:
    """Put a stranger's words between quotes that they cannot close."""
    return '"' + plain(text, chars_max=chars_max).replace('"', "'") + '"'


def counted(number: int, word: str) -> str:
    """Write a number with its noun."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def gap_lines(gaps: Sequence[Gap]) -> tuple[str, ...]:
    """Say what could not be learned; the same reason once, with everything that it hides."""
    told = [gap for gap in gaps if gap.reason != "unsupported"]
    said = _gap_lines(told)
    if len(said) > _GAPS_MAX:
        # A source that has nothing at all says so of each signal in other words: once is enough.
        said = _gap_lines(
            [replace(gap, detail="nothing of that time") if gap.reason == "empty" else gap for gap in told]
        )
    if len(said) > _GAPS_MAX:
        return (*said[:_GAPS_MAX], f"And {counted(len(said) - _GAPS_MAX, 'further gap')}.")
    return said


def _gap_lines(gaps: Sequence[Gap]) -> tuple[str, ...]:
    hidden: dict[tuple[str, str, str], list[str]] = {}
    for gap in gaps:
        hidden.setdefault((gap.source, gap.reason, gap.detail), []).append(gap.question.value.replace("_", " "))
    return tuple(
        plain(f"{source} did not tell {', '.join(questions)} ({reason}): {detail}", chars_max=240)
        for (source, reason, detail), questions in hidden.items()
    )


def incident_line(incident: Incident, *, number: int = 0) -> str:
    """Say what an incident is, in one sentence."""
    mark = f"#{number} " if number else ""
    end = f", closed {moment(incident.closed_at)}" if incident.closed_at else ""
    found = ""
    if incident.category is not None and incident.subject is not None:
        found = f"; found: {incident.category.value.replace('_', ' ')} of {incident.subject.name}"
    return plain(
        f"{mark}{incident.id} ({incident.severity.value}, {incident.stage.value}, opened {moment(incident.opened_at)}{end}): {quoted(incident.title)}{found}"
    )


def alert_line(alert: Alert) -> str:
    """Say what fires."""
    return plain(f"{alert.service or 'all services'} fires since {moment(alert.starts_at)}: {quoted(alert.summary)}")


def change_lines(look: Look, service: str) -> list[str]:
    """Say what was changed inside the window, newest first, in absolute times."""
    window = look.survey.window
    rows = [
        fact.observation
        for fact in look.facts("")
        if isinstance(fact.observation, ObservedChange) and window.start <= fact.observation.at < window.end
    ]
    # A change that names no service concerns all of them.
    about = [row for row in rows if not service or row.service in {"", service}]
    return [_change_line(row) for row in sorted(about, key=lambda row: (row.at, row.subject), reverse=True)]


def _change_line(row: ObservedChange) -> str:
    subject = "" if row.subject in {row.service, row.after, ""} else f" of {quoted(row.subject)}"
    values = f" from {quoted(row.before)} to {quoted(row.after)}" if row.before else ""
    values = values or (f" to {quoted(row.after)}" if row.after else "")
    return plain(f"{row.service or 'all services'}: {row.change.value}{subject}{values} at {moment(row.at)}")


def shift_lines(look: Look, service: str, *, only: Collection[str] | None = None) -> list[str]:
    """Say what stands out, the most telling first; `only`: the facts with these ids."""
    wanted = look.standing_out if only is None else only
    return [
        plain(_dated(fact.evidence.excerpt, look.survey.window.end))
        for fact in look.facts(service)
        if fact.evidence.id in wanted and not isinstance(fact.observation, ObservedChange)
    ]


_OFFSET = re.compile(r"\b(since|first|at) ([+-])(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?=[,:; )]|$)")


def _dated(excerpt: str, anchor: datetime) -> str:
    """Write the offsets of an excerpt as times: a sentence may be read long after it was made."""

    def at(found: re.Match[str]) -> str:
        hours, minutes, seconds = (int(part or 0) for part in found.groups()[2:])
        away = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        return f"{found[1]} {moment(anchor + away if found[2] == '+' else anchor - away)}"

    head, quote, rest = excerpt.partition('"')
    return _OFFSET.sub(at, head) + quote + rest


def case_sensed(case: CaseFile, *, head: Sequence[str] = (), service: str = "") -> Sensed:
    """Say what is known of an incident, and what that means for the service that was asked about."""
    lines = [*head]
    finding = case.finding
    if finding is None:
        lines += [incident_line(case.incident), plain(case.state or "Nothing was found yet.")]
        state: SenseState = "running" if case.incident.stage is Stage.INVESTIGATING else "nothing"
    else:
        state = _STATES[finding.outcome]
        cap = f", because {finding.cap}" if finding.cap else ""
        lines += [plain(finding.statement), plain(f"Confidence: {finding.confidence.value}{cap}")]
        lines += [] if head else [incident_line(case.incident)]
        if finding.since is not None:
            lines.append(f"It began at {moment(finding.since)}")
        lines += [plain(f"{one.service} suffers from {one.suffers_from}; it is not the cause") for one in case.victims]
        lines += _elsewhere(case, service)
        lines += [plain(note) for note in (case.plan.notes if case.plan else ())]
    symptoms = [plain(f"Symptom: {citation.says} ({citation.evidence})") for citation in case.impact]
    return fitted(
        Sensed(
            state=state,
            lines=tuple(lines),
            more=(*symptoms, *_evidence(case), *_further(case)),
            steps=tuple(plain(step) for step in case.next_steps),
            gaps=gap_lines(case.gaps),
            incidents=(case.incident.id,),
        )
    )


def _elsewhere(case: CaseFile, service: str) -> list[str]:
    """Say that the cause lies elsewhere, where nothing else says so."""
    subject = case.finding.subject if case.finding is not None else None
    if not service or subject is None or service in subject.name.split("->"):
        return []
    if any(one.service == service for one in case.victims):
        return []
    return [plain(f"The cause lies in {subject.name}, not in {service} itself")]


def _evidence(case: CaseFile) -> Iterable[str]:
    cited = dict.fromkeys(citation.evidence for citation in (case.finding.citations if case.finding else ()))
    by_id = {evidence.id: evidence for evidence in case.evidence}
    ordered = [*(by_id[each] for each in cited if each in by_id), *(e for e in case.evidence if e.id not in cited)]
    return (plain(f"Evidence {e.id} from {e.source}: {_dated(e.excerpt, e.window.end)}") for e in ordered)


def _further(case: CaseFile) -> Iterable[str]:
    for hypothesis in case.hypotheses[1:4]:
        yield plain(f"Also considered ({hypothesis.status}): {hypothesis.statement}")
    for similar in case.similar[:2]:
        yield plain(
            f"Like {similar.incident} of {moment(similar.opened_at)}, {quoted(similar.title)}: {similar.ending}"
        )


def fitted(sensed: Sensed) -> Sensed:
    """Make every line visible, leave the last of each part out until the whole is small, and say how much that was.

    A name that hides something, or that no line has room for, is left out: it could only be shown as something else.
    """
    clean = {
        kind: [name for name in each if plain(name, chars_max=_NAME_MAX_CHARS) == name]
        for kind, each in sensed.names.items()
    }
    names = {kind: _kept(each, room=_NAMES_MAX_CHARS, is_told=False) for kind, each in clean.items()}
    unnamed = sum(map(len, sensed.names.values())) - sum(map(len, names.values()))
    further = (f"{unnamed} further names left out", *sensed.more) if unnamed else sensed.more
    lines = _kept(_plain(sensed.lines), room=_LINES_MAX_CHARS)
    steps = _kept(_plain(sensed.steps), room=_STEPS_MAX_CHARS)
    gaps = _kept(_plain(sensed.gaps), room=_GAPS_MAX_CHARS)
    spent = sum(_size(each) for part in (lines, steps, gaps, *names.values()) for each in part)
    more = _kept(_plain(further), room=max(0, _RESULT_MAX_CHARS - spent))
    shown = {kind: each for kind, each in names.items() if each}
    return replace(sensed, lines=lines, more=more, steps=steps, gaps=gaps, names=shown)


def _plain(lines: Iterable[str]) -> list[str]:
    return [plain(line, chars_max=_WIDEST_CHARS) for line in lines]


def _kept(lines: Sequence[str], *, room: int, is_told: bool = True) -> tuple[str, ...]:
    kept: list[str] = []
    for line in lines:
        room -= _size(line)
        if room < 0:
            break
        kept.append(line)
    left = len(lines) - len(kept)
    return (*kept, f"{counted(left, 'further line')} left out") if left and is_told else tuple(kept)


def _size(line: str) -> int:
    return len(json.dumps(line, ensure_ascii=False)) + 1
