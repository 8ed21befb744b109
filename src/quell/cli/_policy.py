"""`quell policy`: check, show, test, simulate, explain."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_none, put_document, put_table, put_text
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import LONG_LENGTH

if TYPE_CHECKING:
    from quell.app import Office, Toolset
    from quell.domain import PolicyExplanation, PolicySource, RecordedDecision, Tool
    from quell.governance import PolicySet

_FILE = click.Path(dir_okay=False)
_PACKS = ("copilot", "reversible-auto", "dark-factory")
_RECORDS_MAX = 1_000_000
_PACK_OPTION = click.option(
    "--pack", type=click.Choice(_PACKS), default=None, help="This pack instead of the configured one."
)


class _Replayable(NamedTuple):
    number: int
    record: RecordedDecision


@click.group("policy", cls=QuellGroup)
def policy_command() -> None:
    """Check, show, test, simulate and explain policies."""


@policy_command.command("check", cls=QuellCommand)
@click.argument("files", nargs=-1, type=_FILE, metavar="[FILE]...")
@_PACK_OPTION
@click.pass_obj
def check(session: Session, files: tuple[str, ...], *, pack: str | None) -> int:
    """Say all that is wrong with policies: those that are configured, or FILEs beside the pack. Exit 1 if anything is."""

    async def use(_office: Office, toolset: Toolset) -> int:
        from quell.governance import PolicySet

        report = PolicySet.check(_sources(toolset, files, pack), tools=toolset.registry.tools)
        is_ok = not report.problems
        if session.is_json:
            put_document("policy_check", is_ok=is_ok, report=report)
            return ExitCode.DONE if is_ok else ExitCode.BAD
        for problem in report.problems:
            put_text(f"{problem.source}: {problem.path + ': ' if problem.path else ''}{problem.reason}")
            if problem.hint:
                put_text(f"  hint: {problem.hint}")
        if report.problems:
            put_text(f"{len(report.problems)} mistakes in {len(report.policies)} policies")
        else:
            put_text(f"{len(report.policies)} policies are right; digest {report.digest}")
        for name in report.unchecked:
            note(f"{name} names a tool or an argument that is not pinned here: its types were not checked")
        return ExitCode.DONE if is_ok else ExitCode.BAD

    return session.with_toolset(use)


@policy_command.command("show", cls=QuellCommand)
@click.argument("source", metavar="[SOURCE]", default="")
@click.pass_obj
def show(session: Session, source: str) -> int:
    """Show which policies are in force, or the text of one SOURCE, such as pack:copilot."""

    async def use(_office: Office, toolset: Toolset) -> int:
        from quell.cli._person import one_of
        from quell.governance import PolicySet

        sources = toolset.policy_sources()
        if source:
            by_name = {each.name: each for each in sources}
            found = by_name[one_of(source, by_name, what="policy source", hint=f"there are: {', '.join(by_name)}")]
            if session.is_json:
                put_document("policy_source", source=found)
            else:
                put_text(found.text)
            return ExitCode.DONE
        each_of = [(each, PolicySet.check([each], tools=toolset.registry.tools)) for each in sources]
        whole = PolicySet.check(sources, tools=toolset.registry.tools)
        if session.is_json:
            told = [
                {"name": each.name, "mode": each.mode, "policies": list(report.policies)} for each, report in each_of
            ]
            put_document("policy", is_ok=not whole.problems, sources=told, digest=whole.digest, policies=whole.policies)
            return ExitCode.DONE
        for each, report in each_of:
            put_text(
                f"{each.name} ({'decides' if each.mode == 'enforce' else 'only tells what it would have refused'})"
            )
            put_text("\n".join(f"  {name}" for name in report.policies) or "  no policy")
        put_text(f"digest {whole.digest}")
        if whole.problems:
            note(f"{len(whole.problems)} mistakes: nothing is permitted until `quell policy check` is content")
        return ExitCode.DONE

    return session.with_toolset(use)


@policy_command.command("test", cls=QuellCommand)
@click.argument("table", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("files", nargs=-1, type=_FILE, metavar="[FILE]...")
@_PACK_OPTION
@click.pass_obj
def test(session: Session, table: Path, files: tuple[str, ...], *, pack: str | None) -> int:
    """Decide every case of a TOML table and say which came out otherwise than it says. Exit 1 if any did."""
    text = table.read_text(encoding="utf-8")

    async def use(office: Office, toolset: Toolset) -> int:
        from quell.cli._person import person_of
        from quell.domain import ConfigError

        try:
            report = _loaded(toolset, files, pack).run_table(text, source=str(table))
        except ConfigError as error:
            office.refused(person_of(session, office), verb="policy.test", about=str(table), error=error)
            raise
        wrong = report.mismatches
        if session.is_json:
            put_document("policy_test", is_ok=not wrong, cases=report.cases, mismatches=wrong)
        else:
            for each in wrong:
                put_text(str(each))
            put_text(f"{report.cases - len(wrong)} of {report.cases} cases came out as the table says")
        return ExitCode.BAD if wrong else ExitCode.DONE

    return session.with_toolset(use)


@policy_command.command("simulate", cls=QuellCommand)
@click.argument("files", nargs=-1, type=_FILE, metavar="[FILE]...")
@click.option("--since", "since_s", type=LONG_LENGTH, default="30d", show_default=True, help="How far to look back.")
@_PACK_OPTION
@click.pass_obj
def simulate(session: Session, files: tuple[str, ...], *, since_s: float, pack: str | None) -> int:
    """Take the decisions of the audit log again by other policies, and list those that would come out otherwise."""

    async def use(office: Office, toolset: Toolset) -> int:
        policies = _loaded(toolset, files, pack)
        since = office.clock() - timedelta(seconds=since_s)
        replayed, lost = _history(office, since=since.isoformat(timespec="microseconds").replace("+00:00", "Z"))
        numbers = {id(each.record): each.number for each in replayed}
        shifts = policies.simulate([each.record for each in replayed])
        if session.is_json:
            told = [
                {
                    "audit_record": numbers[id(shift.record)],
                    "call": shift.record.call,
                    "was": shift.record.verdict,
                    "would_be": shift.verdict,
                }
                for shift in shifts
            ]
            put_document("policy_simulation", replayed=len(replayed), lost=lost, shifts=told, digest=policies.digest)
            return ExitCode.DONE
        rows = [
            (
                str(numbers[id(shift.record)]),
                shift.record.verdict.decision,
                shift.verdict.decision,
                ", ".join(shift.verdict.policies) or "no policy",
                _what(office, shift.record),
            )
            for shift in shifts
        ]
        if rows:
            put_table(("#", "WAS", "WOULD BE", "BY", "CALL"), rows)
        put_text(f"{len(shifts)} of {len(replayed)} decisions would come out otherwise")
        for reason, count in sorted(lost.items()):
            note(f"{count} more could not be taken again: {reason}")
        if not replayed and not lost:
            note_none("recorded decision of that time", office.settings)
        return ExitCode.DONE

    return session.with_toolset(use)


@policy_command.command("explain", cls=QuellCommand)
@click.argument("what", metavar="RECORD|CALL|TOOL")
@click.option("--arguments", metavar="JSON", default=None, help="Of a call to TOOL that nobody has made yet.")
@click.option("--environment", default="", help="Where it would act, if its arguments do not say.")
@click.option("--user", default="somebody", show_default=True, help="For whom it would be called.")
@click.option("--role", "roles", multiple=True, help="A role of that person; again for more.")
@click.option("--level", type=click.IntRange(0, 5), default=2, show_default=True, help="How far the agent may go.")
@click.option("--tainted", is_flag=True, help="Whether text of an attacker may have reached the model.")
@click.option("--all", "every", is_flag=True, help="Also the policies that do not apply.")
@_PACK_OPTION
@click.pass_obj
def explain(
    session: Session,
    what: str,
    *,
    arguments: str | None,
    environment: str,
    user: str,
    roles: tuple[str, ...],
    level: int,
    tainted: bool,
    every: bool,
    pack: str | None,
) -> int:
    """Say why a call gets its verdict, policy by policy: a call of the audit log, or one that nobody has made yet.

    RECORD is a number of `quell audit list`, CALL the id of a call, TOOL a tool's name with --arguments.
    """

    async def use(office: Office, toolset: Toolset) -> int:
        from quell.domain import Facts, Level, Principal, RecordedDecision, Verdict
        from quell.governance import freeze

        policies = _loaded(toolset, (), pack)
        if arguments is None:
            number, record = _recorded(office, what)
            tool = toolset.registry.find(record.call.tool).tool
        else:
            tool = toolset.registry.find(what).tool
            place = environment or office.settings.governance.environment
            call = freeze(tool, run="explain", call="explain", arguments=arguments, environment=place)
            principal = Principal(user=user, roles=roles, level=Level(level), is_tainted=tainted)
            nothing = Verdict(decision="deny", policies=(), reason="")
            number, record = 0, RecordedDecision(call=call, principal=principal, facts=Facts(), verdict=nothing)
        told = policies.explain(record.call, tool=tool, principal=record.principal, facts=record.facts)
        rulings = [each for each in told.rulings if every or each.says != "does not apply"]
        if session.is_json:
            was = record.verdict if number else None
            put_document("policy_explanation", call=record.call, was=was, verdict=told.verdict, rulings=rulings)
            return ExitCode.DONE
        _put_explanation(office, told, record, tool, number=number, every=every)
        return ExitCode.DONE

    return session.with_toolset(use)


def _put_explanation(
    office: Office, told: PolicyExplanation, record: RecordedDecision, tool: Tool, *, number: int, every: bool
) -> None:
    verdict, principal = told.verdict, record.principal
    through = f", through {principal.agent} at level {int(principal.level)}" if principal.agent else ""
    rows = [
        ("call", f"{_what(office, record)} ({tool.tool_class})"),
        ("arguments", record.call.arguments),
        ("for", f"{principal.user} ({', '.join(principal.roles) or 'no role'}){through}"),
        ("verdict", f"{verdict.decision}: {verdict.reason}"),
        ("by", ", ".join(verdict.policies) or "no policy"),
        ("people", f"{verdict.quorum} of {', '.join(verdict.approver_roles)}" if verdict.quorum else ""),
        ("watched", f"would be held up by {', '.join(verdict.would_deny)}" if verdict.would_deny else ""),
        ("it was", f"{record.verdict.decision}: {record.verdict.reason} (audit record {number})" if number else ""),
    ]
    put_text("\n".join(f"{name + ':':10} {office.approvals.visible(text)}" for name, text in rows if text))
    if verdict.decision == "deny" and not number and not principal.roles:
        note("nobody without a role may do anything: --role operator asks for somebody who has one")
    shown = [each for each in told.rulings if every or each.says != "does not apply"]
    for each in shown:
        put_text(f"\n{each.policy} of {each.source} ({each.effect}) {each.says}")
        put_text("\n".join(f"  {line}" for line in each.text.strip().splitlines()))
    if len(shown) < len(told.rulings):
        note(f"{len(told.rulings) - len(shown)} policies do not apply; --all shows them")


def _sources(toolset: Toolset, files: tuple[str, ...], pack: str | None) -> list[PolicySource]:
    from quell.governance import PolicySet

    sources = toolset.policy_sources(files)
    if pack in _PACKS:
        return [PolicySet.pack(pack), *sources[1:]]  # type: ignore[arg-type]  # one of the three, as click checked
    return sources


def _loaded(toolset: Toolset, files: tuple[str, ...], pack: str | None) -> PolicySet:
    from quell.governance import PolicySet

    return PolicySet.load(_sources(toolset, files, pack), tools=toolset.registry.tools)


def _history(office: Office, *, since: str) -> tuple[list[_Replayable], dict[str, int]]:
    """Return each decision once, oldest first, and why others cannot be taken again."""
    from quell.domain import AuditKind, UsageError
    from quell.governance import PolicySet

    found: dict[tuple[str, str, str], _Replayable] = {}
    lost: dict[str, int] = {}
    kinds = (AuditKind.DECISION, AuditKind.EFFECT)
    for record in reversed(office.audit.newest(kinds=kinds, since=since, items_max=_RECORDS_MAX)):
        try:
            decision = PolicySet.recorded(record, body=office.audit.body)
        except UsageError as error:
            lost[str(error)] = lost.get(str(error), 0) + 1
            continue
        if decision is not None:
            found[record.run, decision.call.id, decision.verdict.decision] = _Replayable(record.number, decision)
    return list(found.values()), lost


def _recorded(office: Office, what: str) -> tuple[int, RecordedDecision]:
    """Find the decision of a record, or the newest of a call. Raises UsageError when there is none."""
    from quell.domain import AuditKind, UsageError
    from quell.governance import PolicySet

    if what.isdecimal() and len(what) < 18:
        records = list(office.audit.records(after=int(what) - 1, last=int(what)))
    else:
        kinds = (AuditKind.DECISION, AuditKind.EFFECT)
        wanted = f'"call":{json.dumps(what)}'
        records = [each for each in office.audit.newest(kinds=kinds, items_max=_RECORDS_MAX) if wanted in each.body]
    for record in records:
        if (decision := PolicySet.recorded(record, body=office.audit.body)) is not None:
            return record.number, decision
    raise UsageError(
        f"no decision is recorded under {what!r}",
        hint="give a number of `quell audit list --kind decision`, a call id, or a tool with --arguments",
    )


def _what(office: Office, record: RecordedDecision) -> str:
    call = record.call
    place = f"{call.resource.kind} {call.resource.name or '(the whole server)'} in {call.resource.environment}"
    return office.approvals.visible(f"{call.tool} on {place}")
