"""Live progress of a run on stderr, from its event log: one line per stage, a moving last line on terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quell.cli._events import body_of
from quell.cli._output import painted, wants_colour
from quell.cli._session import Session
from quell.cli._values import length_text
from quell.domain import printable

if TYPE_CHECKING:
    from rich.status import Status
    from rich.text import Text

    from quell.domain import Event

_READ = "read:"


class Progress:
    """Turns events into lines. Lines are only ever appended; what moves is one last line, and it disappears."""

    def __init__(
        self, session: Session, *, status: Status | None = None, text: Callable[[str], Text | str] = str
    ) -> None:
        self._session = session
        self._status = status
        self._text = text
        self._reads = 0
        self._read_failures = 0
        self._reads_ms = 0.0

    def take(self, event: Event) -> None:
        """Tell one event."""
        body = body_of(event)
        name = str(body.get("name", ""))
        if event.name == "step.started":
            self._now(f"reading {name.removeprefix(_READ)}" if name.startswith(_READ) else name)
        elif event.name in {"step.finished", "step.failed"} and name.startswith(_READ):
            self._reads += 1
            self._read_failures += event.name == "step.failed"
            self._reads_ms += _number(body.get("elapsed_ms"))
        elif event.name == "step.finished":
            self._end_reads()
            self._line("green", "done", name, length_text(_number(body.get("elapsed_ms")) / 1000))
        elif event.name == "step.failed":
            self._end_reads()
            self._line("red", "failed", name, str(body.get("error", "")))
        elif event.name == "run.waiting":
            self._now(f"letting it unfold until {body.get('until', '')}")
        elif event.name in {"run.failed", "run.cancelled"}:
            self._end_reads()
            self._line("red", event.name.removeprefix("run."), event.run, str(body.get("error", "")))

    def stage(self, colour: str, word: str, stage: str, tail: str) -> None:
        """Tell of a stage that is over, in a line that stays."""
        self._line(colour, word, stage, tail)

    def now(self, text: str) -> None:
        """Tell what is being done, where a last line moves; nowhere else."""
        self._now(text)

    def _end_reads(self) -> None:
        if self._reads:
            failed = f", {self._read_failures} failed" if self._read_failures else ""
            self._line(
                "green", "done", "read", f"{self._reads} questions{failed}, {length_text(self._reads_ms / 1000)}"
            )
            self._reads = 0

    def _now(self, text: str) -> None:
        if self._status is not None:
            # As text, not as a string: rich would read markup in brackets.
            self._status.update(self._text(printable(text)))

    def _line(self, colour: str, word: str, stage: str, tail: str) -> None:
        told = f"{painted(f'{word:6}', colour, self._session, stream='stderr')} {printable(stage):10} {printable(tail)}"
        if self._status is not None:
            # Above the moving line; rich must not read brackets in it as markup.
            self._status.console.out(told.rstrip(), highlight=False)
        else:
            sys.stderr.write(told.rstrip() + "\n")
            sys.stderr.flush()


@contextmanager
def progress(session: Session) -> Iterator[Progress]:
    """Open the display: rich on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty() or session.is_json or not wants_colour(session, stream="stderr"):
        yield Progress(session)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with console.status("starting") as status:
        yield Progress(session, status=status, text=Text)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
