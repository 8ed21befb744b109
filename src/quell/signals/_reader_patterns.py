"""Merge near-identical log templates, whatever the order they come in.

Templates that differ in one word become one template with a hole when that word takes more values than an enumeration
would: the threshold grows with support, so that `Started|Paused|Resumed` stays three templates.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

HOLE = "<*>"
_VALUES_MIN = 5
_ROUNDS_MAX = 3
_WORDS_MAX = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How often one template was seen, in the window and before."""

    service: str
    severity: str
    template_id: str
    template: str
    count: int
    count_before: int
    first_seen: datetime
    last_seen: datetime
    example: str

    @property
    def order(self) -> tuple[str, str, str, str]:
        """Sort key that tells every two templates apart."""
        return (self.service, self.severity, self.template, self.template_id)


def merge_templates(templates: Sequence[Template]) -> list[Template]:
    """Merge within each service and severity; any order of the same templates gives the same result."""
    groups: dict[tuple[str, str, int], list[Template]] = defaultdict(list)
    for template in sorted(templates, key=lambda one: one.order):
        groups[template.service, template.severity, len(template.template.split())].append(template)
    merged: list[Template] = []
    for _, group in sorted(groups.items()):
        merged.extend(_merge_group(group))
    return sorted(merged, key=lambda one: one.order)


def _merge_group(group: list[Template]) -> list[Template]:
    for _ in range(_ROUNDS_MAX):
        holes = _holes(group)
        if not holes:
            break
        together: dict[str, list[Template]] = defaultdict(list)
        for template in group:
            words = template.template.split()
            for place in holes.get(template.template, ()):
                words[place] = HOLE
            together[" ".join(words)].append(template)
        group = [_one(text, members) for text, members in sorted(together.items())]
    return group


def _holes(group: Sequence[Template]) -> dict[str, set[int]]:
    """Find, for each template, the words that vary among its neighbours more than an enumeration would."""
    values: dict[tuple[int, tuple[str, ...]], dict[str, int]] = defaultdict(dict)
    for template in group:
        words = template.template.split()
        for place in range(min(len(words), _WORDS_MAX) if len(words) > 1 else 0):
            around = (*words[:place], *words[place + 1 :])
            known = values[place, around]
            known[words[place]] = known.get(words[place], 0) + template.count + template.count_before
    holes: dict[str, set[int]] = defaultdict(set)
    for template in group:
        words = template.template.split()
        for place in range(min(len(words), _WORDS_MAX) if len(words) > 1 else 0):
            seen = values[place, (*words[:place], *words[place + 1 :])]
            if words[place] != HOLE and _varies(seen):
                holes[template.template].add(place)
    return holes


def _varies(seen: dict[str, int]) -> bool:
    support = sum(seen.values())
    return len(seen) > max(_VALUES_MIN, 1.5 * math.log2(max(2, support)))


def _one(text: str, members: Sequence[Template]) -> Template:
    if len(members) == 1 and members[0].template == text:
        return members[0]
    first = members[0]
    return replace(
        first,
        template_id=hashlib.sha256(text.encode()).hexdigest()[:16],
        template=text,
        count=sum(one.count for one in members),
        count_before=sum(one.count_before for one in members),
        first_seen=min(one.first_seen for one in members),
        last_seen=max(one.last_seen for one in members),
        example=min(one.example for one in members),
    )
