"""The order of the records of a log: what was edited, deleted, inserted or moved, told from where each one belongs.

Every record is hashed together with its number, so one that was moved or renumbered still says where it belongs. Runs of
neighbours that were moved by the same distance are judged as one; the heaviest rising sequence of them is the log that
is left (longest increasing subsequence), and what does not belong to it, or is missing from it, was tampered with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from quell.domain import AuditFinding, Tampering

_STRETCHES_MAX = 1_000
"""So many are told apart; somebody who changed more has not hidden it."""
_NAMED_MAX = 100


@dataclass(slots=True, kw_only=True)
class Stretch:
    """Records that stand one after the other, all moved by the same distance."""

    first: int
    last: int
    offset: int | None
    """What has to be added to a number to get the place where the record belongs; None: it belongs nowhere."""
    first_hash: str = ""
    last_hash: str = ""

    @property
    def begin(self) -> int:
        """Place where the first one belongs."""
        assert self.offset is not None
        return self.first + self.offset

    @property
    def end(self) -> int:
        """Place where the last one belongs."""
        assert self.offset is not None
        return self.last + self.offset

    @property
    def count(self) -> int:
        """How many records."""
        return self.last - self.first + 1


def judge_order(stretches: list[Stretch], *, size: int, bound: int) -> tuple[list[AuditFinding], int]:
    """Say what is wrong with the order, and up to which place the log still reaches.

    Args:
        stretches: All records, in the order in which they stand.
        size: How many the log claims to hold.
        bound: No record of ours can belong behind this place.
    """
    findings: list[AuditFinding] = []
    rest = stretches[_STRETCHES_MAX:]
    stretches = stretches[:_STRETCHES_MAX]
    known = _possible(stretches, findings, bound=bound)
    _trim(known, findings)
    left = _heaviest(known)
    kept = set(map(id, left))
    moved = _judge_displaced([stretch for stretch in known if id(stretch) not in kept], left, findings)
    strange = [stretch for stretch in stretches if stretch.offset is None]
    start = Stretch(first=0, last=0, offset=0)
    for before, after in zip([start, *left], left, strict=False):
        between = [one for one in strange if before.last < one.first and one.last < after.first]
        # What stands before number 1 stands before everything.
        between += [one for one in strange if before is start and one.last <= 0]
        _judge_gap(before, after, between, moved, findings)
    final = left[-1] if left else start
    reach = final.end
    for one in strange:
        if one.first > final.last:
            reach += _judge_tail(one, findings, size=size)
    if rest:
        told = "so much was changed from here on that it was not told apart"
        findings.append(_found(Tampering.EDITED, rest[0].first, rest[-1].last, told))
        reach = max(reach, min(rest[-1].last, size))
    return findings, reach


def _possible(stretches: list[Stretch], findings: list[AuditFinding], *, bound: int) -> list[Stretch]:
    """Leave out what was hashed for a place where no record can be."""
    known = []
    for stretch in stretches:
        if stretch.offset is None:
            continue
        before, behind = max(1 - stretch.begin, 0), max(stretch.end - bound, 0)
        if before + behind >= stretch.count:
            findings.append(_found(Tampering.INSERTED, stretch.first, stretch.last, "no record can be there"))
            continue
        if before:
            stretch.first += before
            findings.append(
                _found(Tampering.INSERTED, stretch.first - before, stretch.first - 1, "no record can be there")
            )
        if behind:
            stretch.last -= behind
            findings.append(
                _found(Tampering.INSERTED, stretch.last + 1, stretch.last + behind, "no record can be there")
            )
        known.append(stretch)
    return known


def _judge_tail(one: Stretch, findings: list[AuditFinding], *, size: int) -> int:
    """Judge what stands behind all that is known; return how many of them are records."""
    last = min(one.last, size)
    if one.last > size:
        findings.append(_found(Tampering.INSERTED, max(one.first, size + 1), one.last, "nobody recorded it"))
    if one.first <= last:
        findings.append(_found(Tampering.EDITED, one.first, last, "its content does not fit its hash"))
    return max(last - one.first + 1, 0)


def _trim(known: list[Stretch], findings: list[AuditFinding]) -> None:
    """Cut off forged records that were hashed for the place of one that still follows them."""
    for before, after in pairwise(known):
        overlap = before.end - after.begin + 1
        if overlap == 1 and before.last_hash == after.first_hash and after.count > 1:
            # One of the two is a copy of the other, letter by letter.
            findings.append(_found(Tampering.INSERTED, before.last, after.first, f"a copy of record {after.begin}"))
            after.first += 1
        elif 0 < overlap < before.count and after.end >= before.end:
            first = before.last - overlap + 1
            # Where nothing follows that could tell which is which, both places are named.
            last = before.last if after.end > before.end else after.last
            findings.append(_found(Tampering.INSERTED, first, last, "nobody recorded it before what follows"))
            before.last -= overlap


def _heaviest(known: list[Stretch]) -> list[Stretch]:
    best: list[tuple[int, int]] = []
    for at, stretch in enumerate(known):
        before = [(best[other][0], other) for other in range(at) if known[other].end < stretch.begin]
        weight, via = max(before, default=(0, -1))
        # Of equal ones, what stands where it belongs is the log.
        best.append((weight + 2 * stretch.count + (stretch.offset == 0), via))
    at = max(range(len(best)), key=lambda index: best[index][0], default=-1)
    found = []
    while at >= 0:
        found.append(known[at])
        at = best[at][1]
    return found[::-1]


def _judge_displaced(displaced: list[Stretch], left: list[Stretch], findings: list[AuditFinding]) -> set[int]:
    moved: set[int] = set()
    for stretch in displaced:
        assert stretch.offset is not None
        if any(kept.begin <= stretch.begin and stretch.end <= kept.end for kept in left):
            told = f"a copy of record {stretch.begin}"
            findings.append(_found(Tampering.INSERTED, stretch.first, stretch.last, told))
            continue
        moved.update(range(stretch.begin, stretch.end + 1))
        if stretch.count > _NAMED_MAX:
            ends = sorted((stretch.first, stretch.last, stretch.begin, stretch.end))
            told = f"records {stretch.begin} to {stretch.end} stand at {stretch.first} to {stretch.last}"
            findings.append(_found(Tampering.SWAPPED, ends[0], ends[-1], told))
            continue
        for number in range(stretch.first, stretch.last + 1):
            ends = sorted((number, number + stretch.offset))
            told = f"record {number + stretch.offset} stands at {number}"
            findings.append(_found(Tampering.SWAPPED, ends[0], ends[1], told))
    return moved


def _judge_gap(
    before: Stretch, after: Stretch, between: list[Stretch], moved: set[int], findings: list[AuditFinding]
) -> None:
    missing = [place for place in range(before.end + 1, after.begin) if place not in moved]
    count = sum(one.count for one in between)
    for one in between:
        if count > len(missing):
            findings.append(_found(Tampering.INSERTED, one.first, one.last, "nobody recorded it"))
        else:
            findings.append(_found(Tampering.EDITED, one.first, one.last, "its content does not fit its hash"))
    if len(missing) > count:
        gone = [place for place in missing if not any(one.first <= place <= one.last for one in between)]
        findings += [_found(Tampering.DELETED, first, last, "it is gone") for first, last in _ranges(gone)]
    hole = range(before.last + 1, min(after.first, before.last + 1 + _NAMED_MAX))
    is_hole = any(not _is_named(number, findings) for number in hole)
    if is_hole and before.offset != after.offset and not missing and not between and after.begin == before.end + 1:
        stretch, place = (after, after.begin) if after.offset else (before, before.end)
        assert stretch.offset is not None
        findings.append(_found(Tampering.EDITED, place, place, f"it stands at number {place - stretch.offset}"))


def _is_named(number: int, findings: list[AuditFinding]) -> bool:
    return any(one.first <= number <= one.last for one in findings)


def _ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    first = last = 0
    for number in numbers:
        if first and number == last + 1:
            last = number
            continue
        if first:
            yield first, last
        first = last = number
    if first:
        yield first, last


def _found(what: Tampering, first: int, last: int, detail: str) -> AuditFinding:
    return AuditFinding(what=what, first=first, last=last, detail=detail)
