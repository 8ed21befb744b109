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

_RUNS_MAX = 1_000


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


def judge_order(stretches: list[Stretch], *, size: int) -> tuple[list[AuditFinding], int]:
    """Return what is wrong with the order, and the place up to which the log still reaches; `size` is what it claims."""
    findings: list[AuditFinding] = []
    known = [stretch for stretch in stretches if stretch.offset is not None]
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
    tail = [one for one in strange if one.first > final.last]
    reach = final.end
    for one in tail:
        for number in range(one.first, one.last + 1):
            if number > size:
                findings.append(_found(Tampering.INSERTED, number, number, "nobody recorded it"))
            else:
                findings.append(_found(Tampering.EDITED, number, number, "its content does not fit its hash"))
                reach += 1
    return findings, reach


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
    if len(known) > _RUNS_MAX:
        known = [stretch for stretch in known if stretch.offset == 0]
        return known
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
    moved = set()
    for stretch in displaced:
        assert stretch.offset is not None
        for number in range(stretch.first, stretch.last + 1):
            place = number + stretch.offset
            if any(kept.begin <= place <= kept.end for kept in left):
                findings.append(_found(Tampering.INSERTED, number, number, f"a copy of record {place}"))
            else:
                moved.add(place)
                ends = sorted((place, number))
                findings.append(_found(Tampering.SWAPPED, ends[0], ends[1], f"record {place} stands at {number}"))
    return moved


def _judge_gap(
    before: Stretch, after: Stretch, between: list[Stretch], moved: set[int], findings: list[AuditFinding]
) -> None:
    missing = [place for place in range(before.end + 1, after.begin) if place not in moved]
    numbers = [number for one in between for number in range(one.first, one.last + 1)]
    if len(numbers) > len(missing):
        findings += [_found(Tampering.INSERTED, number, number, "nobody recorded it") for number in numbers]
    else:
        findings += [
            _found(Tampering.EDITED, number, number, "its content does not fit its hash") for number in numbers
        ]
    if len(missing) > len(numbers):
        gone = [place for place in missing if place not in numbers]
        findings += [_found(Tampering.DELETED, first, last, "it is gone") for first, last in _ranges(gone)]
    hole = any(not _is_named(number, findings) for number in range(before.last + 1, after.first))
    if hole and before.offset != after.offset and not missing and not numbers and after.begin == before.end + 1:
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
