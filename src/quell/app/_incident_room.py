"""The desk of incidents and the senses that see with it, opened when somebody needs them first.

Whoever asks an agent that looks at nothing waits neither for what reads telemetry nor for the tables of incidents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from quell.app._senses_tools import sense_tools
from quell.config import Settings
from quell.domain import Alert, CallRequest, Clock, Entropy, Resource, Tool, ToolOutcome, Window
from quell.runs import Runs
from quell.signals import Reader
from quell.tools import LocalHand

if TYPE_CHECKING:
    from quell.app._warden import Warden
    from quell.incidents import Curve, CurveAsk, Desk
    from quell.signals import ClickHouseReader

OpenReader = Callable[[], "Awaitable[ClickHouseReader]"]
"""Opens the telemetry store, if it is not, and returns its reader."""

_SERIES_TIMEOUT_S = 5.0


class IncidentRoom:
    """Where incidents are kept and investigated."""

    def __init__(
        self,
        settings: Settings,
        *,
        runs: Runs,
        warden: Warden,
        open_reader: OpenReader,
        readers: Sequence[Reader],
        clock: Clock,
        entropy: Entropy,
        ready: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """Open nothing yet; `ready` is awaited before an investigation is started."""
        self._settings = settings
        self._runs = runs
        self._warden = warden
        self._open_reader = open_reader
        self._readers = readers
        self._clock = clock
        self._entropy = entropy
        self._ready = ready
        self._opening = asyncio.Lock()
        self._works: Mapping[str, LocalHand] | None = None
        self.desk: Desk | None = None
        """None as long as nobody needed it."""

    async def open(self) -> Desk:
        """Open the desk, once. Raises JournalError when its tables cannot be used."""
        async with self._opening:
            if self.desk is None:
                self.desk = await asyncio.to_thread(self._open)
            return self.desk

    def _open(self) -> Desk:
        from quell.incidents import Desk  # noqa: PLC0415 - SQLAlchemy, diagnosis and reports: for who needs them

        return Desk(
            runs=self._runs,
            readers=self._readers,
            settings=self._settings.investigation,
            clock=self._clock,
            entropy=self._entropy,
            curves=_curves_of(self._open_reader),
            begins_at=_extent_of(self._open_reader),
            ready=self._ready,
            clean=self._warden.redactor.text,
        )

    async def firing(self) -> Sequence[Alert]:
        """Return the alerts that fire now."""
        return await (await self.open()).firing()

    async def inventory(self, resource: Resource) -> tuple[tuple[str, str], ...]:
        """Return what is known of a resource."""
        return await (await self.open()).inventory(resource)

    def hands(self) -> Iterable[tuple[Tool, LocalHand]]:
        """Return the senses as tools; the first call opens what they see with."""
        return [(tool, LocalHand(tool.name, self._sense(tool.name))) for tool in sense_tools()]

    def _sense(self, name: str) -> Callable[[CallRequest, str], Awaitable[ToolOutcome]]:
        async def use(request: CallRequest, key: str) -> ToolOutcome:
            works = await self._senses()
            return await works[name].use(request, key=key, within_s=request.tool.timeout_s)

        return use

    async def _senses(self) -> Mapping[str, LocalHand]:
        desk = await self.open()
        if self._works is None:
            self._works = await asyncio.to_thread(self._seeing_with, desk)
        return self._works

    def _seeing_with(self, desk: Desk) -> Mapping[str, LocalHand]:
        from quell.app._senses import Senses, desired_of  # noqa: PLC0415 - as above

        environment = self._settings.governance.environment
        senses = Senses(
            desk=desk,
            runs=self._runs,
            readers=self._readers,
            settings=self._settings.investigation,
            clock=self._clock,
            desired=desired_of(lambda: self._warden.authority, environment=environment),
        )
        return {tool.name: hand for tool, hand in senses.hands()}


def _curves_of(open_reader: OpenReader) -> Callable[[CurveAsk], Awaitable[tuple[Curve, ...]]]:
    """Return what draws the charts' curves from the store's rollups."""
    from quell.incidents import Curve  # noqa: PLC0415 - as above

    async def curves(ask: CurveAsk) -> tuple[Curve, ...]:
        reader = await open_reader()
        drawn = await reader.series(
            services=ask.services, edges=ask.edges, metrics=ask.metrics, window=ask.window, timeout_s=_SERIES_TIMEOUT_S
        )
        return tuple(Curve(subject=one.subject, measure=one.measure, unit=one.unit, points=one.points) for one in drawn)

    return curves


def _extent_of(open_reader: OpenReader) -> Callable[[Window], Awaitable[datetime | None]]:
    """Return what tells since when there is telemetry."""

    async def begins_at(window: Window) -> datetime | None:
        reader = await open_reader()
        return await reader.begins_at(window, timeout_s=_SERIES_TIMEOUT_S)

    return begins_at
