"""One real store on a loop of its own thread, so that plain tests can share it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from quell.config import StoreSettings
from quell.domain import StoreError
from quell.runs import system_clock
from quell.signals import Receiver, Store

T = TypeVar("T")


now = system_clock


class LiveStore:
    """A store, and a receiver before it when asked for; each test uses names of its own."""

    def __init__(self, state_dir: Path, *, settings: StoreSettings | None = None) -> None:
        self.state_dir = state_dir
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.receiver: Receiver | None = None
        try:
            self.store = self.run(lambda: Store.open(settings or StoreSettings(), state_dir=state_dir, clock=now))
        except BaseException:
            self._end()
            raise

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine on the store's loop."""

        async def call() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(55)

    def rows(
        self, sql: str, row: type[T], params: Mapping[str, str | int | datetime | list[str]] | None = None
    ) -> list[T]:
        """Ask."""
        return self.run(lambda: self.store.client.rows(sql, params=params, row=row, timeout_s=10))

    def number(self, sql: str) -> int:
        """Ask for one number, named n."""
        return int(self.rows(sql, dict)[0]["n"] or 0)

    def until(self, sql: str, wanted: int, *, patience_s: float = 20.0) -> int:
        """Ask for one number until it is what is wanted, or patience ends; return the last answer."""
        waited = 0.0
        while (found := self._number_or_none(sql)) != wanted and waited < patience_s:
            self.run(lambda: asyncio.sleep(0.1))
            waited += 0.1
        return self.number(sql) if found is None else found

    def _number_or_none(self, sql: str) -> int | None:
        try:
            return self.number(sql)
        except StoreError:
            return None

    def close(self) -> None:
        """Close the receiver, the store and the loop."""
        if self.receiver is not None:
            self.run(self.receiver.close)
        self.run(self.store.close)
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
