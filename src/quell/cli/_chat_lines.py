"""Where typed lines come from: an input line that stays below the output, or plain lines where nobody sits."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

_LINE_BYTES_MAX = 1_000_000
_HISTORY_MODE = 0o600


class Lines(Protocol):
    """Gives one line after the other."""

    async def next(self) -> str | None:
        """Return the next line; None at the end."""
        ...


class PlainLines:
    """Lines of stdin as they come, without any drawing."""

    def __init__(self) -> None:
        self._held = b""
        self._is_over = False
        self._is_there = asyncio.Event()

    async def next(self) -> str | None:
        """Return the next line of stdin."""
        while b"\n" not in self._held and not self._is_over:
            await self._more()
        line, found, rest = self._held.partition(b"\n")
        self._held = rest
        if not found and not line:
            return None
        return line.decode("utf-8", errors="replace").rstrip("\r")

    async def _more(self) -> None:
        """Read what is there; waited for in the loop where it can be, because that is where Ctrl-C is heard."""
        loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
        self._is_there.clear()
        try:
            loop.add_reader(descriptor, self._is_there.set)
        except (PermissionError, RuntimeError):
            pass  # a plain file: it is always there
        else:
            try:
                await self._is_there.wait()
            finally:
                loop.remove_reader(descriptor)
        read = os.read(descriptor, 65536)
        self._is_over = not read or len(self._held) > _LINE_BYTES_MAX
        self._held += read


class PromptLines:
    """An input line of prompt_toolkit below everything that is printed; the scrollback is never painted again."""

    def __init__(self, prompt: Any, *, on_interrupt: Callable[[], None], words: Callable[[], str]) -> None:
        self._prompt = prompt
        self._on_interrupt = on_interrupt
        self._words = words

    async def next(self) -> str | None:
        """Return the next line; Ctrl-C is told and is no line."""
        while True:
            try:
                line: str = await self._prompt.prompt_async(self._words)
            except KeyboardInterrupt:
                self._on_interrupt()
                continue
            except EOFError:
                return None
            return line


@asynccontextmanager
async def open_lines(
    history: Path, *, on_interrupt: Callable[[], None], words: Callable[[], str]
) -> AsyncIterator[Lines]:
    """Open the best that there is: an input line at a terminal, plain lines elsewhere."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    # A distribution may leave it out: then lines are read as the terminal gives them.
    if not is_terminal or find_spec("prompt_toolkit") is None:
        yield PlainLines()
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.patch_stdout import patch_stdout

    from quell.cli._chat_words import OWN
    from quell.cli._root import COMMANDS

    history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(history, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, _HISTORY_MODE))
    names = [f"/{name}" for name in (*OWN, *COMMANDS)]
    output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
    # Nothing is asked of the terminal and no room is kept below the line: what was printed stays where it is.
    output.enable_cpr = False
    prompt: Any = PromptSession(
        history=FileHistory(str(history)),
        completer=WordCompleter(names, sentence=True),
        complete_while_typing=False,
        output=output,
        reserve_space_for_menu=0,
    )
    # Raw: what others wrote is made visible before it is printed, and the colours are ours.
    with patch_stdout(raw=True):
        yield PromptLines(prompt, on_interrupt=on_interrupt, words=words)
