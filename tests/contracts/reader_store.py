"""A real store for one test module, driven from plain synchronous tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from quell.config import StoreSettings
from quell.signals import Store

T = TypeVar("T")


class LiveStore:
    """A store together with the loop that it lives on."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self.client = store.client
        self._loop = loop

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self._loop.run_until_complete(work)

    def now(self) -> datetime:
        return datetime.now(UTC).replace(microsecond=0)  # noqa: TID251 - the store's TTL and rollups go by the real clock

    def without_rollups(self) -> None:
        """Drop everything of ours, as if this were somebody else's ClickHouse."""

        async def drop() -> None:
            named = await self.client.rows(
                "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, 'quell_') "
                "ORDER BY engine = 'MaterializedView' DESC, name",
                row=dict[str, str],
                timeout_s=10,
            )
            for table in named:
                await self.client.command(f"DROP TABLE IF EXISTS {table['name']} SYNC", timeout_s=10)
            await self.client.load_schema(timeout_s=10)

        self.run(drop())


@contextmanager
def live_store(state_dir: Path) -> Iterator[LiveStore]:
    """Open a store of its own, and close it with everything it started."""
    loop = asyncio.new_event_loop()
    try:
        store = loop.run_until_complete(
            Store.open(StoreSettings(), state_dir=state_dir, clock=lambda: datetime.now(UTC))  # noqa: TID251 - as above
        )
        try:
            yield LiveStore(store, loop)
        finally:
            loop.run_until_complete(store.close())
    finally:
        loop.close()
