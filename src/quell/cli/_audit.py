"""`quell audit`: list, show, verify, export, checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_cut, note_none, put_document, put_record, put_table, put_text
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import LONG_LENGTH

if TYPE_CHECKING:
    from quell.app import Office
    from quell.domain import AuditReport

T = TypeVar("T")
_TOLD_EVERY = 10_000
_KINDS = [
    "request",
    "evidence",
    "decision",
    "approval",
    "effect",
    "outcome",
    "verification",
    "budget",
    "autonomy",
    "policy",
    "identity",
    "switch",
    "pin",
    "refusal",
    "checkpoint",
]
_FIRST = (
    *("verb", "tool", "approval", "effect", "switch", "key", "verdict", "told", "state", "kind"),
    *("reason", "refused", "detail"),
)


@click.group("audit", cls=QuellGroup)
def audit_command() -> None:
    """List, verify, sign and export the audit log."""


@audit_command.command("list", cls=QuellCommand)
@click.option("--run", default="", metavar="ID", help="Only what a run did.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(_KINDS), help="Only these kinds; again for more.")
@click.option(
    "--since", "since_s", type=LONG_LENGTH, default=None, metavar="LENGTH", help="Only so long ago, such as 1d."
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most this many.")
@click.pass_obj
def list_records(session: Session, *, run: str, kinds: tuple[str, ...], since_s: float | None, limit: int) -> int:
    """List what was decided and done, the newest last; NDJSON with --json."""

    def use(office: Office) -> int:
        from datetime import timedelta

        from quell.domain import AuditKind

        since = "" if since_s is None else _written(office.clock() - timedelta(seconds=since_s))
        wanted = [AuditKind(kind) for kind in kinds]
        found = office.audit.newest(run=run, kinds=wanted, since=since, items_max=limit + 1)
        shown, is_cut = list(reversed(found[:limit])), len(found) > limit
        if session.is_json:
            for each in shown:
                put_record("audit_record", record={**_fields(each), "body": _body(each.body)})
        else:
            rows = [
                (
                    str(each.number),
                    f"{each.at[:19]}Z".replace("T", " "),
                    each.kind,
                    each.principal or "-",
                    _told(each.body),
                )
                for each in shown
            ]
            put_table(("#", "AT", "KIND", "WHO", "WHAT"), rows)
            if not shown:
                note_none("such audit record" if run or kinds or since else "audit record", office.settings)
        if is_cut:
            note_cut(f"the newest {limit} records", more=f"--limit {limit * 10}")
        return ExitCode.DONE

    return session.with_office(use)


@audit_command.command("show", cls=QuellCommand)
@click.argument("number", type=click.IntRange(1))
@click.pass_obj
def show_record(session: Session, number: int) -> int:
    """Show one record whole, with its place in the chain."""

    def use(office: Office) -> int:
        from quell.domain import UsageError

        record = next(office.audit.records(after=number - 1, last=number), None)
        if record is None:
            raise UsageError(f"there is no audit record {number}", hint="`quell audit list` names the newest")
        if session.is_json:
            put_document("audit_record", record={**_fields(record), "body": _body(record.body)})
            return ExitCode.DONE
        rows = [(name, str(value)) for name, value in _fields(record).items()]
        put_text("\n".join(f"{name + ':':10} {text or '-'}" for name, text in rows))
        put_text(json.dumps(_body(record.body), indent=2, ensure_ascii=True))
        return ExitCode.DONE

    return session.with_office(use)


@audit_command.command("verify", cls=QuellCommand)
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Public keys that you kept elsewhere, one per line.",
)
@click.option(
    "--export",
    "export_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Check an export instead of the log.",
)
@click.pass_obj
def verify(session: Session, *, key_file: Path | None, export_file: Path | None) -> int:
    """Walk over the whole log and name every tampering with its place. Exit 1 when there is any.

    With --key the signatures are checked by keys that whoever owns this machine cannot replace.
    """

    async def use(office: Office) -> int:
        keys = None if key_file is None else _keys(key_file)
        if export_file is None:
            report = await _watched(lambda watch: office.audit.verify(keys=keys, watch=watch))
        else:
            own = keys or [office.audit.public_key]
            report = await _watched(lambda watch: _verify_export(office, export_file, keys=own, watch=watch))
        if session.is_json:
            put_document(
                "audit_verified", is_ok=report.is_intact, report=report, findings=[str(f) for f in report.findings]
            )
        else:
            put_text(_verdict(report))
        if key_file is None:
            note(
                "checked with this machine's own keys; give --key FILE with a copy from elsewhere to trust nothing here"
            )
        if report.is_intact and report.anchored == 0 and export_file is None:
            note(
                "nothing is anchored: a rewrite of the whole log would not be found (governance.anchor_file, anchor_git)"
            )
        return ExitCode.DONE if report.is_intact else ExitCode.BAD

    return session.with_office(use)


@audit_command.command("export", cls=QuellCommand)
@click.option("--run", default="", metavar="ID", help="Only the evidence pack of a run.")
@click.option("--change", default="", metavar="ID", help="Only the evidence pack of a change.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it there instead of to stdout.",
)
@click.pass_obj
def export(session: Session, *, run: str, change: str, out: Path | None) -> int:
    """Write JSON lines that prove themselves against the public key alone."""

    async def use(office: Office) -> int:
        def write(watch: Callable[[int], None]) -> int:
            lines = office.audit.export(run=run, change=change, watch=watch)
            return _write(out, lines, watch=watch)

        count = await _watched(write)
        if out is None:
            return ExitCode.DONE
        note(f"written: {out}")
        if session.is_json:
            put_document("audit_export", path=str(out), lines=count, public_key=office.audit.public_key)
        else:
            put_text(f"{count} lines; check it anywhere: quell audit verify --export {out} --key FILE")
        return ExitCode.DONE

    return session.with_office(use)


@audit_command.command("checkpoint", cls=QuellCommand)
@click.pass_obj
def checkpoint(session: Session) -> int:
    """Sign the log as it stands, publish that to every anchor, and print it with the public key."""

    def use(office: Office) -> int:
        signed = office.audit.anchor()
        anchor = ", ".join(each.name for each in office.audit.anchors)
        if session.is_json:
            put_document("audit_checkpoint", checkpoint=signed, public_key=office.audit.public_key, anchor=anchor)
        else:
            put_text(signed.note)
            put_text(f"\npublic key: {office.audit.public_key}")
        note(
            f"anchored in {anchor}"
            if anchor
            else "no anchor is set (governance.anchor_file, anchor_git): keep this elsewhere yourself"
        )
        return ExitCode.DONE

    return session.with_office(use)


def _verdict(report: AuditReport) -> str:
    facts = [
        f"{report.records} records, {report.checkpoints} checkpoints, {report.blobs} bodies ({report.blobs_expired} deleted after their time)",
        (f"signed up to record {report.signed}" if report.signed else "not signed yet") + _unsigned(report),
        f"anchored up to record {report.anchored}" if report.anchored else "not anchored",
    ]
    if report.is_intact:
        return "\n".join(["intact", *(f"  {fact}" for fact in facts)])
    return "\n".join(
        [
            f"TAMPERED: {len(report.findings)} findings",
            *(f"  {each}" for each in report.findings),
            *(f"  {f}" for f in facts),
        ]
    )


def _unsigned(report: AuditReport) -> str:
    if report.unsigned == 0:
        return ""
    since = f", since {report.unsigned_since[:19]}Z," if report.unsigned_since else ""
    return f"; {report.unsigned} records{since} rest on the chain alone: `quell audit checkpoint` signs them"


class _StoppedError(Exception):
    """A person stopped what a thread walks over."""


async def _watched(work: Callable[[Callable[[int], None]], T]) -> T:
    """Let a long walk go on in a thread: it tells a person how far it is, and Ctrl-C ends it between two records."""
    import asyncio
    import threading

    stop, is_seen = threading.Event(), sys.stderr.isatty()

    def watch(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        if is_seen and count and count % _TOLD_EVERY == 0:
            sys.stderr.write(f"{count} records ...\r")

    try:
        return await asyncio.to_thread(work, watch)
    except asyncio.CancelledError:
        stop.set()
        note("stopped; nothing was decided about what was not read")
        raise


def _verify_export(office: Office, path: Path, *, keys: list[str], watch: Callable[[int], None]) -> AuditReport:
    def told(lines: Iterator[str]) -> Iterator[str]:
        for count, line in enumerate(lines):
            watch(count)
            yield line

    with path.open(encoding="utf-8") as file:
        return office.audit.verify_export(told(file), keys=keys)


def _write(path: Path | None, lines: Iterator[str], *, watch: Callable[[int], None]) -> int:
    count = 0
    with nullcontext(sys.stdout) if path is None else path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line.rstrip("\n") + "\n")
            count += 1
            watch(count)
    return count


def _keys(path: Path) -> list[str]:
    from quell.domain import UsageError

    found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not found:
        raise UsageError(f"{path} holds no key", hint="`quell audit checkpoint` prints the public key")
    return found


def _fields(record: object) -> dict[str, object]:
    from dataclasses import asdict

    return {name: value for name, value in asdict(record).items() if name != "body"}  # type: ignore[call-overload]  # an AuditRecord


def _body(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _told(text: str) -> str:
    """Tell a body in one line: what is said most of first, and nothing that is long."""
    body = _body(text)
    if not isinstance(body, dict):
        return str(body)
    verdict = body.get("verdict")
    if isinstance(verdict, dict):
        body = {**body, "verdict": verdict.get("decision"), "reason": verdict.get("reason")}
    if "evidence_digest" in body and isinstance(body.get("resource"), dict):
        resource = body["resource"]
        body["tool"] = f"{body.get('tool')} on {resource.get('kind')} {resource.get('name') or '(the whole server)'}"
    names = [name for name in _FIRST if body.get(name) not in (None, "", [], {})]
    names = names or [name for name in body if isinstance(body[name], str | int)][:4]
    return " ".join(f"{name}={_short(body[name])}" for name in names)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
    return f'"{text}"' if any(letter.isspace() for letter in text) else text


def _written(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
