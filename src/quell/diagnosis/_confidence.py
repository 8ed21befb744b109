"""How sure a claim may be: computed from the score, capped by what could not be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from quell.diagnosis._candidate import Candidate
from quell.diagnosis._scene import Scene
from quell.diagnosis._weights import THRESHOLDS
from quell.domain import Category, Confidence, Gap, QuestionKind, one_line

_ORDER: Final = (Confidence.NONE, Confidence.LOW, Confidence.MEDIUM, Confidence.HIGH)
_CALLS: Final = frozenset({QuestionKind.ERROR_RATES, QuestionKind.SLOW_OPERATIONS})
_DETAIL: Final = frozenset({QuestionKind.EXEMPLARS, QuestionKind.ATTRIBUTE_DIFF, QuestionKind.FLOW_BREAKS})
"""Questions that illustrate rather than decide."""
_RESOURCES: Final = frozenset(
    {
        Category.CPU_SATURATION,
        Category.MEMORY_EXHAUSTION,
        Category.POOL_EXHAUSTION,
        Category.DISK_FULL,
        Category.DESCRIPTOR_EXHAUSTION,
        Category.QUEUE_BACKLOG,
        Category.CLOCK_SKEW,
        Category.LOCK_CONTENTION,
    }
)
_HARD: Final = ("exit_oom", "exit_repeated", "exit_final", "callee_refused", "queue_growth")
_PLACE: Final = frozenset(
    {"locus", "suspect", "first_mover", "alerted", "all_callers", "callee_steady", "one_edge_only"}
)
"""Contributions that say where, not what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A confidence and why it is not higher."""

    confidence: Confidence
    cap: str = ""


def lower(first: Confidence, second: Confidence) -> Confidence:
    """Return the lesser of two."""
    return min(first, second, key=_ORDER.index)


def is_cause(scene: Scene, candidate: Candidate) -> bool:
    """Tell whether a candidate passes the bar: enough points without words, and trouble that arises where it points."""
    if candidate.hard_score < THRESHOLDS.bar or candidate.families <= {"logs", "flows", "timing"}:
        return False
    if candidate.strength("locus") >= THRESHOLDS.locus_min or candidate.has(*_HARD):
        return True
    alerted = any(
        a.service == candidate.at and a.status == "firing" and a.symptom == "saturation" for a in scene.alerts
    )
    return alerted and candidate.has("resource_full")


def judge(scene: Scene, candidate: Candidate, rivals: Sequence[Candidate]) -> Judgement:
    """Compute the confidence of a candidate among its rivals, with the reason that caps it."""
    score = candidate.hard_score
    level = (
        Confidence.HIGH
        if score >= THRESHOLDS.high_score
        else Confidence.MEDIUM
        if score >= THRESHOLDS.medium_score
        else Confidence.LOW
    )
    reasons: list[tuple[Confidence, str]] = []
    if level is not Confidence.HIGH:
        reasons.append((level, "the evidence carries no more"))
    for cap, reason in (*_own_caps(candidate, rivals), *_gap_caps(scene, candidate.category)):
        reasons.append((cap, reason))
        level = lower(level, cap)
    return Judgement(
        confidence=level,
        cap="; ".join(dict.fromkeys(r for cap, r in reasons if cap is level)) if level is not Confidence.HIGH else "",
    )


def _own_caps(candidate: Candidate, rivals: Sequence[Candidate]) -> list[tuple[Confidence, str]]:
    caps: list[tuple[Confidence, str]] = []
    kinds = candidate.families - {"logs", "flows", "timing"}
    if not kinds:
        caps.append((Confidence.LOW, "only wording of log lines speaks for it"))
    elif candidate.has("wording") and not _names_kind(candidate):
        caps.append((Confidence.LOW, "only wording of log lines tells the kind of cause"))
    elif len(kinds) == 1:
        caps.append((Confidence.MEDIUM, "only one kind of signal speaks for it"))
    if candidate.category is Category.NOVEL:
        caps.append((Confidence.MEDIUM, "the place is clear and the kind of cause is not"))
    if candidate.strength("locus") < THRESHOLDS.locus_min:
        caps.append((Confidence.MEDIUM, "little of the trouble was seen to arise here"))
    if candidate.since is None:
        caps.append((Confidence.MEDIUM, "it cannot be told since when"))
    doubt = sum(c.points for c in candidate.contributions if c.points < 0)
    if doubt <= -1.0:
        caps.append((Confidence.MEDIUM, "some evidence speaks against it"))
    rival = next((r for r in rivals if r is not candidate and _is_rival(candidate, r)), None)
    if rival is not None and rival.hard_score > candidate.hard_score - THRESHOLDS.margin:
        caps.append(
            (
                Confidence.MEDIUM,
                one_line(
                    f"{rival.category.value.replace('_', ' ')} of {rival.subject.name} is nearly as likely",
                    chars_max=300,
                ),
            )
        )
    return caps


def _names_kind(candidate: Candidate) -> bool:
    """Tell whether anything but words says what kind of cause it is."""
    return any(
        c.points > 0 and c.name not in _PLACE and c.family not in {"logs", "flows"} for c in candidate.contributions
    )


def _is_rival(candidate: Candidate, other: Candidate) -> bool:
    if other.category is Category.NOVEL and candidate.at in {other.at, *other.at.split("->")}:
        return False
    return (other.category, other.subject) != (candidate.category, candidate.subject)


def hidden(scene: Scene) -> dict[QuestionKind, str]:
    """Return the questions that no source answered, with the reason."""
    sources = {f.evidence.source for f in scene.survey.facts}
    found: dict[QuestionKind, str] = {}
    for kind in QuestionKind:
        gaps = sorted(
            (g for g in scene.survey.gaps if g.question is kind), key=lambda g: (g.source, g.reason, g.detail)
        )
        if gaps and sources <= {g.source for g in gaps if g.reason != "partial"}:
            found[kind] = gaps[0].reason
    return found


def wounded(scene: Scene) -> dict[QuestionKind, Gap]:
    """Return the questions to which some source gave less than it should, though another may have answered."""
    ranked = sorted(scene.survey.gaps, key=lambda g: (g.question, g.source, g.reason, g.detail, g.query))
    return {g.question: g for g in reversed(ranked) if g.reason not in {"unsupported", "empty"}}


def _gap_caps(scene: Scene, category: Category) -> list[tuple[Confidence, str]]:
    caps: list[tuple[Confidence, str]] = []
    needed = {QuestionKind.CHANGES, QuestionKind.EDGE_GAPS, *_CALLS}
    if category in _RESOURCES:
        needed.add(QuestionKind.METRIC_SHIFTS)
    unseen = hidden(scene)
    if unseen.keys() >= _CALLS or QuestionKind.EDGE_GAPS in unseen:
        caps.append((Confidence.LOW, "calls between services could not be read: where the trouble arises is not known"))
    caps.extend(
        (Confidence.MEDIUM, f"{kind.value.replace('_', ' ')} could not be read ({unseen[kind]})")
        for kind in sorted(needed & unseen.keys())
    )
    if QuestionKind.METRIC_SHIFTS in unseen and QuestionKind.METRIC_SHIFTS not in needed:
        caps.append(
            (
                Confidence.MEDIUM,
                f"metrics could not be read ({unseen[QuestionKind.METRIC_SHIFTS]}): other causes are not ruled out",
            )
        )
    caps.extend(
        (Confidence.MEDIUM, f"{kind.value.replace('_', ' ')}: {gap.source} answered {gap.reason}")
        for kind, gap in sorted(wounded(scene).items())
        if kind in needed | {QuestionKind.METRIC_SHIFTS} and kind not in unseen
    )
    return caps


def are_calls_read(scene: Scene) -> bool:
    """Tell whether calls of services were looked at: some are told, or who was asked for them found none that got worse.

    A source that knows of no calls at all answers with a gap, so an answer without rows means that all are as before.
    """
    survey = scene.survey
    return bool(scene.operations) or (bool(survey.facts) and not any(g.question in _CALLS for g in survey.gaps))


def healthy_judgement(scene: Scene) -> Judgement:
    """Compute how sure "nothing is wrong" may be."""
    unseen = hidden(scene)
    if not are_calls_read(scene) or unseen.keys() >= _CALLS:
        return Judgement(confidence=Confidence.NONE, cap="calls of services could not be read")
    missing = sorted({*unseen, *wounded(scene)} - _DETAIL)
    if missing:
        return Judgement(
            confidence=Confidence.MEDIUM,
            cap=f"not everything could be read: {', '.join(m.value.replace('_', ' ') for m in missing)}",
        )
    return Judgement(confidence=Confidence.HIGH)
