"""Show the sums behind a diagnosis, and hold it to its evidence."""

from __future__ import annotations

from collections.abc import Sequence

from quell.diagnosis._candidate import Candidate
from quell.diagnosis._diagnose import contributions_of
from quell.domain import Alert, Diagnosis, Outcome, Survey


def explain(diagnosis: Diagnosis, survey: Survey, *, alerts: Sequence[Alert] = ()) -> str:
    """Return, for people who tune the engine, where blame lies and every contribution of every hypothesis."""
    scene, ledger, ranked = contributions_of(survey, alerts)
    finding = diagnosis.finding
    lines = [
        f"{finding.outcome.value}: {finding.statement} [{finding.confidence.value}{'; ' + finding.cap if finding.cap else ''}]",
        "blame:",
    ]
    for subject, blame in sorted(ledger.of.items(), key=lambda pair: (-pair[1].share, pair[0].name)):
        since = blame.since.strftime("%H:%M:%S") if blame.since else "?"
        lines.append(
            f"  {blame.share:6.1%} {subject.kind} {subject.name}: {blame.errors:.0f} errors, {blame.lost_ms:.0f} ms, since {since}"
        )
    lines.extend(f"victim: {victim} of {of}" for victim, of in diagnosis.victims)
    for number, candidate in enumerate(ranked, start=1):
        lines.append(_headline(number, candidate))
        lines.extend(
            f"    {c.points:+5.2f} {c.name} x{c.strength:.2f} [{c.family}] {' '.join(c.ids)}: {c.says}"
            for c in sorted(candidate.contributions, key=lambda c: (-c.points, c.name))
        )
    lines.append(
        f"services: {', '.join(scene.services)}; stores: {', '.join(sorted(scene.stores))}; gaps: {len(survey.gaps)}"
    )
    return "\n".join(lines)


def _headline(number: int, candidate: Candidate) -> str:
    since = candidate.since.strftime("%H:%M:%S") if candidate.since else "?"
    return f"{number:2d}. {candidate.score:5.2f} {candidate.category.value} of {candidate.subject.kind} {candidate.subject.name}, since {since}"


def assert_cited(diagnosis: Diagnosis, survey: Survey) -> None:
    """Assert that every claim rests on evidence of this survey.

    Raises:
        AssertionError: a claim cites nothing, or something that the survey does not hold.
    """
    known = {f.evidence.id for f in survey.facts}
    cited = [*diagnosis.finding.citations, *diagnosis.impact]
    for hypothesis in diagnosis.hypotheses:
        assert hypothesis.support, f"{hypothesis.id} has no support"
        cited.extend((*hypothesis.support, *hypothesis.against))
    for citation in cited:
        assert citation.evidence in known, f"cites unknown evidence {citation.evidence}"
        assert citation.says.strip(), f"a citation of {citation.evidence} says nothing"
    if diagnosis.finding.outcome is Outcome.CAUSE_FOUND:
        assert diagnosis.finding.citations, "a cause without evidence"
