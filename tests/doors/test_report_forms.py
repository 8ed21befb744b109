"""Reports: three answers first, every claim cited, nothing that a stranger wrote acts."""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from quell.config import InvestigationSettings, JournalSettings
from quell.domain import Citation, Evidence, Observation, QuestionKind, Window
from quell.incidents import CaseFile, Curve, CurveAsk, Desk, Request, render
from quell.incidents._view import claims_of, report_of
from quell.runs import Runs
from quell.signals import Reader
from tests._story import HOSTILE, NOON, ONSET, RecordedReader, alert, bad_release
from tests.conftest import FakeClock

pytestmark = pytest.mark.timeout(20)

HEADINGS = ["What is going on?", "What caused it?", "What can I do next?"]
CITED = re.compile(r"\[(E\d+(?:, E\d+)*)\]")


async def curves(ask: CurveAsk) -> tuple[Curve, ...]:
    """Draw an error share that jumps at the onset, for each service asked for."""
    moments = [ask.window.start + timedelta(seconds=5 * i) for i in range(int(ask.window.seconds // 5))]
    return tuple(
        Curve(
            subject=service,
            measure="error share",
            unit="share",
            points=tuple((at, 0.48 if at >= ONSET else 0.004) for at in moments),
        )
        for service in ask.services
    )


async def investigated(state_dir: Path, *, reader: RecordedReader, request: Request | None = None) -> CaseFile:
    clock = FakeClock()
    clock.at = NOON + timedelta(seconds=60)
    runs = await Runs.open(JournalSettings(), state_dir=state_dir, clock=clock, entropy=os.urandom, version="v1")
    readers: Sequence[Reader] = [reader]
    bounds = replace(InvestigationSettings(), settle_s=0.0, read_timeout_s=0.5)
    desk = Desk(runs=runs, readers=readers, settings=bounds, clock=clock, entropy=os.urandom, curves=curves)
    await runs.launch()
    try:
        if request is None:
            (incident,) = await desk.handle([alert(), alert("checkout")])
            run_id = incident.run or ""
        else:
            run_id = (await desk.investigate(request)).id
        await runs.wait(run_id, timeout_s=10)
        return await desk.case_file(run_id)
    finally:
        await runs.close()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> CaseFile:
    reader = RecordedReader(broken=frozenset({QuestionKind.FLOW_BREAKS}))
    return asyncio.run(investigated(tmp_path_factory.mktemp("report"), reader=reader))


@pytest.fixture(scope="module")
def hostile_case(tmp_path_factory: pytest.TempPathFactory) -> CaseFile:
    """A case whose every text was written by an attacker: log lines, names, summaries, hints."""
    rows = bad_release(text=HOSTILE)
    found = asyncio.run(investigated(tmp_path_factory.mktemp("hostile"), reader=RecordedReader(rows=rows)))
    return poisoned(found)


def poisoned(case: CaseFile, *, text: str = HOSTILE) -> CaseFile:
    assert case.finding is not None
    assert case.plan is not None
    return replace(
        case,
        incident=replace(case.incident, title=text, services=(text,)),
        alerts=tuple(replace(each, summary=text, service=text, name=text) for each in case.alerts),
        finding=replace(case.finding, statement=text, cap=text),
        hypotheses=tuple(
            replace(each, statement=text, support=tuple(replace(c, says=text) for c in each.support))
            for each in case.hypotheses
        ),
        impact=tuple(replace(each, says=text) for each in case.impact),
        next_steps=(text,),
        evidence=tuple(replace(each, excerpt=text, query=f"{text}\n```\n{text}", source=text) for each in case.evidence),
        gaps=tuple(replace(each, detail=text, source=text) for each in case.gaps),
        timeline=tuple(replace(each, text=text) for each in case.timeline),
        plan=replace(case.plan, question=text, notes=(text,), focus=(text,)),
        curves=tuple(replace(each, subject=text, measure=text) for each in case.curves),
        version=text,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_the_three_answers_stand_first_and_in_order(case: CaseFile, form: Literal["text", "markdown", "html"]) -> None:
    text = html.unescape(render(case, form))
    places = [text.index(heading) for heading in HEADINGS]
    assert places == sorted(places)
    others = ["Timeline", "Hypotheses", "Evidence", "Gaps", "Similar earlier incidents", "Time and cost"]
    rest = [
        text.index(f">{other}<" if form == "html" else f"\n{other}\n" if form == "text" else f"## {other}\n")
        for other in others
    ]
    assert rest == sorted(rest)
    assert rest[0] > places[-1]


def test_every_claim_of_the_report_cites_evidence_that_exists(case: CaseFile) -> None:
    known = {evidence.id for evidence in case.evidence}
    claims = claims_of(report_of(case))
    assert len(claims) >= 6
    for claim in claims:
        assert claim.cites, f"without evidence: {claim.text}"
        assert set(claim.cites) <= known
    markdown = render(case, "markdown")
    for claim in claims:
        plain = markdown.replace("\\", "")
        lines = [line for line in plain.splitlines() if claim.text in line]
        assert any(line.endswith(f"[{', '.join(claim.cites)}]") for line in lines), (
            f"shown without evidence: {claim.text}"
        )
    cited = {identifier for group in CITED.findall(markdown) for identifier in group.split(", ")}
    assert cited
    assert cited <= known


def test_a_claim_whose_evidence_does_not_exist_is_not_made(case: CaseFile) -> None:
    made_up = Citation(evidence="E999", says="the moon did it")
    told = replace(case, impact=(*case.impact, made_up))
    for form in ("text", "markdown", "html"):
        assert "the moon did it" not in render(told, form)


def test_each_form_of_one_case_is_the_same_every_time(case: CaseFile) -> None:
    for form in ("text", "markdown", "json", "html"):
        assert render(case, form) == render(case, form)


def test_the_json_form_holds_everything(case: CaseFile) -> None:
    body = json.loads(render(case, "json"))
    assert body["kind"] == "case_file"
    assert body["ok"] is True
    assert body["finding"]["outcome"] == "cause_found"
    assert body["finding"]["subject"] == {"kind": "service", "name": "payment"}
    assert body["cost"]["model_tokens"] == 0
    assert body["cost"]["money_usd"] == 0
    assert body["gaps"][0]["question"] == "flow_breaks"
    assert {"hypotheses", "impact", "timeline", "briefing", "similar", "curves", "plan", "run", "version"} <= set(body)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_text_form_keeps_to_the_width_of_the_terminal(case: CaseFile, width: int) -> None:
    assert max(len(line) for line in render(case, "text", width=width).splitlines()) <= width


def test_gaps_are_told_with_their_reason(case: CaseFile) -> None:
    text = render(case, "text")
    assert "flow_breaks" in text
    assert "hung up" in text


def test_a_case_without_a_finding_says_where_it_stands(case: CaseFile) -> None:
    blank = CaseFile(incident=case.incident, alerts=case.alerts, plan=None, finding=None, state="It runs.")
    for form in ("text", "markdown", "html"):
        shown = html.unescape(render(blank, form))
        assert "It runs." in shown
        assert all(heading in shown for heading in HEADINGS)


def test_a_hostile_line_cannot_reach_the_terminal(hostile_case: CaseFile) -> None:
    text = render(hostile_case, "text")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "IGNORE ALL" in text, "it is shown, as what it is"


def test_a_hostile_line_cannot_act_in_markdown(hostile_case: CaseFile) -> None:
    from markdown_it import MarkdownIt  # noqa: PLC0415 - only this test reads Markdown

    source = render(hostile_case, "markdown")
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(source)
    assert "<script" not in rendered
    assert "<img" not in rendered
    assert 'href="http' not in rendered
    assert "\x1b" not in source


def test_a_hostile_line_cannot_become_markup(hostile_case: CaseFile) -> None:
    page = render(hostile_case, "html")
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("<style>") == 1
    assert "\x1b" not in page


def test_the_page_asks_for_nothing_and_allows_nothing(case: CaseFile) -> None:
    page = render(case, "html")
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "url(" not in page
    assert " style=" not in page
    assert "@import" not in page


def test_charts_show_the_curve_the_baseline_the_onset_and_the_change(case: CaseFile) -> None:
    page = render(case, "html")
    assert page.count("<svg") == len(case.curves)
    assert 'class="band"' in page
    assert 'class="trouble"' in page
    assert "mark-onset" in page
    assert "mark-change" in page
    assert "most extreme 48 %" in html.unescape(page)


def test_a_hole_in_a_curve_stays_a_hole(case: CaseFile) -> None:
    start = NOON - timedelta(minutes=2)
    near = [(start + timedelta(seconds=5 * i), 1.0) for i in range(6)]
    far = [(start + timedelta(seconds=90 + 5 * i), 2.0) for i in range(6)]
    holed = Curve(subject="payment", measure="calls", unit="per_s", points=tuple(near + far))
    page = render(replace(case, curves=(holed,)), "html")
    assert len(re.findall(r'class="curve"', page)) == 2


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-3.0, 4.0], [1e12, 1e-12], [float(2**40), 0.0]])
@pytest.mark.parametrize("unit", ["share", "ms", "per_s", "number", "bytes", "s"])
def test_any_curve_can_be_drawn(case: CaseFile, values: list[float], unit: str) -> None:
    points = tuple((NOON + timedelta(seconds=5 * i), value) for i, value in enumerate(values))
    curve = Curve(subject="x", measure="y", unit=unit, points=points)  # type: ignore[arg-type]  # one of the units
    page = render(replace(case, curves=(curve,)), "html")
    assert "nan" not in page.lower().split("</style>")[1].split("<h2")[4]
    numbers = [float(number) for path in re.findall(r'd="M([^"]+)"', page) for number in re.findall(r"-?[\d.]+", path)]
    assert numbers
    assert all(-1 <= number <= 441 for number in numbers)


def test_a_question_that_finds_nothing_wrong_is_answered_so(tmp_path: Path) -> None:
    asked = {QuestionKind.ERROR_RATES, QuestionKind.SLOW_OPERATIONS, QuestionKind.EDGE_GAPS}
    healthy: dict[QuestionKind, tuple[Observation, ...]] = {
        kind: tuple(row for row in rows if getattr(row, "errors", 1) < 2)
        for kind, rows in bad_release().items()
        if kind in asked
    }
    request = Request(text="is catalogue slow?", since_s=90)
    case = asyncio.run(investigated(tmp_path, reader=RecordedReader(rows=healthy), request=request))
    assert case.finding is not None
    assert case.finding.category is None
    shown = render(case, "text")
    assert "A person asked" in shown
    assert not claims_of(report_of(case)) or all(line.cites for line in claims_of(report_of(case)))


def test_evidence_can_be_asked_again(case: CaseFile) -> None:
    markdown = render(case, "markdown")
    for evidence in case.evidence:
        assert isinstance(evidence, Evidence)
        assert evidence.query in markdown
        assert isinstance(evidence.window, Window)
