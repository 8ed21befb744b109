"""What a segment that is executed here writes of itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from quell.runs._begun import Begun
from quell.runs._context import JsonObject, StepRecord

if TYPE_CHECKING:
    from quell.runs._journal import Journal
    from quell.runs._thread import Call

_ANNOUNCE_AFTER_S = 0.002


class SegmentPen:
    """Writes for one segment that is executed here."""

    def __init__(self, journal: Journal, begun: Begun, *, keep: Call, keep_beside: Call) -> None:
        """Take what keeps at it until a write is done, at once or beside the next one."""
        self._journal = journal
        self._begun = begun
        self._keep = keep
        self._keep_beside = keep_beside
        self._announcements: dict[str, asyncio.Task[None]] = {}
        self._announced: set[str] = set()

    def step_started(self, name: str) -> None:
        """Tell that a step begins, unless its end comes at once."""
        self._announcements[name] = asyncio.create_task(self._announce(name))

    async def _announce(self, name: str) -> None:
        # A step that is over by then is told in one transaction with its end.
        await asyncio.sleep(_ANNOUNCE_AFTER_S)
        await self._announce_now(name)
        self._announcements.pop(name, None)  # steps may last long

    async def _announce_now(self, name: str) -> None:
        self._announced.add(name)
        await self._keep(self._journal.step_started, self._begun, name)

    async def step_retried(self, name: str, *, attempt: int, error: str) -> None:
        """Tell that an attempt failed and another follows."""
        await self._settle(name)
        if name not in self._announced:
            await self._announce_now(name)
        await self._keep(self._journal.step_retried, self._begun, name, attempt=attempt, error=error)

    async def step_ended(self, record: StepRecord, *, error: str | None) -> None:
        """Keep how a step ended, together with its event."""
        await self._settle(record.name)
        await self._keep(self._journal.step_ended, self._begun, record, error=error)

    async def _settle(self, name: str) -> None:
        """Let an announcement that is under way be written, and drop one that is not."""
        announcement = self._announcements.pop(name, None)
        if announcement is None:
            return
        if name in self._announced:
            await announcement
        else:
            announcement.cancel()

    def close(self) -> None:
        """Drop what was not announced; the segment is over."""
        for announcement in self._announcements.values():
            announcement.cancel()

    async def emit(self, name: str, *, key: str, body: JsonObject) -> None:
        """Append to the event log, once per key."""
        await self._keep(self._journal.emit, self._begun.run.id, name, key=key, body=body)

    async def emit_beside(self, name: str, *, key: str, body: JsonObject) -> None:
        """Append as `emit` does, in the flush of what is written next."""
        await self._keep_beside(self._journal.emit, self._begun.run.id, name, key=key, body=body)
