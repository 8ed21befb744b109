"""Open the way to the agents, in this process or behind a URL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.app import App
    from quell.cli._chat_book import Book
    from quell.cli._chat_door import ChatDoor


API_URL_VARIABLE, AGENT_VARIABLE = "AURA_API_URL", "AURA_MODEL"
"""Where AURA's client finds its server and its agent; our own flags and variables win."""
_OWN_DEFAULT = "QUELL_DEFAULT_AGENT"


def server_of(session: Session, flag: str | None) -> str:
    """Return the address to ask, empty for this process: the flag's, else AURA's variable, which may stand in `.env`."""
    if flag is not None:
        return flag
    session.loaded()
    return session.env.get(API_URL_VARIABLE, "")


def agent_of(session: Session, *, server: str) -> str:
    """Return whom a new conversation is with when no flag says so: AURA's variable, unless ours says it here."""
    is_ours = not server and ("default_agent" in session.overrides or session.env.get(_OWN_DEFAULT))
    return "" if is_ours else session.env.get(AGENT_VARIABLE, "")


def with_door(
    session: Session, work: Callable[[ChatDoor], Awaitable[int]], *, model: str = "", server: str = ""
) -> int:
    """Let `work` use the agents; what was opened is closed after it."""
    if server:
        # Its `.env` may hold the key of the server.
        session.loaded()
        from quell.cli._chat_remote import Remote
        from quell.cli._loop import run_until_done

        async def far() -> int:
            async with Remote(server, session) as door:
                return await work(door)

        return run_until_done(far)
    from quell.cli._chat_door import Embedded, with_model

    if model:
        loaded = session.loaded()
        session.take(replace(loaded, agents=with_model(loaded.agents, model, session)))

    async def near(app: App) -> int:
        return await work(Embedded(app, session))

    return session.with_app(near, agents="open")


def book_of(session: Session) -> Book:
    """Return the conversations of the state directory, without those that are kept no longer."""
    from quell.audit import Redactor
    from quell.cli._chat_book import Book
    from quell.runs import system_clock

    settings = session.settings()
    book = Book(settings.state_dir, clock=system_clock, clean=Redactor.of(settings, environment=session.env).text)
    book.forget_old(kept_for=timedelta(days=settings.journal.retention_days))
    return book
