"""What is known of a service, for people who decide about a call that touches it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from quell.domain import (
    Answer,
    Clock,
    Gap,
    ObservedChange,
    Question,
    QuestionKind,
    Resource,
    Scope,
    Stage,
    Window,
    one_line,
)
from quell.incidents._book import Book
from quell.incidents._reading import ask_once
from quell.signals import Reader

_CHANGES_WINDOW = timedelta(hours=1)
_RECENT = timedelta(days=7)
_READ_TIMEOUT_S = 1.5
_INCIDENTS_MAX = 200
_SHOWN_MAX = 5
_NAMES_MAX = 20
_UTC = "%Y-%m-%d %H:%M:%S UTC"


async def facts_of(
    resource: Resource, *, book: Book, readers: Sequence[Reader], clock: Clock
) -> tuple[tuple[str, str], ...]:
    """Return names and values, in one order; what no source could tell is a fact too."""
    if resource.kind != "Service":
        return (("inventory", f"NOT KNOWN: it knows services, and this is a {one_line(resource.kind, chars_max=60)}"),)
    at = clock()
    graph, pages, changes = await asyncio.gather(
        asyncio.to_thread(book.graph),
        asyncio.to_thread(book.pages, limit=_INCIDENTS_MAX, stages=()),
        _changes(resource.name, readers=readers, at=at),
    )
    callers = sorted(caller for caller, callee in graph.edges if callee == resource.name)
    callees = sorted(callee for caller, callee in graph.edges if caller == resource.name)
    incidents = [page.incident for page in pages if resource.name in page.incident.services]
    seen = "NOT KNOWN: telemetry has shown no calls of this service"
    told = [
        ("as of", at.strftime(_UTC)),
        ("called by", _names(callers) if callers or callees else seen),
        ("calls", _names(callees) if callers or callees else seen),
    ]
    open_now = [each for each in incidents if each.stage is not Stage.RESOLVED]
    closed = [each for each in incidents if each.stage is Stage.RESOLVED and at - each.updated_at <= _RECENT]
    told += [("open incident", _incident(each.id, each.title, each.opened_at)) for each in open_now[:_SHOWN_MAX]]
    told.append(("open incidents", str(len(open_now))))
    told += [("incident, past week", _incident(each.id, each.title, each.opened_at)) for each in closed[:_SHOWN_MAX]]
    return (*told, *changes)


async def _changes(service: str, *, readers: Sequence[Reader], at: datetime) -> list[tuple[str, str]]:
    window = Window(start=at - _CHANGES_WINDOW, end=at)
    question = Question(
        kind=QuestionKind.CHANGES,
        window=window,
        baseline=window.before(length=timedelta(minutes=1)),
        scope=Scope(services=(service,)),
        rows_max=_NAMES_MAX,
    )
    answers = await asyncio.gather(*(ask_once(reader, question, timeout_s=_READ_TIMEOUT_S) for reader in readers))
    return [fact for answer in answers for fact in _told(answer)] or [("changes, past hour", "NOT KNOWN: no source")]


def _told(answer: Answer | Gap) -> Iterator[tuple[str, str]]:
    name = "changes, past hour"
    if isinstance(answer, Gap):
        if answer.reason != "unsupported":
            yield name, f"NOT KNOWN: {answer.source} does not tell ({answer.reason})"
        return
    rows = [row for row in answer.rows if isinstance(row, ObservedChange)]
    for row in rows[-_SHOWN_MAX:]:
        where = one_line(row.service, chars_max=60) or "everybody"
        moved = one_line(f"{row.subject}: {row.before} -> {row.after}", chars_max=200)
        yield "change, past hour", f"{row.at.strftime(_UTC)} {row.change.value} of {where}, {moved}"
    yield name, f"{len(rows)} told by {answer.source}"
    if answer.partial:
        yield name, f"NOT KNOWN in part: {one_line(answer.partial, chars_max=200)}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(one_line(name, chars_max=60) for name in names[:_NAMES_MAX])
    more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
    return f"{len(names)}: {shown}{more}" if names else "0"


def _incident(identifier: str, title: str, opened_at: datetime) -> str:
    return f"{identifier}, opened {opened_at.strftime(_UTC)}: {one_line(title, chars_max=200)}"
