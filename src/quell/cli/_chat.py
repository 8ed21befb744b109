"""`quell chat`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from quell.cli._root import QuellCommand
from quell.cli._session import Session

if TYPE_CHECKING:
    from quell.cli._chat_book import Book, Conversation
    from quell.cli._chat_door import ChatDoor
    from quell.cli._chat_repl import Repl
    from quell.cli._chat_screen import Screen
    from quell.cli._chat_tools import ClientTools
    from quell.cli._chat_words import Word

_VERB_S = 120.0


@click.command("chat", cls=QuellCommand)
@click.option("--agent", default="", metavar="ID", help="Which agent; AURA_MODEL or the default one otherwise.")
@click.option("--model", default="", metavar="PROVIDER/NAME", help="Another model than the agent's, or `builtin`.")
@click.option("--resume", default="", metavar="ID|NAME", help="Go on with this conversation.")
@click.option(
    "--server",
    metavar="URL",
    help="Talk to a `quell serve` instead of an agent of this process; AURA_API_URL without it.",
)
@click.option(
    "--client-tools",
    is_flag=True,
    help="Let the agent have Shell, Read, Update ... carried out here, if it takes them.",
)
@click.pass_obj
def chat_command(
    session: Session, *, agent: str, model: str, resume: str, server: str | None, client_tools: bool
) -> int:
    """Talk to an agent. `/help` tells what can be typed; what is printed is only ever appended.

    Without a terminal every line of stdin is a question or a command, and stdout holds the answers.
    Ctrl-C stops an answer for good, once more leaves.
    """
    if server and model:
        raise click.UsageError("--model is not for --server: it has its own; choose by --agent")
    if session.is_json:
        raise click.UsageError("chat is for people; `quell ask --json` is for programs")
    from quell.cli._chat_open import server_of, with_door

    where = "" if model else server_of(session, server)

    async def talk(door: ChatDoor) -> int:
        return await _talk(door, session, agent=agent, resume=resume, has_tools=client_tools, server=where)

    return with_door(session, talk, model=model, server=where)


async def _talk(door: ChatDoor, session: Session, *, agent: str, resume: str, has_tools: bool, server: str) -> int:
    from quell.cli._chat_lines import open_lines
    from quell.cli._chat_open import agent_of, book_of
    from quell.cli._chat_repl import Repl
    from quell.cli._chat_screen import Screen

    book = book_of(session)
    async with AsyncExitStack() as stack:
        repl = Repl(
            door=door,
            screen=Screen(session),
            book=book,
            talk=await _conversation(
                book, door, agent=agent, otherwise=agent_of(session, server=server), resume=resume
            ),
            verb=_verbs(session, server=server),
        )
        if has_tools:
            repl.tools = await _client_tools(repl, session)
        history = session.settings().state_dir / "chat-history"
        lines = await stack.enter_async_context(
            open_lines(history, on_interrupt=repl.interrupt, words=lambda: repl.words)
        )
        await _greet(repl)
        return await repl.run(lines)


async def _conversation(book: Book, door: ChatDoor, *, agent: str, otherwise: str, resume: str) -> Conversation:
    from quell.cli._chat_repl import taken_up

    if not resume:
        return book.begin(agent=agent or otherwise, where=door.where)
    found = await taken_up(book, door, resume)
    return replace(found, agent=agent or found.agent)


async def _greet(repl: Repl) -> None:
    if not repl.screen.is_terminal:
        return
    cards = await repl.door.cards()
    who = next((each for each in cards if each.id == repl.talk.agent), cards[0] if len(cards) == 1 else None)
    told = f"{who.id} ({who.model})" if who is not None else f"{len(cards)} agents: /agents lists them"
    repl.screen.tell(f"{told} in {repl.door.where}; conversation {repl.talk.id}; /help tells what can be typed")


def _verbs(session: Session, *, server: str) -> Callable[[Word], Awaitable[str]]:
    """Return what does the verbs of the command line: the same command, on the same state or the same server."""

    async def run(word: Word) -> str:
        from quell.cli._chat_process import run_verb
        from quell.cli._chat_remote import remote_verb

        if server and word.name != "tool":
            return await remote_verb(server, session, word)
        # Of tools every verb knows the way to a server itself.
        there = ("--server", server) if server else ()
        words = word.arguments or (("list",) if there else ())
        ran = await run_verb(session, [word.name, *words, *there], timeout_s=_VERB_S)
        return "\n".join(part.rstrip("\n") for part in (ran.out, ran.err) if part.strip())

    return run


async def _client_tools(repl: Repl, session: Session) -> ClientTools:
    """Return the tools of this terminal. Both sides have to want them: who gives the flag is told when one does not."""
    from quell.cli._chat_permit import read_permit
    from quell.cli._chat_tools import ClientTools

    home = Path(session.env["HOME"]) if session.env.get("HOME") else None
    cards = await repl.door.cards()
    if not any(each.takes_client_tools for each in cards if repl.talk.agent in {"", each.id}):
        repl.screen.tell("the agent takes no client tools: set `enable_client_tools = true` in its [agent] table")
    return ClientTools(read_permit(Path.cwd(), home=home), ask=_question(repl, repl.screen))


def _question(repl: Repl, screen: Screen) -> Callable[[str, str], Awaitable[Literal["yes", "no", "always", "never"]]]:
    async def ask(tool: str, preview: str) -> Literal["yes", "no", "always", "never"]:
        if not (sys.stdin.isatty() and screen.is_terminal):
            screen.tell(f"{tool} is not in .quell/permissions.json, and nobody can be asked: denied")
            return "no"
        typed = await repl.asked_person(f"{tool}\n{preview}", "Type yes, no, always or never, and Enter")
        words: dict[str, Literal["yes", "no", "always", "never"]] = {
            "y": "yes",
            "yes": "yes",
            "a": "always",
            "always": "always",
            "d": "never",
            "deny": "never",
            "never": "never",
        }
        return words.get(typed.lower(), "no")

    return ask
