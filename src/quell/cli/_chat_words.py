"""The slash commands of `quell chat`: their names, what they do, and what was probably meant."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from quell.cli._root import COMMANDS
from quell.domain import UsageError

OWN: Mapping[str, str] = {
    "help": "what can be typed here",
    "clear": "begin a new conversation",
    "expand": "[ID]: show the whole result of a tool, the newest or the one that is cited so",
    "stream": "on|off: print the answer as it comes, or at its end",
    "conversations": "list conversations, newest first",
    "resume": "ID|NAME: go on with a conversation",
    "rename": "NAME: name this conversation",
    "model": "PROVIDER/NAME|builtin: another model from now on",
    "agents": "[ID]: list agents, or talk to this one from now on",
    "cancel": "stop what is being answered, for good",
    "queue": "what was typed and waits for its turn; `/queue clear` forgets it",
    "quit": "leave; `/exit` as well",
}
ALIASES: Mapping[str, str] = {"exit": "quit", "agent": "agents", "new": "clear", "q": "quit", "?": "help"}
NOT_HERE = frozenset({"ask", "chat", "serve", "init", "watch", "completion", "help", "demo", "lab"})
"""Commands of `quell` that make no sense inside a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A slash command as it was typed."""

    name: str
    arguments: tuple[str, ...]
    rest: str
    """All that stands behind the name, as it was typed."""

    @property
    def is_verb(self) -> bool:
        """Whether it is a command of `quell` itself."""
        return self.name not in OWN


def read_word(line: str) -> Word:
    """Read a slash command. Raises UsageError for what is none, with what was probably meant."""
    name, _, rest = line.strip()[1:].partition(" ")
    name, rest = name.lower(), rest.strip()
    name = ALIASES.get(name, name)
    verbs = [each for each in COMMANDS if each not in NOT_HERE]
    if name not in OWN and name not in verbs:
        near = difflib.get_close_matches(name, [*OWN, *ALIASES, *verbs], n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(f'/{each}' for each in near)}?" if near else "/help lists what there is"
        raise UsageError(f"there is no /{name[:40]}", hint=hint)
    try:
        arguments = tuple(shlex.split(rest))
    except ValueError:
        arguments = tuple(rest.split())
    return Word(name=name, arguments=arguments, rest=rest)


def help_text() -> str:
    """Return what can be typed."""
    verbs = [each for each in COMMANDS if each not in NOT_HERE]
    rows = [f"  /{name:14} {text}" for name, text in OWN.items()]
    return "\n".join(
        [
            "Type a question and Enter. What is typed while an answer comes waits for its turn; commands act at once.",
            *rows,
            "",
            "As on the command line: "
            + ", ".join(f"/{each}" for each in verbs)
            + " (`/run trace ID`, `/approval list`)",
            "While people are asked: `a` approves what is shown, `r REASON` rejects it, `e JSON` asks for other arguments.",
            "Ctrl-C stops the answer for good, once more leaves.",
        ]
    )
