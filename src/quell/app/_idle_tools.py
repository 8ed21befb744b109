"""Our own tools for who lists them, or judges policies by them, and opens nothing that they could see with."""

from __future__ import annotations

from collections.abc import Sequence

from quell.app._ask_people import ask_people_hand
from quell.app._file_tools import file_hands
from quell.app._memory import DOCUMENTS, search_hand, skill_hands
from quell.app._senses_tools import sense_tools
from quell.config import AgentSettings, Settings
from quell.domain import CallRequest, Clock, OutcomeKind, Tool, ToolOutcome
from quell.memory import Library, Shelf, Skills
from quell.tools import LocalHand


def idle_tools(settings: Settings, agents: Sequence[AgentSettings], *, clock: Clock) -> list[tuple[Tool, LocalHand]]:
    """Return the tools that a process with these agents has, none of which can be called here."""
    library = Library(settings.state_dir, clock=clock)
    prefixes = {DOCUMENTS: ""}
    for store in (each for agent in agents for each in agent.vector_stores):
        prefixes.setdefault(store.name, store.context_prefix)
    hands = [
        *skill_hands(lambda _request: Skills.load(())),
        *(search_hand(Shelf(library, name=name), clock=clock, context_prefix=of) for name, of in prefixes.items()),
        *file_hands(lambda _request: (), state_dir=settings.state_dir),
        ask_people_hand(),
    ]

    async def refuse(request: CallRequest, _key: str) -> ToolOutcome:
        told = "nothing is open here that could be looked at; a process with agents answers"
        return ToolOutcome(call=request.call.id, tool=request.call.tool, kind=OutcomeKind.DENIED, detail=told)

    return [(tool, LocalHand(tool.name, refuse)) for tool in (*sense_tools(), *(tool for tool, _ in hands))]
