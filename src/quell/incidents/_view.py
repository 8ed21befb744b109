"""One report, whatever its form: sections of lines, and on each claim the evidence that it cites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime
from typing import TypeVar, cast

from quell.diagnosis import CATALOGUE
from quell.domain import Citation, Finding, Gap, Hypothesis, Outcome, one_line
from quell.incidents._charts import telling_curves
from quell.incidents._grouping import listed, still_firing
from quell.incidents._model import CaseFile, Similar
from quell.incidents._words import amount_of, clock_of, moment_of, offset_of, plural, span_of, spark_of

_IMPACT_MAX = 8
_SUPPORT_MAX = 8
_HYPOTHESES_MAX = 5
_TIMELINE_MAX = 40
_ALERTS_NAMED_MAX = 4
_SPARK_WIDTH = 48
_QUERY_MAX = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a report."""

    text: str
    cites: tuple[str, ...] = ()
    label: str = ""
    """A word in front, such as a time, an id or `for`."""
    tone: str = ""
    """How a form that has colours shows it: good, bad, dim, or the kind of a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Something with a heading line of its own and lines below it."""

    id: str
    head: str
    chips: tuple[str, ...] = ()
    groups: tuple[tuple[str, tuple[Line, ...]], ...] = ()
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    key: str
    title: str
    prose: tuple[Line, ...] = ()
    claims: tuple[Line, ...] = ()
    """Every one of them cites evidence."""
    about: tuple[Line, ...] = ()
    """What belongs to the first claim: facts about the finding, not about production."""
    numbered: tuple[Line, ...] = ()
    cards: tuple[Card, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole report."""

    title: str
    chips: tuple[tuple[str, str], ...]
    """(word, tone)"""
    sections: tuple[Section, ...]
    footer: str


def report_of(case: CaseFile) -> Report:
    """Lay out a case file; the same case gives the same report."""
    makers: tuple[Callable[[CaseFile], Section | None], ...] = (
        _going_on,
        _caused,
        _next,
        _curves,
        _timeline,
        _hypotheses,
        _evidence,
        _gaps,
        _similar,
        _cost,
        _asked,
        _briefing,
    )
    sections = [section for make in makers for section in [make(case)] if section is not None]
    incident = case.incident
    chips = [(incident.severity.value, incident.severity.value), (incident.stage.value, "stage")]
    if case.finding:
        chips.append((_OUTCOME_WORDS[case.finding.outcome], case.finding.outcome.value))
        chips.append((f"confidence: {case.finding.confidence}", f"confidence-{case.finding.confidence}"))
    footer = " · ".join(
        part
        for part in (
            incident.id,
            case.run or "no run",
            f"workflow version {case.version}" if case.version else "",
            f"opened {moment_of(incident.opened_at)}",
        )
        if part
    )
    report = Report(title=incident.title, chips=tuple(chips), sections=tuple(sections), footer=footer)
    return _inert(report)


R = TypeVar("R")


def _inert(part: R) -> R:
    """Return a part of a report in which no text hides anything, whoever wrote it; code was cleaned line by line."""
    if isinstance(part, str):
        return cast("R", one_line(part))
    if isinstance(part, tuple):
        return cast("R", tuple(_inert(each) for each in part))
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{f.name: _inert(getattr(part, f.name)) for f in fields(part) if f.name != "code"})
    return part


_OUTCOME_WORDS = {
    Outcome.CAUSE_FOUND: "cause found",
    Outcome.HEALTHY: "healthy",
    Outcome.INCONCLUSIVE: "inconclusive",
}


def _going_on(case: CaseFile) -> Section:
    known = _known(case)
    prose = [Line(text=_opening(case))]
    if case.state:
        prose.append(Line(text=case.state, tone="dim"))
    claims = _cited(case.impact, known)
    if len(claims) > _IMPACT_MAX:
        prose.append(Line(text=f"The {_IMPACT_MAX} worst of {len(claims)} symptoms:"))
    elif not claims and case.finding:
        # Without any evidence it would sound like a quiet night, and nobody knows whether it is one.
        is_blind = not case.evidence_total and case.finding.outcome is Outcome.INCONCLUSIVE
        told = (
            "Nothing could be read that would show a symptom."
            if is_blind
            else "No symptom stands out from the baseline."
        )
        prose.append(Line(text=told))
    return Section(key="going-on", title="What is going on?", prose=tuple(prose), claims=tuple(claims[:_IMPACT_MAX]))


def _opening(case: CaseFile) -> str:
    alerts = [alert for alert in case.alerts if alert.source != "person"]
    if not alerts:
        where = listed(case.plan.focus) if case.plan and case.plan.focus else "all services"
        return f'A person asked: "{case.incident.title}" Looked at: {where}.'
    firing = len(still_firing(alerts))
    first = min(alerts, key=lambda a: a.starts_at)
    where = listed(case.incident.services, names_max=_ALERTS_NAMED_MAX) or "no service that the alerts name"
    state = f"{firing} still firing" if firing else "all of them over"
    return f"{plural(len(alerts), 'alert')} on {where} since {moment_of(first.starts_at)}, {state}."


def _caused(case: CaseFile) -> Section:
    title = "What caused it?"
    finding = case.finding
    if finding is None:
        return Section(key="caused", title=title, prose=(Line(text=case.state or "Not known yet."),))
    known = _known(case)
    cites = tuple(c.evidence for c in finding.citations if c.evidence in known)
    head = Line(text=finding.statement, cites=cites)
    prose = [] if cites else [head]
    claims = [head] if cites else []
    claims += [line for line in _cited(finding.citations, known) if line.text != head.text][:_SUPPORT_MAX]
    for explained in case.victims:
        cited = tuple(e for e in explained.evidence if e in known)
        if cited:
            text = f"{explained.service} suffers from {explained.suffers_from}; it is not the cause"
            claims.append(Line(text=text, cites=cited))
    about = tuple(Line(text=text, tone="dim") for text in _about(finding, case))
    return Section(key="caused", title=title, prose=tuple(prose), claims=tuple(claims), about=about)


def _about(finding: Finding, case: CaseFile) -> list[str]:
    said: list[str] = []
    if finding.category:
        entry = CATALOGUE[finding.category]
        said.append(f"{entry.title}: {entry.meaning}")
    if finding.subject:
        said.append(f"Object at fault: {finding.subject.kind} {finding.subject.name}")
    if finding.since:
        anchor = _anchor(case)
        said.append(f"Since: {moment_of(finding.since)} ({offset_of(finding.since, anchor)} from {_anchor_word(case)})")
    cap = f", because {finding.cap}" if finding.cap else ""
    said.append(f"Confidence: {finding.confidence}{cap}")
    return said


def _next(case: CaseFile) -> Section:
    steps = [Line(text=step) for step in case.next_steps]
    if not steps:
        steps = [Line(text=f"Follow the investigation: quell watch --incident {case.incident.id}")]
    return Section(key="next", title="What can I do next?", numbered=tuple(steps))


def _curves(case: CaseFile) -> Section | None:
    rows = []
    curves = telling_curves(case)
    for curve in curves:
        values = [value for _, value in curve.points]
        if values:
            low, high = amount_of(min(values), curve.unit), amount_of(max(values), curve.unit)
            rows.append(
                (
                    curve.subject,
                    curve.measure,
                    spark_of(values, width=_SPARK_WIDTH),
                    f"{low} .. {high}",
                )
            )
    if not rows:
        return None
    first = min(at for curve in curves for at, _ in curve.points)
    last = max(at for curve in curves for at, _ in curve.points)
    more = len(case.curves) - len(curves)
    left_out = f" {plural(more, 'course')} that kept closer to the usual left out." if more else ""
    prose = (Line(text=f"From {moment_of(first)} to {clock_of(last)}.{left_out}", tone="dim"),)
    columns = ("subject", "measure", "course", "range")
    return Section(key="curves", title="Charts of the evidence", prose=prose, columns=columns, rows=tuple(rows))


def _timeline(case: CaseFile) -> Section:
    known, anchor = _known(case), _anchor(case)
    curated = [
        entry
        for entry in case.timeline
        if entry.kind != "stage" or " -> " not in entry.text or "-> resolved" in entry.text
    ]
    entries = curated[:_TIMELINE_MAX]
    lines = tuple(
        Line(
            label=f"{clock_of(entry.at)} {offset_of(entry.at, anchor)}",
            text=entry.text,
            cites=(entry.evidence,) if entry.evidence in known and entry.evidence else (),
            tone=entry.kind,
        )
        for entry in entries
    )
    note = f"Times are UTC; offsets count from {_anchor_word(case)}."
    if len(curated) > _TIMELINE_MAX:
        note += f" The first {_TIMELINE_MAX} of {len(curated)} moments; all of them are in the JSON form."
    return Section(
        key="timeline",
        title="Timeline",
        prose=(Line(text=note, tone="dim"),),
        cards=(Card(id="", head="", groups=(("", lines),)),),
    )


def _hypotheses(case: CaseFile) -> Section:
    known = _known(case)
    cards = tuple(_hypothesis(each, known) for each in case.hypotheses[:_HYPOTHESES_MAX])
    prose: tuple[Line, ...] = ()
    if not cards:
        prose = (Line(text="No hypothesis has evidence behind it."),)
    elif len(case.hypotheses) > _HYPOTHESES_MAX:
        prose = (Line(text=f"The {_HYPOTHESES_MAX} best of {len(case.hypotheses)}."),)
    return Section(key="hypotheses", title="Hypotheses", prose=prose, cards=cards)


def _hypothesis(hypothesis: Hypothesis, known: frozenset[str]) -> Card:
    support = tuple(_cited(hypothesis.support, known))
    against = tuple(_cited(hypothesis.against, known))
    return Card(
        id=hypothesis.id,
        head=hypothesis.statement,
        chips=(
            hypothesis.status,
            f"confidence {hypothesis.confidence}",
            CATALOGUE[hypothesis.category].title,
            f"score {hypothesis.score:.2f}",
        ),
        groups=(
            ("for", support),
            ("against", against or (Line(text="nothing found that speaks against it", tone="none"),)),
        ),
    )


def _evidence(case: CaseFile) -> Section:
    cards = tuple(
        Card(
            id=evidence.id,
            head=evidence.excerpt,
            chips=(
                evidence.source,
                evidence.question.value,
                f"{clock_of(evidence.window.start)}-{clock_of(evidence.window.end)}",
                f"sha256 {evidence.digest[:12]}",
            ),
            code=_query(evidence.query),
        )
        for evidence in case.evidence
    )
    rest = case.evidence_total - len(cards)
    text = f"{plural(len(cards), 'piece')} of evidence shown"
    text += f"; {rest} less relevant ones left out." if rest > 0 else "."
    return Section(key="evidence", title="Evidence", prose=(Line(text=text, tone="dim"),), cards=cards)


def _query(query: str) -> str:
    """Return a query line by line, each line safe to show."""
    lines = [one_line(line, chars_max=300) for line in query[:_QUERY_MAX].splitlines()]
    return "\n".join(line for line in lines if line) + (" …" if len(query) > _QUERY_MAX else "")


def _gaps(case: CaseFile) -> Section:
    if not case.gaps:
        said = "Every question was answered." if case.finding else "Nothing was asked yet."
        return Section(key="gaps", title="Gaps", prose=(Line(text=said),))
    silent: dict[str, list[Gap]] = {}
    rows: list[Line] = []
    for gap in case.gaps:
        if gap.reason == "unsupported":
            silent.setdefault(gap.source, []).append(gap)
        else:
            label = f"{gap.source} {gap.question.value}"
            rows.append(Line(label=label, text=f"{gap.reason}: {one_line(gap.detail, chars_max=300)}", tone="bad"))
    for source in sorted(silent):
        kinds = ", ".join(gap.question.value for gap in silent[source])
        rows.append(Line(label=source, text=f"does not answer: {kinds}", tone="dim"))
    prose = (Line(text="What could not be learned, and therefore limits what can be concluded:"),)
    return Section(key="gaps", title="Gaps", prose=prose, cards=(Card(id="", head="", groups=(("", tuple(rows)),)),))


def _similar(case: CaseFile) -> Section:
    title = "Similar earlier incidents"
    if not case.similar:
        said = "None in this store." if case.finding else "Not looked for yet."
        return Section(key="similar", title=title, prose=(Line(text=said),))
    cards = tuple(_earlier(one, case) for one in case.similar)
    return Section(key="similar", title=title, cards=cards)


def _earlier(one: Similar, case: CaseFile) -> Card:
    ago = span_of((case.incident.opened_at - one.opened_at).total_seconds())
    same = tuple(Line(text=text) for text in one.same)
    differed = tuple(Line(text=text) for text in one.differed)
    return Card(
        id=one.incident,
        head=one.title,
        chips=(f"{ago} before", f"{one.score:.0%} alike", one.ending),
        groups=(
            ("the same", same),
            ("what differed", differed or (Line(text="nothing that is recorded", tone="none"),)),
        ),
    )


def _cost(case: CaseFile) -> Section | None:
    cost = case.cost
    if cost is None:
        return None
    cpu = f", {cost.cpu_s * 1000:.0f} ms of processor time for the analysis" if cost.cpu_s is not None else ""
    waited = f" after {span_of(cost.waited_s)} of letting it unfold" if cost.waited_s else ""
    prose = (
        Line(text=f"{span_of(cost.seconds)} in {plural(cost.steps, 'step')}, {cost.reads} of them reads{waited}{cpu}."),
        Line(text=f"Model tokens: {cost.model_tokens}. Money: {cost.money_usd:.2f} USD. No model was asked."),
    )
    rows = tuple((time.stage, str(time.steps), span_of(time.seconds)) for time in cost.stages)
    return Section(key="cost", title="Time and cost", prose=prose, columns=("stage", "steps", "time"), rows=rows)


def _asked(case: CaseFile) -> Section | None:
    plan = case.plan
    if plan is None:
        return None
    rows = (
        ("question", plan.question),
        (
            "looked at",
            f"{moment_of(plan.window.start)} to {clock_of(plan.window.end)} ({span_of(plan.window.seconds)})",
        ),
        (
            "compared with",
            f"{moment_of(plan.baseline.start)} to {clock_of(plan.baseline.end)} ({span_of(plan.baseline.seconds)})",
        ),
        ("in focus", listed(plan.focus, names_max=12) or "all services"),
    )
    notes = tuple(Line(text=note) for note in plan.notes)
    return Section(key="asked", title="What was asked", prose=notes, columns=("", ""), rows=rows)


def _briefing(case: CaseFile) -> Section | None:
    briefing = case.briefing
    if briefing is None:
        return None
    note = Line(text=f"{briefing.tokens} of {briefing.budget_tokens} tokens; what a mind would be handed.", tone="dim")
    code = "\n".join(_indented(line) for line in briefing.text.splitlines())
    return Section(key="briefing", title="Briefing", prose=(note,), code=code)


def _indented(line: str) -> str:
    kept = len(line) - len(line.lstrip(" "))
    return " " * kept + one_line(line, chars_max=600)


def _known(case: CaseFile) -> frozenset[str]:
    return frozenset(evidence.id for evidence in case.evidence)


def _cited(citations: Iterable[Citation], known: frozenset[str]) -> list[Line]:
    """Return claims that cite evidence which exists, each said once; a claim without it is not made."""
    cites: dict[str, dict[str, None]] = {}
    for citation in citations:
        if citation.evidence in known:
            cites.setdefault(citation.says, {})[citation.evidence] = None
    return [Line(text=says, cites=tuple(evidence)) for says, evidence in cites.items()]


def _anchor(case: CaseFile) -> datetime:
    starts: Sequence[datetime] = [alert.starts_at for alert in case.alerts]
    return min(starts, default=case.incident.opened_at)


def _anchor_word(case: CaseFile) -> str:
    return "the first alert" if any(alert.source != "person" for alert in case.alerts) else "the question"


def claims_of(report: Report) -> tuple[Line, ...]:
    """Return every line of a report that claims something about production."""
    claims = [line for section in report.sections for line in section.claims]
    for section in report.sections:
        if section.key == "hypotheses":
            claims += [
                line for card in section.cards for _, lines in card.groups for line in lines if line.tone != "none"
            ]
    return tuple(claims)
