"""`quell init --server URL`: this directory as a client of a `quell serve`, or of anybody's OpenAI endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quell.cli._chat_open import AGENT_VARIABLE, API_URL_VARIABLE
from quell.cli._person import API_KEY_VARIABLE

if TYPE_CHECKING:
    from quell.cli._chat_door import Card
    from quell.cli._session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What a directory has to know to ask a server."""

    url: str
    agent: str
    """Empty: the server's default one."""
    key: str
    """A new key; empty when the environment has one, or none is needed."""
    cards: tuple[Card, ...]
    """The agents that the server lists; none where it was not asked."""

    def variables(self) -> dict[str, str]:
        """Return what `.env` has to set."""
        told = {API_URL_VARIABLE: self.url, AGENT_VARIABLE: self.agent, API_KEY_VARIABLE: self.key}
        return {name: value for name, value in told.items() if value}


def listed(session: Session, url: str, *, key: str) -> tuple[str, tuple[Card, ...]]:
    """Return the address as it is kept, and the agents that the server lists to this key.

    Raises UsageError for what is no address, RefusedError for a key that proves nobody, WorldError for silence.
    """
    from quell.cli._chat_remote import Remote
    from quell.cli._loop import run_until_done

    if key:
        session.env[API_KEY_VARIABLE] = key
    found: list[tuple[str, tuple[Card, ...]]] = []

    async def look() -> int:
        async with Remote(url, session) as door:
            found.append((door.where, tuple(await door.cards())))
        return 0

    run_until_done(look)
    return found[0]


def checked(agent: str, cards: Sequence[Card]) -> str:
    """Return the agent that is wanted. Raises UsageError when the server lists others only."""
    import difflib

    from quell.domain import UsageError

    names = [each.id for each in cards]
    if not agent or not names or agent in names:
        return agent
    near = difflib.get_close_matches(agent, names, n=3, cutoff=0.4)
    raise UsageError(
        f"the server lists no agent {agent!r}",
        hint=f"did you mean {' or '.join(near)}?" if near else f"it lists: {', '.join(names)}",
    )
