"""The direct way: runs of one kind that this process executes at once, without a queue that is asked now and then."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True, kw_only=True)
class Lane:
    """So many runs of a kind at once; the others wait for their turn, in order.

    Nothing rests on what waits here: the rows of the runs say the same, and the sweep reads them.
    """

    at_once_max: int
    busy: set[str] = field(default_factory=set)
    """What is executed here, or about to be."""
    reserved: int = 0
    """Places for runs that are just being written."""
    _waiting: OrderedDict[str, int] = field(default_factory=OrderedDict)

    @property
    def has_room(self) -> bool:
        """Whether one more can begin."""
        return len(self.busy) + self.reserved < self.at_once_max

    @property
    def is_clear(self) -> bool:
        """Whether nobody is in front of one who comes now."""
        return self.has_room and not self._waiting

    def wait(self, run: str, *, dispatch: int, place: Literal["first", "last"]) -> None:
        """Have a run wait for its turn; one that waits already keeps its place."""
        is_new = run not in self._waiting
        self._waiting[run] = max(dispatch, self._waiting.get(run, dispatch))
        if is_new and place == "first":
            self._waiting.move_to_end(run, last=False)

    def knows(self, run: str) -> bool:
        """Whether a run is executed here, or waits for its turn."""
        return run in self.busy or run in self._waiting

    def next(self) -> tuple[str, int] | None:
        """Take the next run and its dispatch, if one may begin: a run never runs twice here at the same time."""
        if not self.has_room:
            return None
        run = next((run for run in self._waiting if run not in self.busy), None)
        return None if run is None else (run, self._waiting.pop(run))

    def forget(self) -> None:
        """Let nobody wait here any more; the sweep finds them."""
        self._waiting.clear()
