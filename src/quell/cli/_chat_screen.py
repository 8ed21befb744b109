"""What a conversation prints: lines are only ever appended, and nothing that others wrote can move the cursor."""

from __future__ import annotations

import shutil
import sys

from quell.cli._chat_view import Stage
from quell.cli._output import painted
from quell.cli._session import Session
from quell.domain import printable

_WIDTH_DEFAULT, _WIDTH_MAX, _WIDTH_MIN = 100, 120, 40
_HEIGHT_DEFAULT = 24


class Screen:
    """Writes to stdout what was said, and to stderr what is told about it; at a terminal both are one scrollback."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held = ""
        """The beginning of a line that is not complete yet."""
        self._is_open = False
        """Whether what stands last on stdout ends in the middle of a line."""
        self.is_terminal = sys.stdout.isatty()

    @property
    def page_lines(self) -> int:
        """Return how many lines a person sees at once; 0: nobody looks."""
        return max(5, shutil.get_terminal_size((_WIDTH_DEFAULT, _HEIGHT_DEFAULT)).lines - 3) if self.is_terminal else 0

    def say(self, text: str) -> None:
        """Print some more of an answer. At a terminal whole lines only: what is typed below them stays where it is."""
        if not self.is_terminal:
            self._put(text)
            return
        width = self._width()
        *lines, self._held = (self._held + text).split("\n")
        for line in lines:
            self._put(line + "\n")
        while len(self._held) > width:
            cut = self._held.rfind(" ", 1, width)
            cut = cut if cut > 0 else width
            self._put(self._held[:cut] + "\n")
            self._held = self._held[cut:].lstrip(" ")

    def end_line(self) -> None:
        """Complete the line that is being said."""
        held, self._held = self._held, ""
        if held:
            self._put(held)
        if self._is_open:
            self._put("\n")

    def tell(self, text: str) -> None:
        """Print a remark about the conversation."""
        self.end_line()
        sys.stderr.write("\n".join(map(printable, text.rstrip("\n").split("\n"))) + "\n")
        sys.stderr.flush()

    def put(self, text: str) -> None:
        """Print what was asked for by a command."""
        self.end_line()
        self._put(text.rstrip("\n") + "\n")

    def stage(self, stage: Stage) -> None:
        """Print one line of progress."""
        self.end_line()
        word = painted(f"{stage.word:6}", stage.colour, self._session, stream="stderr")
        sys.stderr.write(f"{word} {printable(stage.name)} {printable(stage.tail)}".rstrip() + "\n")
        sys.stderr.flush()

    def _put(self, text: str) -> None:
        sys.stdout.write("\n".join(map(printable, text.split("\n"))))
        sys.stdout.flush()
        self._is_open = bool(text) and not text.endswith("\n")

    @staticmethod
    def _width() -> int:
        return max(_WIDTH_MIN, min(_WIDTH_MAX, shutil.get_terminal_size((_WIDTH_DEFAULT, _HEIGHT_DEFAULT)).columns - 1))
