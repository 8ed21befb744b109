"""The telemetry store and what lives on it, opened when somebody needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Literal, TypeAlias

from quell.config import Settings
from quell.domain import Alert, Answer, Clock, Entropy, Gap, QuellError, Question, StoreError

if TYPE_CHECKING:
    from quell.signals import ClickHouseReader, Detector, Receiver, Store

Role: TypeAlias = Literal["serve", "command"]
"""What a process is: one that serves, or a command."""
STORE_RETRY_S = 5.0
_STORE_READER = "store"


class Vault:
    """The telemetry store and what lives on it, opened when first needed."""

    def __init__(self, settings: Settings, *, role: Role, clock: Clock, entropy: Entropy) -> None:
        self._settings = settings
        self._role = role
        self._clock = clock
        self._entropy = entropy
        self._opening = asyncio.Lock()
        self._failure: tuple[float, QuellError] | None = None
        self.on_open: Callable[[], None] = lambda: None
        self.firing: Callable[[], Awaitable[Sequence[Alert]]] = _none_firing
        self.store: Store | None = None
        self.reader: ClickHouseReader | None = None
        self.receiver: Receiver | None = None
        self.detector: Detector | None = None

    async def open(self) -> Store:
        """Open the store once. Raises StoreError, ConfigError or StateHeldError, at once again for a while after it failed."""
        async with self._opening:
            if self.store is not None:
                return self.store
            now = asyncio.get_running_loop().time()
            if self._failure is not None and now - self._failure[0] < STORE_RETRY_S / 2:
                raise self._failure[1]
            try:
                self.store = await self._build()
            except QuellError as error:
                self._failure = (now, error)
                raise
            self.on_open()
            return self.store

    async def _build(self) -> Store:
        # numpy and all that reads telemetry are loaded when some is read: who asks an agent waits for neither.
        from quell.signals import ClickHouseReader, Detector, Receiver, Store  # noqa: PLC0415

        settings = self._settings
        async with AsyncExitStack() as undo:
            store = await Store.open(settings.store, state_dir=settings.state_dir, clock=self._clock)
            undo.push_async_callback(store.close)
            if self._role == "serve":
                receiver = await Receiver.open(
                    store,
                    state_dir=settings.state_dir,
                    clock=self._clock,
                    entropy=self._entropy,
                    body_max_bytes=int(settings.server.body_max_mb * 1024 * 1024),
                )
                undo.push_async_callback(receiver.close)
                known = [alert for alert in await self.firing() if alert.source == "detector"]
                self.detector = Detector(store.client, settings=settings.detection, entropy=self._entropy, known=known)
                self.receiver = receiver
            self.reader = ClickHouseReader(store.client, name=_STORE_READER)
            undo.pop_all()
        return store

    async def take(self, signal: Literal["logs", "traces", "metrics"], body: bytes) -> None:
        """Store one OTLP payload at once. Raises StoreError."""
        if self.store is None:
            raise StoreError("the telemetry store is not open")
        await self.store.take(signal, body)

    async def open_reader(self) -> ClickHouseReader:
        """Open the store and return its reader. Raises as `open` does."""
        await self.open()
        assert self.reader is not None, "an open store has its reader"
        return self.reader

    async def close(self) -> None:
        """Close what was opened, in reverse order."""
        if self.receiver is not None:
            await self.receiver.close()
        if self.store is not None:
            await self.store.close()


async def _none_firing() -> Sequence[Alert]:
    return ()


class StoreReader:
    """Asks the telemetry store, which is opened at the first question; a store that cannot be opened is a Gap."""

    name = _STORE_READER

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        """Answer one question."""
        try:
            reader = await self._vault.open_reader()
        except QuellError as error:
            detail = f"the telemetry store cannot be used: {error}"
            return Gap(question=question.kind, source=self.name, query="", reason="failed", detail=detail)
        return await reader.ask(question, timeout_s=timeout_s)

    async def check(self) -> list[str]:
        """Return what keeps the store from answering."""
        try:
            reader = await self._vault.open_reader()
        except QuellError as error:
            return [f"{error} ({error.hint})" if error.hint else str(error)]
        return await reader.check()
