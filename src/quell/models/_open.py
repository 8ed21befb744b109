"""From settings to a model: who runs it, how it is reached, and what stands before it."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from quell.config import LlmSettings
from quell.domain import Clock, ModelError, ModelEvent, ModelFault, ModelRequest
from quell.models._direct import DirectModel
from quell.models._exchange import Patience
from quell.models._limits import LimitedModel, Limiter, Limits
from quell.models._model import Hear, Model, tell
from quell.models._openai import Endpoint, OpenAIModel
from quell.models._proxy import proxy_for
from quell.models._ways import SchemaCallModel, TextCallModel, Wrapped

if TYPE_CHECKING:
    from quell.models._ollama import OllamaModel

_ADDRESSES: Mapping[str, str] = MappingProxyType(
    {
        "openai": "https://api.openai.com/v1",
        "openrouter": "https://openrouter.ai/api/v1",
        "ollama": "http://localhost:11434",
    }
)
_VENDORS = (
    (re.compile(r"(^|/)(gpt-[3-9]|o[1-9](-|$)|chatgpt)"), "openai"),
    (re.compile(r"(^|/)claude"), "anthropic"),
    (re.compile(r"(^|/)gemini"), "gemini"),
)
"""Names that mean money wherever they are asked for: a gateway on one's own network resells them."""


def open_model(
    settings: LlmSettings,
    *,
    clock: Clock,
    env: Mapping[str, str],
    limits: Limits | None = None,
) -> Model:
    """Return the model that the settings name; nothing is sent before it is asked.

    `limits` are those of the process; without them the model has limits of its own. `builtin` needs no provider.

    Raises ConfigError when an address is none, or what a provider needs is not installed.
    """
    if settings.provider == "builtin":
        from quell.models._builtin import BuiltinModel  # noqa: PLC0415 - it knows many words, and most ask another

        return BuiltinModel()
    limiter = _limiter(settings, limits or Limits(time.monotonic))
    model: Model = LimitedModel(_reached(settings, clock=clock, env=env, limiter=limiter), limiter)
    if settings.constrained_calls:
        model = SchemaCallModel(model)
    elif settings.fallback_tool_parsing:
        model = TextCallModel(model)
    return ChosenModel(model, settings)


async def list_models(
    settings: LlmSettings, *, clock: Clock, env: Mapping[str, str], timeout_s: float = 10.0
) -> tuple[str, ...]:
    """Return the names of the models that a provider offers to this account now.

    Raises:
        ConfigError: the address is none, or what the provider needs is not installed.
        ModelError: there was no list, or none in time.
    """
    if settings.provider == "builtin":
        return ("builtin",)
    from quell.models._lists import listed  # noqa: PLC0415 - only who sets Quell up reads lists

    try:
        async with asyncio.timeout(timeout_s):
            if settings.provider in {"anthropic", "bedrock", "gemini"}:
                return await listed(settings, clock=clock, env=env, timeout_s=timeout_s)
            model = _own(settings, clock=clock, env=env, patience=_patience(settings), limiter=None)
            try:
                return await model.offered(timeout_s=timeout_s)
            finally:
                await model.close()
    except TimeoutError:
        raise ModelError(f"no list of models within {timeout_s:g} s", fault=ModelFault.TIMEOUT) from None


def endpoint_of(settings: LlmSettings) -> Endpoint:
    """Return how a provider that speaks the Chat Completions API is reached."""
    url = settings.base_url or _ADDRESSES[settings.provider]
    if settings.provider == "ollama" and not settings.base_url:
        url += "/v1"
    key = settings.api_key.reveal()
    is_openai = urlsplit(url).hostname == "api.openai.com"
    return Endpoint(
        provider=payee_of(settings),
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        output_cap="max_completion_tokens" if is_openai else "max_tokens",
        extra={"usage": {"include": True}} if settings.provider == "openrouter" else {},
        cache=_cache_of(settings, is_openai=is_openai),
    )


def _cache_of(settings: LlmSettings, *, is_openai: bool) -> Literal["untold", "key", "marks"]:
    """Say how a server is told what of a prompt stays the same; most refuse a key that they do not know."""
    if settings.prompt_cache == "off":
        return "untold"
    if settings.provider == "openrouter" and settings.model.startswith("anthropic/"):
        return "marks"
    return "key" if is_openai or (settings.provider == "openai" and settings.prompt_cache == "always") else "untold"


def payee_of(settings: LlmSettings) -> str:
    """Return whose price a call has: the provider's, or `local` for a model on one's own machine or network."""
    if not (settings.base_url and settings.provider in {"openai", "openrouter"}):
        return settings.provider
    vendor = next((name for pattern, name in _VENDORS if pattern.search(settings.model.lower())), "")
    if not _is_near(urlsplit(settings.base_url).hostname or ""):
        return settings.provider
    return vendor or "local"


class ChosenModel(Wrapped):
    """A model that is asked as its settings say, where a request says nothing else; what is merged wins over all."""

    def __init__(self, inner: Model, settings: LlmSettings) -> None:
        """Stand before a model."""
        super().__init__(inner)
        self._settings = settings

    async def stream(self, request: ModelRequest, *, deadline_s: float) -> AsyncGenerator[ModelEvent, None]:
        """Ask as the settings say. Raises as `Model.stream` does."""
        async with aclosing(self._inner.stream(self.chosen(request), deadline_s=deadline_s)) as events:
            async for event in events:
                yield event

    def tell(self, request: ModelRequest, *, deadline_s: float, hear: Hear) -> Awaitable[None]:
        """Ask as the settings say, and hand on what comes. Raises as `Model.stream` does."""
        return tell(self._inner, self.chosen(request), deadline_s=deadline_s, hear=hear)

    def chosen(self, request: ModelRequest) -> ModelRequest:
        """Return a request with what the settings say about it."""
        settings = self._settings
        caps = [cap for cap in (request.output_max_tokens, settings.max_tokens) if cap is not None]
        return replace(
            request,
            output_max_tokens=min(caps, default=None),
            temperature=settings.temperature if request.temperature is None else request.temperature,
            effort=request.effort or settings.reasoning_effort or "",
            extra={**request.extra, **settings.additional_params},
        )


def _reached(settings: LlmSettings, *, clock: Clock, env: Mapping[str, str], limiter: Limiter) -> Model:
    patience = _patience(settings)
    if settings.provider in {"anthropic", "bedrock", "gemini"}:
        return DirectModel(
            settings,
            clock=clock,
            env=env,
            patience=patience,
            hear=lambda headers: limiter.hear(headers, now=clock()),
        )
    return _own(settings, clock=clock, env=env, patience=patience, limiter=limiter)


def _own(
    settings: LlmSettings, *, clock: Clock, env: Mapping[str, str], patience: Patience, limiter: Limiter | None
) -> OpenAIModel | OllamaModel:
    """Return a model whose protocol we speak."""
    via = proxy_for(settings.base_url or _ADDRESSES[settings.provider], env=env, wish=settings.proxy.reveal())
    if settings.provider == "ollama":
        url = settings.base_url or _ADDRESSES["ollama"]
        key = settings.api_key.reveal()
        if not urlsplit(url).path.rstrip("/").endswith("/v1"):
            from quell.models._ollama import OllamaModel  # noqa: PLC0415 - as above

            return OllamaModel(
                url,
                name=settings.model,
                clock=clock,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                window=settings.context_window,
                patience=patience,
                via=via,
            )
    return OpenAIModel(
        endpoint_of(settings),
        name=settings.model,
        clock=clock,
        window=settings.context_window,
        patience=patience,
        hear=None if limiter is None else lambda headers: limiter.hear(headers, now=clock()),
        via=via,
    )


def _limiter(settings: LlmSettings, limits: Limits) -> Limiter:
    """Return the limiter of this model at this account; the account is told by the digest of its key."""
    account = sha256(settings.api_key.reveal().encode()).hexdigest()[:16]
    return limits.of(
        settings.provider,
        settings.base_url,
        settings.region,
        settings.profile,
        account,
        settings.model,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
    )


def _patience(settings: LlmSettings) -> Patience:
    return Patience(first_s=settings.first_token_timeout_s, quiet_s=settings.inactivity_timeout_s)


def _is_near(host: str) -> bool:
    """Tell whether a host is this machine or on a private network, by its address or by a name that says so."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal")) or "." not in host
    return address.is_private or address.is_loopback
