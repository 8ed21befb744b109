"""`quell memory`: ingest, list, search, forget."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_cut, note_none, put_document, put_table, put_text, wants_colour
from quell.cli._person import person_of, tenant_option
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import away
from quell.domain import one_line, printable

if TYPE_CHECKING:
    from datetime import datetime

    from quell.app import Office
    from quell.domain import Principal
    from quell.memory import Library, Passage, Source, Step

_STORE = "documents"
_STORE_HELP = "Store; an agent's `in_memory` store of that name is this one."


@click.group("memory", cls=QuellGroup)
def memory_command() -> None:
    """Take in documents that agents may search; list, search and forget them."""


@memory_command.command("ingest", cls=QuellCommand)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", default=_STORE, show_default=True, metavar="NAME", help=_STORE_HELP)
@click.option(
    "--roles", default="", metavar="A,B", help="Only callers with one of these roles see them; without it everybody."
)
@tenant_option
@click.pass_obj
def ingest(session: Session, directory: Path, *, store: str, roles: str, tenant: str) -> int:
    """Take in the documents of a directory: Markdown, text and HTML. Again: only what changed; what vanished goes.

    Exit 1 when a file could not be read.
    """
    root = str(directory.resolve())

    async def use(office: Office) -> int:
        import asyncio

        by = _allowed(session, office, tenant=tenant, verb="memory.ingest", about=str(directory))
        given = tuple(each.strip() for each in roles.split(",")) if roles else ()
        with _counted(session) as counter:
            work = _library(office).ingest
            try:
                steps = await asyncio.to_thread(
                    work, directory, store=store, tenant=by.tenant, roles=given, hear=counter.take
                )
            except asyncio.CancelledError:
                # A thread cannot be cancelled: it is told at its next file.
                counter.is_stopped = True
                raise
        counts = Counter(step.kind for step in steps)
        told: dict[str, object] = {"directory": root, "store": store, "readable_by": list(given)}
        _record(office, by, verb="memory.ingest", told=told | dict(counts))
        is_whole = not counts["failed"]
        if session.is_json:
            put_document("memory_ingested", is_ok=is_whole, store=store, counts=dict(counts), files=list(steps))
            return ExitCode.DONE if is_whole else ExitCode.BAD
        rows = [(step.kind, step.path, step.reason or _pieces(step)) for step in steps if step.kind != "same"]
        if rows:
            put_table(("FILE IS", "PATH", ""), rows)
        total = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing to read"
        note(f"{store}: {total}")
        return ExitCode.DONE if is_whole else ExitCode.BAD

    return session.with_office(use)


@memory_command.command("list", cls=QuellCommand)
@click.option("--store", default="", metavar="NAME", help="Only documents of this store.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000))
@tenant_option
@click.pass_obj
def list_documents(session: Session, *, store: str, limit: int, tenant: str) -> int:
    """List the documents that you may see: store, version, who else may, age."""

    def use(office: Office) -> int:
        from quell.memory import Audience

        by = person_of(session, office, tenant=tenant)
        # Who administers what agents know sees all of it.
        audience = None if "admin" in by.roles else Audience(tenant=by.tenant, roles=by.roles)
        library = _library(office)
        found = library.sources(audience=audience, store=store, tenant=by.tenant, sources_max=limit + 1)
        shown = found[:limit]
        if session.is_json:
            put_document("memory", sources=shown, is_cut=len(found) > limit)
            return ExitCode.DONE
        if not shown:
            note_none("document", office.settings)
            return ExitCode.DONE
        now = office.clock()
        put_table(
            ("STORE", "VERSION", "MODIFIED", "SEEN BY", "PIECES", "PATH"), [_row(each, now=now) for each in shown]
        )
        if len(found) > limit:
            note_cut(f"the first {limit}", more="--limit N, or --store NAME")
        return ExitCode.DONE

    return session.with_office(use)


@memory_command.command("search", cls=QuellCommand)
@click.argument("question", nargs=-1, required=True)
@click.option("--store", default=_STORE, show_default=True, metavar="NAME", help="Store to search.")
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1, 50))
@tenant_option
@click.pass_obj
def search(session: Session, question: Sequence[str], *, store: str, limit: int, tenant: str) -> int:
    """Search as an agent that acts for you does. Exit 1 when nothing fits."""

    def use(office: Office) -> int:
        from quell.memory import Audience

        by = person_of(session, office, tenant=tenant)
        audience = Audience(tenant=by.tenant, roles=by.roles)
        words = " ".join(question)
        found = _library(office).search(words, store=store, audience=audience, passages_max=limit)
        code = ExitCode.DONE if found else ExitCode.BAD
        if session.is_json:
            put_document("memory_search", is_ok=bool(found), store=store, passages=list(found))
            return code
        for passage in found:
            put_text("\n".join(_told(passage, office)))
        if not found:
            note(f"nothing in {store} that you may see fits; `quell memory list` shows what is there")
        return code

    return session.with_office(use)


@memory_command.command("forget", cls=QuellCommand)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--store", default="", metavar="NAME", help="Only from this store.")
@tenant_option
@click.pass_obj
def forget(session: Session, source: Path, *, store: str, tenant: str) -> int:
    """Forget a document, or everything below a directory. The files themselves stay as they are."""

    def use(office: Office) -> int:
        from quell.domain import UsageError

        by = _allowed(session, office, tenant=tenant, verb="memory.forget", about=str(source))
        gone = _library(office).forget(source, store=store, tenant=by.tenant)
        if not gone:
            raise UsageError(f"no document {str(source)!r} was taken in", hint="`quell memory list` names them")
        _record(office, by, verb="memory.forget", told={"source": str(source), "store": store, "documents": len(gone)})
        if session.is_json:
            put_document("memory_forgotten", sources=list(gone))
        else:
            put_text("\n".join(gone))
        note(f"forgot {len(gone)}; a document that is still there comes back with the next ingest of its directory")
        return ExitCode.DONE

    return session.with_office(use)


def _library(office: Office) -> Library:
    from quell.memory import Library

    return Library(office.settings.state_dir, clock=office.clock)


def _allowed(session: Session, office: Office, *, tenant: str, verb: str, about: str) -> Principal:
    """Return who changes what agents read. Raises RefusedError for who may not; that is on record."""
    from quell.domain import RefusedError, is_person

    by = person_of(session, office, tenant=tenant)
    if not is_person(by) or not {"operator", "admin"} & set(by.roles):
        error = RefusedError("only a person with the role operator or admin changes what agents read", hint="ask one")
        office.refused(by, verb=verb, about=about, error=error)
        raise error
    return by


def _record(office: Office, by: Principal, *, verb: str, told: dict[str, object]) -> None:
    from quell.domain import AuditKind

    with office.changing(by, verb=verb, about=verb) as connection:
        office.record(connection, AuditKind.EVIDENCE, by=by, verb=verb, body=told)


def _row(source: Source, *, now: datetime) -> tuple[str, ...]:
    seen_by = ",".join(source.roles) or "everybody"
    version = source.version.removeprefix("sha256:")[:12]
    return (source.store, version, away(source.modified_at, now=now), seen_by, str(source.pieces), source.path)


def _told(passage: Passage, office: Office) -> Iterator[str]:
    age = f", {away(passage.modified_at, now=office.clock())}" if passage.modified_at else ""
    version = passage.version.removeprefix("sha256:")[:12]
    yield f"{passage.source}:{passage.line}  (version {version}{age})"
    if passage.heading:
        yield f"  {passage.heading}"
    yield f"  {one_line(passage.snippet or passage.text, chars_max=400)}"
    if passage.also_in:
        yield f"  the same is in {passage.also_in} more"


def _pieces(step: Step) -> str:
    return f"{step.pieces} piece{'' if step.pieces == 1 else 's'}" if step.kind in {"added", "changed"} else ""


class _Counter:
    """Shows on a terminal how far it is, on one line that goes away."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._count = 0
        self.is_stopped = False

    def take(self, step: Step) -> None:
        if self.is_stopped:
            raise InterruptedError("the command was interrupted")
        self._count += 1
        if self._is_shown:
            sys.stderr.write(f"\r\x1b[2K{self._count} files, {printable(step.path)[:60]}")
            sys.stderr.flush()

    def end(self) -> None:
        if self._is_shown and self._count:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


@contextmanager
def _counted(session: Session) -> Iterator[_Counter]:
    counter = _Counter(is_shown=sys.stderr.isatty() and not session.is_json and wants_colour(session, stream="stderr"))
    try:
        yield counter
    finally:
        counter.end()
