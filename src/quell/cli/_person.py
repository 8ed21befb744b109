"""Who sits at the command line, and how what they do comes on record."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.app import App, Office
    from quell.domain import Principal

API_KEY_VARIABLE = "QUELL_API_KEY"


def tenant_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command act for one of several tenants."""
    return click.option("--tenant", default="", metavar="NAME", help="Tenant, where several are served.")(command)


def person_of(session: Session, office: Office, *, tenant: str = "") -> Principal:
    """Return who acts: whoever the API key in the environment proves, else the owner of the state directory."""
    from quell.config import Secret

    return office.person(api_key=Secret(session.env.get(API_KEY_VARIABLE, "")), tenant=tenant)


async def person_in(app: App, session: Session) -> Principal:
    """Return who acts in an app of this process, as `person_of` does. Raises RefusedError for a key that proves nobody."""
    from quell.domain import Caller, LocalOwner, Principal, RefusedError

    key, identity = session.env.get(API_KEY_VARIABLE, ""), app.settings.identity
    if not key:
        owner = LocalOwner(tenant=(identity.tenants or (LocalOwner().tenant,))[0], roles=identity.owner_roles)
        return Principal(user=owner.user, tenant=owner.tenant, roles=owner.roles)
    shown = (("Authorization", f"Bearer {key}"),)
    found = await app.warden.identify(Caller(peer="", headers=shown, is_loopback=True))
    if isinstance(found, Principal):
        return found
    raise RefusedError(
        "the API key proves nobody here",
        hint=f"`quell key list` tells which keys hold; without {API_KEY_VARIABLE} you are the owner",
        code="unauthenticated",
    )


def one_of(beginning: str, names: Iterable[str], *, what: str, hint: str) -> str:
    """Return the one name that begins so. Raises UsageError when there is none, or more than one."""
    from quell.domain import UsageError

    known = list(names)
    found = [name for name in known if name.startswith(beginning)] if beginning else []
    if beginning in found:
        return beginning
    if len(found) == 1 and not beginning.endswith("_"):
        return found[0]
    if found:
        # The kind alone names nothing, even where there is only one: tomorrow it would be another.
        raise UsageError(f"{beginning!r} does not name one {what} of {len(found)}", hint="write more of it")
    raise UsageError(f"there is no {what} {beginning!r}", hint=hint)


async def confirmed(session: Session, question: str, *, word: str) -> bool:
    """Ask a person to type a word; where nobody can be asked, or JSON is wanted, nobody has."""
    if session.is_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    import asyncio

    from quell.domain import printable

    sys.stderr.write(f"{printable(question)}\nType {printable(word)} to go on: ")
    sys.stderr.flush()
    # Waited for in the loop: it is where Ctrl-C is heard, and a read that blocks it would go on for ever.
    loop, is_there = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, is_there.set)
    try:
        await is_there.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip() == word
