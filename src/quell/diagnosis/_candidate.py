"""A proposed cause under construction: a transparent sum of named, bounded, cited contributions."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from quell.diagnosis._blame import Ledger
from quell.diagnosis._scene import Scene, earliest
from quell.diagnosis._weights import THRESHOLDS, WEIGHTS, WORDING_MAX, Family
from quell.domain import Category, Citation, Subject, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One reason for or against."""

    name: str
    """Key of the table of weights."""
    strength: float
    """0..1"""
    ids: tuple[str, ...]
    says: str

    @property
    def points(self) -> float:
        """What it adds to the score."""
        return WEIGHTS[self.name].points * self.strength

    @property
    def family(self) -> Family:
        """Kind of signal it rests on."""
        return WEIGHTS[self.name].family


@dataclass(slots=True, kw_only=True)
class Candidate:
    """One category at one subject, with everything that speaks for and against it."""

    category: Category
    subject: Subject
    at: str
    """Node whose trouble it would explain: a service or store name, or an edge's name."""
    since: datetime | None = None
    detail: str = ""
    """What the statement adds after category and subject."""
    contributions: list[Contribution] = field(default_factory=list)

    def add(self, name: str, *, ids: Iterable[str] = (), says: str = "", strength: float = 1.0) -> Candidate:
        """Weigh one contribution in; a name counts once, at its greatest strength."""
        strength = min(1.0, max(0.0, strength))
        old = next((c for c in self.contributions if c.name == name), None)
        if strength <= 0 or (old is not None and old.strength >= strength):
            return self
        if old is not None:
            self.contributions.remove(old)
        cited = tuple(dict.fromkeys(ids))[: THRESHOLDS.citations_max]
        self.contributions.append(
            Contribution(
                name=name, strength=strength, ids=cited, says=one_line(says, chars_max=300) or WEIGHTS[name].meaning
            )
        )
        return self

    def scale(self, names: Collection[str], factor: float) -> None:
        """Let some contributions weigh less."""
        if factor >= 1:
            return
        kept = [c if c.name not in names else replace(c, strength=c.strength * factor) for c in self.contributions]
        self.contributions = [c for c in kept if c.strength > 0]

    def has(self, *names: str) -> bool:
        """Tell whether any of these was weighed in."""
        return any(c.name in names for c in self.contributions)

    def strength(self, name: str) -> float:
        """Return the strength of one contribution, 0 when it is not there."""
        return next((c.strength for c in self.contributions if c.name == name), 0.0)

    @property
    def hard_score(self) -> float:
        """The sum without words and flows: what text that anybody may write cannot change."""
        return sum(c.points for c in self.contributions if c.family not in {"logs", "flows"})

    @property
    def score(self) -> float:
        """The whole sum; words add at most a hint to it."""
        words = sum(c.points for c in self.contributions if c.family == "logs")
        flows = sum(c.points for c in self.contributions if c.family == "flows")
        return self.hard_score + flows + min(WORDING_MAX, words)

    @property
    def families(self) -> frozenset[Family]:
        """Kinds of signal that support it with evidence."""
        return frozenset(c.family for c in self.contributions if c.points > 0 and c.ids)

    @property
    def support(self) -> tuple[Citation, ...]:
        """Evidence for it, weightiest first, each id once."""
        return _citations(sorted((c for c in self.contributions if c.points > 0), key=lambda c: (-c.points, c.name)))

    @property
    def against(self) -> tuple[Citation, ...]:
        """Evidence against it, weightiest first, each id once."""
        return _citations(sorted((c for c in self.contributions if c.points < 0), key=lambda c: (c.points, c.name)))


def _citations(contributions: list[Contribution]) -> tuple[Citation, ...]:
    found: dict[str, Citation] = {}
    for contribution in contributions:
        for evidence in contribution.ids:
            found.setdefault(evidence, Citation(evidence=evidence, says=contribution.says))
    return tuple(found.values())


def at_locus(
    scene: Scene, ledger: Ledger, category: Category, name: str, *, subject: Subject | None = None
) -> Candidate:
    """Begin a candidate at a node with the part of the trouble that arises there."""
    node = scene.subject_of(name)
    candidate = Candidate(category=category, subject=subject or node, at=name)
    return with_locus(candidate, ledger, ((node, 1.0),))


def with_locus(candidate: Candidate, ledger: Ledger, parts: Iterable[tuple[Subject, float]]) -> Candidate:
    """Weigh in the trouble of some objects, each by how far the candidate would account for it."""
    share, ids, since = 0.0, [], [candidate.since]
    for subject, factor in parts:
        blame = ledger.get(subject)
        if blame.share > 0 and factor > 0:
            share += blame.share * factor
            ids.extend(blame.ids)
            since.append(blame.since)
    candidate.since = earliest(since)
    if share > 0:
        candidate.add(
            "locus", ids=ids, strength=share, says=f"{min(1.0, share):.0%} of the added errors and time arise here"
        )
    return candidate
