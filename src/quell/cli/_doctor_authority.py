"""What `quell doctor` checks of authority: keys, log, anchor, secrets, policies, emergencies, sandboxes, pins, tools."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from quell.cli._check import Check
from quell.cli._doctor_effects import effects

if TYPE_CHECKING:
    from quell.app import Office, Toolset
    from quell.config import Settings

_SERVER_S = 20.0
_UNSIGNED = timedelta(minutes=10)
"""A server signs every minute: what is older shows that none does."""
_KEYS = (
    ("audit key", "audit.key", "the audit log is signed with it"),
    ("votes key", "votes.key", "votes are signed with it"),
    ("key seal", "api-keys.key", "API keys are sealed with it"),
)


async def authority_checks(office: Office, toolset: Toolset) -> list[Check]:
    """Look at everything that authority rests on."""
    settings = office.settings
    checks = [*_keys(settings), _signed(office), *await _anchors(office), _secrets(office), _policy(toolset)]
    checks += [_emergencies(office), _sandbox(settings), _pins(office, toolset), effects(office)]
    return checks + [await _tools(office, toolset, name) for name in settings.mcp.servers]


def _keys(settings: Settings) -> list[Check]:
    found = []
    for name, file, use in _KEYS:
        path = settings.state_dir / "audit" / file
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            detail = f"{path} is not there yet; it is made when it is needed"
            found.append(Check(name=name, status="ok", detail=detail))
            continue
        if mode & 0o077:
            hint = f"chmod 600 {path}; whoever read it can pretend: {use}"
            found.append(Check(name=name, status="bad", detail=f"{path} can be read by others", hint=hint))
        else:
            found.append(Check(name=name, status="ok", detail=f"{path} is readable by its owner only"))
    return [*found, *_replaced(settings)]


def _replaced(settings: Settings) -> list[Check]:
    """Tell of a key of the log that went away and was made anew: nobody else would notice."""
    path = settings.state_dir / "audit" / "audit.pub"
    try:
        keys = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError:
        return []
    if len(keys) < 2:
        return []
    detail = f"the key that signs the audit log is number {len(keys)}: an earlier one was lost or taken away"
    hint = (
        f"if nobody knows why, find out who could write {path.parent}; older signatures are checked by the older keys"
    )
    return [Check(name="audit key", status="warn", detail=detail, hint=hint)]


def _signed(office: Office) -> Check:
    """Tell of records that no signature covers: who writes the database could rewrite exactly those."""
    from quell.domain import AuditKind, JournalError

    audit, name = office.audit, "audit log"
    try:
        newest = audit.newest(items_max=1)
        signed = max((each.number for each in audit.newest(kinds=[AuditKind.CHECKPOINT], items_max=1)), default=0)
        rest = newest[0].number - signed if newest else 0
        if not rest:
            detail = "every record is signed" if newest else "no record yet"
            return Check(name=name, status="ok", detail=detail)
        (oldest,) = audit.records(after=signed, last=signed + 1)
    except (JournalError, ValueError) as error:
        hint = "`quell audit verify` names the place"
        return Check(name=name, status="bad", detail=f"a record cannot be read: {error}", hint=hint)
    detail = f"{rest} records since {oldest.at[:19]}Z are not signed: they rest on the chain alone"
    if office.clock() - datetime.fromisoformat(oldest.at) < _UNSIGNED:
        return Check(name=name, status="ok", detail=detail)
    hint = "`quell audit checkpoint` signs them; `quell serve` does so every minute"
    return Check(name=name, status="warn", detail=detail, hint=hint)


async def _anchors(office: Office) -> list[Check]:
    wanted = office.settings.governance
    checks = [_file_anchor(office, Path(wanted.anchor_file))] if wanted.anchor_file else []
    if wanted.anchor_git:
        checks.append(await asyncio.to_thread(_git_anchor, office))
    if checks:
        return checks
    hint = (
        "set governance.anchor_file to a file on another disk or machine, or governance.anchor_git with a remote, "
        "and keep the public key elsewhere"
    )
    detail = f"no anchor: a rewrite of the whole audit log would not be found; public key {office.audit.public_key}"
    return [Check(name="anchor", status="warn", detail=detail, hint=hint)]


def _git_anchor(office: Office) -> Check:
    """Read back what the anchor in git holds: a remote that is away is told before a checkpoint is due."""
    from quell.domain import WorldError
    from quell.tools import Git

    wanted = office.settings.governance
    repository, branch = Path(wanted.anchor_git), wanted.anchor_git_branch
    anchor = Git.Anchor(repository, remote=wanted.anchor_git_remote, branch=branch, timeout_s=_SERVER_S)
    try:
        count = len(anchor.published())
    except WorldError as error:
        return Check(name="anchor in git", status="bad", detail=str(error), hint=error.hint)
    told = f"{anchor.name} holds {count} checkpoints; public key {office.audit.public_key}"
    if not wanted.anchor_git_remote and repository.stat().st_dev == office.settings.state_dir.stat().st_dev:
        hint = "whoever can rewrite the log can rewrite this too: set governance.anchor_git_remote"
        return Check(name="anchor in git", status="warn", detail=f"{repository} has no remote; {told}", hint=hint)
    return Check(name="anchor in git", status="ok", detail=told)


def _file_anchor(office: Office, path: Path) -> Check:
    at = path if path.exists() else path.resolve().parent
    if not os.access(at, os.W_OK):
        return Check(
            name="anchor", status="bad", detail=f"{path} cannot be written", hint="checkpoints cannot be anchored"
        )
    if at.stat().st_dev == office.settings.state_dir.stat().st_dev:
        hint = "whoever can rewrite the log can rewrite this too: choose another disk or machine"
        return Check(name="anchor", status="warn", detail=f"{path} lies on the disk of the journal", hint=hint)
    return Check(name="anchor", status="ok", detail=f"{path} takes checkpoints; public key {office.audit.public_key}")


def _secrets(office: Office) -> Check:
    short = office.redactor.refused
    if short:
        hint = "use longer ones: these are not taken out of prompts, logs and reports"
        return Check(name="secrets", status="warn", detail=f"too short to be found: {', '.join(short)}", hint=hint)
    return Check(name="secrets", status="ok", detail="every secret of the configuration is long enough to be found")


def _policy(toolset: Toolset) -> Check:
    from quell.domain import ConfigError
    from quell.governance import PolicySet

    try:
        report = PolicySet.check(toolset.policy_sources(), tools=toolset.registry.tools)
    except ConfigError as error:
        return Check(name="policy", status="bad", detail=str(error), hint=error.hint)
    if report.problems:
        detail = f"{len(report.problems)} mistakes; nothing is permitted until they are put right"
        return Check(name="policy", status="bad", detail=detail, hint="`quell policy check` lists every one")
    return Check(name="policy", status="ok", detail=f"{len(report.policies)} policies are right")


def _emergencies(office: Office) -> Check:
    """Tell of authority that was taken in emergencies and that nobody has reviewed."""
    from quell.domain import LocalOwner

    break_glass = office.approvals.break_glass
    with office.runs.database.reading() as connection:
        tenants = office.settings.identity.tenants or (LocalOwner().tenant,)
        late = [each for tenant in tenants for each in break_glass.overdue(connection, tenant=tenant)]
        waiting = sum(len(break_glass.unreviewed(connection, tenant=tenant)) for tenant in tenants)
    if late:
        names = ", ".join(f"{each.id} ({each.user}, tenant {each.tenant})" for each in late[:5])
        detail = f"{len(late)} past the time of review: {names}{' and more' * (len(late) > 5)}; nothing is promoted"
        hint = "somebody else, with the role admin or auditor: `quell break-glass review ID --review ...`"
        return Check(name="break-glass", status="warn", detail=detail, hint=hint)
    detail = "nothing waits for review"
    if waiting:
        detail = f"{waiting} wait for review, none past its time; `quell break-glass list` shows them"
    return Check(name="break-glass", status="ok", detail=detail)


def _sandbox(settings: Settings) -> Check:
    from quell.tools import Sandbox

    machine = Sandbox.capabilities()
    has = [
        "bubblewrap" if machine.bubblewrap else f"no bubblewrap ({machine.problem})",
        f"Landlock {machine.landlock}" if machine.landlock else "no Landlock",
        "cgroup limits" if machine.cgroup else "no delegated cgroup: limits hold per process",
    ]
    piped = {name: each for name, each in settings.mcp.servers.items() if each.transport == "stdio"}
    needing = [name for name, each in piped.items() if each.sandbox == "required"]
    loose = [name for name, each in piped.items() if each.sandbox == "best_effort"]
    detail = ", ".join(has)
    if machine.bubblewrap and not machine.landlock and piped:
        hint = "the second layer is missing: boot a kernel with Landlock (5.13 or later, `lsm=` names landlock)"
        return Check(name="sandbox", status="warn", detail=detail, hint=hint)
    if machine.bubblewrap:
        return Check(name="sandbox", status="ok", detail=detail)
    hint = "install bubblewrap and allow user namespaces"
    if needing:
        return Check(name="sandbox", status="bad", detail=f"{detail}; {', '.join(needing)} will not start", hint=hint)
    told = f"; {', '.join(loose)} would run with less around it" if loose else ""
    return Check(name="sandbox", status="warn", detail=detail + told, hint=hint)


def _pins(office: Office, toolset: Toolset) -> Check:
    """Tell of rows that look like pins and do not carry the seal of what a person accepted."""
    with office.runs.database.reading() as connection:
        pinned, broken = toolset.pins.listed(connection), toolset.pins.broken(connection)
    if not broken:
        return Check(name="pins", status="ok", detail=f"{len(pinned)} are as people left them, by their seals")
    detail = f"not what people accepted, and not served: {', '.join(broken)}"
    hint = "somebody wrote to the database, or the key of votes is gone: look, then `quell tool pin SERVER NAME`"
    return Check(name="pins", status="bad", detail=detail, hint=hint)


async def _tools(office: Office, toolset: Toolset, server: str) -> Check:
    """Ask a server what it offers, and compare with what people accepted."""
    from quell.app import ToolDesk

    name = f"tools {server}"
    try:
        async with asyncio.timeout(_SERVER_S):
            (found,) = await ToolDesk(office, toolset).checked(server)
    except TimeoutError:
        return Check(name=name, status="bad", detail=f"no answer within {_SERVER_S:g} s")
    if found.state == "down":
        return Check(name=name, status="bad", detail=found.reason, hint=found.hint)
    changed, gone = found.changed, found.gone
    detail = f"{found.pinned} tools are pinned, {found.pinned - len(gone) + found.unknown} are offered"
    if changed or gone:
        told = [f"changed: {', '.join(changed)}"] * bool(changed) + [f"gone: {', '.join(gone)}"] * bool(gone)
        hint = f"`quell tool diff {server}` shows how; what changed is refused until somebody pins it again"
        return Check(name=name, status="warn", detail=f"{detail}; {'; '.join(told)}", hint=hint)
    if not found.pinned:
        hint = f"`quell tool diff {server}`, then `quell tool pin {server} NAME`"
        return Check(name=name, status="warn", detail=detail, hint=hint)
    return Check(name=name, status="ok", detail=detail)
