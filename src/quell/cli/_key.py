"""`quell key`: new, list, revoke."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from quell.cli._exit import ExitCode
from quell.cli._output import note, note_none, put_document, put_table, put_text
from quell.cli._person import API_KEY_VARIABLE, one_of, person_of, tenant_option
from quell.cli._root import QuellCommand, QuellGroup
from quell.cli._session import Session
from quell.cli._values import LONG_LENGTH, away, clock_time

if TYPE_CHECKING:
    from quell.app import Office
    from quell.domain import ApiKey


_ROLES = frozenset({"viewer", "operator", "approver", "admin", "auditor", "break-glass"})


@click.group("key", cls=QuellGroup)
def key_command() -> None:
    """Make, list and revoke API keys."""


@key_command.command("new", cls=QuellCommand)
@click.argument("name", metavar="NAME")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    help="viewer, operator, approver, admin, auditor or break-glass; again for more.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help="Such as tool:logs.* or verb:approval.*; without any, all that the roles may.",
)
@click.option("--user", default="", metavar="WHO", help="Whom it stands for; NAME without it.")
@click.option(
    "--expires", "lasts_s", type=LONG_LENGTH, default="90d", show_default=True, help="How long it is believed."
)
@tenant_option
@click.pass_obj
def new_key(
    session: Session,
    name: str,
    *,
    roles: tuple[str, ...],
    scopes: tuple[str, ...],
    user: str,
    lasts_s: float,
    tenant: str,
) -> int:
    """Make an API key. Its text is shown now and never again: only its seal is kept."""

    def use(office: Office) -> int:
        from quell.domain import AuditKind, KeyRequest, UsageError

        if not user and any(letter.isspace() for letter in name):
            raise UsageError(f"{name!r} names no person", hint="say whom the key stands for: --user WHO")
        by = person_of(session, office, tenant=tenant)
        request = KeyRequest(
            name=name,
            user=user or name,
            tenant=by.tenant,
            roles=tuple(dict.fromkeys(roles)),
            scopes=tuple(dict.fromkeys(scopes)),
            expires_at=office.clock() + timedelta(seconds=lasts_s),
        )
        with office.changing(by, verb="key.new", about=name) as connection:
            key, secret = office.identities().new_key(connection, request, by=by)
            body = {
                "key": key.id,
                "name": key.name,
                "user": key.user,
                "key_roles": list(key.roles),
                "scopes": list(key.scopes),
                "expires_at": key.expires_at.isoformat(),
            }
            office.record(connection, AuditKind.IDENTITY, by=by, verb="key.new", body=body)
        if session.is_json:
            put_document("key_made", key=key, secret=secret.reveal())
        else:
            # The text alone on stdout, so that it can be piped to where it is kept and seen by nobody.
            put_text(secret.reveal())
            note(f"{key.id} stands for {key.user} ({', '.join(key.roles)}) until {clock_time(key.expires_at)}")
            note("keep the text above now: it is not kept here and cannot be shown again")
        for role in set(roles) - _ROLES:
            note(f"{role!r} is no role of Quell's own: only a policy of yours that names it gives it anything")
        if not office.settings.identity.api_keys:
            note("keys are not believed yet: set identity.api_keys = true")
        note(f"use: Authorization: Bearer qk_..., or {API_KEY_VARIABLE} at the command line")
        return ExitCode.DONE

    return session.with_office(use)


@key_command.command("list", cls=QuellCommand)
@tenant_option
@click.pass_obj
def list_keys(session: Session, *, tenant: str) -> int:
    """List the API keys, without their secrets."""

    def use(office: Office) -> int:
        by, now = person_of(session, office, tenant=tenant), office.clock()
        with office.runs.database.reading() as connection:
            found = office.identities().keys(connection, by=by)
        if session.is_json:
            put_document("keys", keys=found, are_believed=office.settings.identity.api_keys)
            return ExitCode.DONE
        put_table(("ID", "STATE", "FOR", "ROLES", "SCOPES", "LAST USED", "NAME"), [_row(key, now=now) for key in found])
        if not found:
            note_none("API key", office.settings)
        elif not office.settings.identity.api_keys:
            note("keys are not believed: set identity.api_keys = true")
        return ExitCode.DONE

    return session.with_office(use)


@key_command.command("revoke", cls=QuellCommand)
@click.argument("key_id", metavar="ID")
@tenant_option
@click.pass_obj
def revoke_key(session: Session, key_id: str, *, tenant: str) -> int:
    """End an API key at once. A unique beginning of ID is enough."""

    def use(office: Office) -> int:
        from quell.domain import AuditKind

        by, identities = person_of(session, office, tenant=tenant), office.identities()
        with office.changing(by, verb="key.revoke", about=key_id) as connection:
            known = [key.id for key in identities.keys(connection, by=by)]
            named = one_of(key_id, known, what="key", hint="`quell key list` names them")
            key = identities.revoke_key(connection, named, by=by)
            body = {"key": key.id, "name": key.name, "user": key.user}
            office.record(connection, AuditKind.IDENTITY, by=by, verb="key.revoke", body=body)
        if session.is_json:
            put_document("key", key=key)
        else:
            put_text(f"{key.id} ({key.name}) is revoked")
        return ExitCode.DONE

    return session.with_office(use)


def _row(key: ApiKey, *, now: datetime) -> tuple[str, ...]:
    if key.revoked_at is not None:
        state = f"revoked {away(key.revoked_at, now=now)}"
    elif key.expires_at <= now:
        state = f"expired {away(key.expires_at, now=now)}"
    else:
        state = f"ends {away(key.expires_at, now=now)}"
    used = away(key.used_at, now=now) if key.used_at else "never"
    return (key.id, state, key.user, ",".join(key.roles), ",".join(key.scopes) or "all", used, key.name)
