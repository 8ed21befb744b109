"""Models whose own protocols we do not speak: through the model layer of pydantic-ai, an extra, loaded when first asked.

That layer carries one request and streams its answer; retries, timeouts, prices and the loop stay here. What it gives
beyond our words (thoughts with their signatures) is remembered for a while, because some providers want it back with
the results of the calls that came with it; without it they answer all the same and think anew.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from quell.config import LlmSettings
from quell.domain import Clock, ConfigError, ModelError, ModelEvent, ModelFault, ModelRequest
from quell.models._direct_faults import fault_of
from quell.models._direct_kept import Kept
from quell.models._exchange import Hear, Patience
from quell.models._tokens import TokenCounter

if TYPE_CHECKING:
    from quell.models._direct_ways import Way

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "anthropic": ("pydantic_ai", "anthropic"),
    "bedrock": ("pydantic_ai", "boto3"),
    "gemini": ("pydantic_ai", "google.genai"),
}


class DirectModel:
    """One model of a provider that pydantic-ai speaks to."""

    def __init__(
        self,
        settings: LlmSettings,
        *,
        clock: Clock,
        env: Mapping[str, str],
        patience: Patience,
        hear: Hear | None = None,
    ) -> None:
        """Reach a model; nothing is loaded before it is asked. Raises ConfigError when what it needs is not installed."""
        needs(settings.provider)
        self._settings = settings
        self._env = env
        self._patience = patience
        self._hear = hear
        self._clock = clock
        self._counter = TokenCounter.for_model(settings.model)
        self._way: Way | None = None
        self._opening = asyncio.Lock()
        self._kept = Kept()

    @property
    def provider(self) -> str:
        """Return who runs it, as the price table names it."""
        return self._settings.provider

    @property
    def name(self) -> str:
        """Return its name at the provider."""
        return self._settings.model

    @property
    def window(self) -> int | None:
        """Return how many tokens request and answer may have together."""
        return self._settings.context_window

    @property
    def counter(self) -> TokenCounter:
        """Return what counts its tokens."""
        return self._counter

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Ask, and yield what comes. Raises as `Model.stream` does."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        said, quiet_s = False, self._patience.first_s
        try:
            way = await self._opened()
            async with AsyncExitStack() as stack:
                async with _within(min(quiet_s, ends_at - loop.time()), said=False):
                    answer = await stack.enter_async_context(way.asked(request, kept=self._kept))
                while True:
                    async with _within(min(quiet_s, ends_at - loop.time()), said=said):
                        events = await answer.next()
                    if events is None:
                        break
                    quiet_s = self._patience.quiet_s
                    for event in events:
                        said = True
                        yield event
                for event in answer.end():
                    yield event
        except (ModelError, asyncio.CancelledError):
            raise
        except Exception as error:
            # What SDKs raise has no root in common.
            raise fault_of(error, said=said, now=self._clock()) from error

    async def close(self) -> None:
        """Close its connections."""
        if self._way is not None:
            await self._way.close()

    async def _opened(self) -> Way:
        """Load the provider's package and open a way to it, once; loading takes up to a second of CPU."""
        async with self._opening:
            if self._way is None:
                ways = await asyncio.to_thread(importlib.import_module, "quell.models._direct_ways")
                make: Callable[..., Way] = ways.way_of
                self._way = await asyncio.to_thread(
                    make, self._settings, env=self._env, patience=self._patience, hear=self._hear
                )
            return self._way


def needs(provider: str) -> None:
    """Check that what a provider needs is installed. Raises ConfigError."""
    for module in _NEEDS[provider]:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(
                f"the provider {provider!r} needs the package {module!r}, which is not installed",
                hint=f"pip install 'quell[{provider}]'",
            )


@asynccontextmanager
async def _within(timeout_s: float, *, said: bool) -> AsyncIterator[None]:
    """Give up what is waited for after a while. Raises ModelError."""
    timer = asyncio.timeout(max(timeout_s, 0.0))
    try:
        async with timer:
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise
        told = "nothing more came" if said else "no answer"
        raise ModelError(f"{told} within {timeout_s:g} s", fault=ModelFault.TIMEOUT, said=said) from error
