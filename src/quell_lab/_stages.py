"""Telling a person how far something is: a live line on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Stages:
    """Prints stages with the times they took."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._began_s = time.monotonic()
        self._console: Console | None = None
        if self._stream.isatty():
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Show that something is going on, and when it is done how long it took."""
        began_s = time.monotonic()
        with ExitStack() as stack:
            if self._console is not None:
                stack.enter_context(_spinner(title, self._console))
            else:
                self.say(f"{title} ...")
            yield
        self.say(f"{title}: {time.monotonic() - began_s:.1f} s")

    def say(self, text: str) -> None:
        """Print one line with the time since the start."""
        line = f"[{time.monotonic() - self._began_s:6.1f} s] {text}"
        if self._console is not None:
            self._console.print(line, markup=False)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def text(self, text: str) -> None:
        """Print text as it is."""
        self._stream.write(text.rstrip("\n") + "\n")
        self._stream.flush()


def _spinner(title: str, console: Console) -> Progress:
    """Return a line that shows what goes on and since when, and vanishes at the end."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    progress.add_task(title)
    return progress
