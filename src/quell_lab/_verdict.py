"""Compare what Quell found with what was really done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from quell_lab._truth import Truth

Verdict = Literal["first", "top 3", "not"]


def verdict_on(case: Mapping[str, object], truth: Truth) -> Verdict:
    """Tell whether the truth was named first, among the first three, or not; category and object must both match."""
    finding = case.get("finding")
    if isinstance(finding, Mapping) and finding.get("outcome") == "cause_found" and _matches(finding, truth):
        return "first"
    named = list(hypotheses_of(case))[:3]
    return "top 3" if any(_matches(each, truth) for each in named) else "not"


def hypotheses_of(case: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Yield the hypotheses of a case, in their order."""
    found = case.get("hypotheses", [])
    assert isinstance(found, list)
    for each in found:
        if isinstance(each, Mapping):
            yield each


def finding_of(case: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return the finding of a case, once there is one."""
    finding = case.get("finding")
    return finding if isinstance(finding, Mapping) and finding.get("outcome") else None


def claim(named: Mapping[str, object] | None) -> str:
    """Return what a finding or hypothesis blames, in a few words."""
    if named is None:
        return "nothing"
    subject = named.get("subject")
    object_ = f"{subject.get('kind')} {subject.get('name')}" if isinstance(subject, Mapping) else "nobody"
    return f"{named.get('category') or named.get('outcome')}: {object_}"


def blames(case: Mapping[str, object]) -> bool:
    """Tell whether a case blames something."""
    finding = finding_of(case)
    return finding is not None and finding.get("outcome") == "cause_found"


def _matches(named: Mapping[str, object], truth: Truth) -> bool:
    subject = named.get("subject")
    return (
        named.get("category") == truth.category
        and isinstance(subject, Mapping)
        and subject.get("kind") == truth.kind
        and subject.get("name") == truth.subject
    )
