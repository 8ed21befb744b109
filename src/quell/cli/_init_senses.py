"""What is there to begin with: keys in the environment, models that providers offer, telemetry on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quell.config import LlmSettings

PROVIDERS = ("openai", "anthropic", "gemini", "openrouter", "bedrock", "ollama", "builtin")
KEYS: Mapping[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "openrouter": ("OPENROUTER_API_KEY",),
}
_AWS = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
PROMETHEUS_URL = "http://localhost:9090"
CLICKHOUSE_URL = "http://localhost:8123"
_LOOK_S = 1.5
"""How long something of this machine may take to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Who may run the agent's model, and what is known of it."""

    name: str
    reason: str = ""
    """Why it is offered; empty: nothing speaks for it here."""
    variable: str = ""
    """Environment variable of its key."""
    models: tuple[str, ...] = ()
    failure: str = ""
    """Why its models could not be listed."""


def key_variable(provider: str, env: Mapping[str, str]) -> str:
    """Return the variable that holds a provider's key, or would; empty for a provider without one."""
    names = KEYS.get(provider, ())
    return next((name for name in names if env.get(name)), names[0] if names else "")


def providers_here(env: Mapping[str, str]) -> tuple[Provider, ...]:
    """Return every provider, with what the environment says for it; nothing is asked of anybody."""
    found: list[Provider] = []
    for name in PROVIDERS:
        variable = key_variable(name, env)
        reason = f"{variable} is set" if variable and env.get(variable) else ""
        if name == "bedrock":
            reason = next((f"{each} is set" for each in _AWS if env.get(each)), "")
        found.append(Provider(name=name, reason=reason, variable=variable))
    return tuple(found)


async def listed(
    provider: Provider, *, env: Mapping[str, str], base_url: str, region: str, timeout_s: float
) -> Provider:
    """Return a provider with its models, or with why there is no list of them."""
    from quell.domain import QuellError
    from quell.models import list_models
    from quell.runs import system_clock

    settings = llm_of(provider, env=env, base_url=base_url, region=region)
    try:
        models = await list_models(settings, clock=system_clock, env=env, timeout_s=timeout_s)
    except QuellError as error:
        return replace(provider, failure=str(error))
    return replace(provider, models=models)


def llm_of(provider: Provider, *, env: Mapping[str, str], base_url: str, region: str) -> LlmSettings:
    """Return how a provider is reached, before its model is known."""
    from quell.config import LlmSettings, Secret

    assert provider.name in PROVIDERS
    key = env.get(provider.variable, "") if provider.variable else ""
    return LlmSettings(
        provider=provider.name,  # type: ignore[arg-type]  # one of them, as asserted
        api_key=Secret(key),
        base_url=base_url,
        region=region or env.get("AWS_REGION", "") or env.get("AWS_DEFAULT_REGION", ""),
    )


async def look_around(
    providers: Sequence[Provider], *, env: Mapping[str, str], base_url: str, region: str, chosen: str
) -> tuple[tuple[Provider, ...], str, str]:
    """Return providers with their models, and the addresses of a Prometheus and a ClickHouse that answer here."""

    async def look(each: Provider) -> Provider:
        is_local = each.name == "ollama" and not each.reason and each.name != chosen
        if not (each.reason or is_local or each.name == chosen) or each.name == "builtin":
            return each
        here = base_url if each.name == chosen else ""
        found = await listed(each, env=env, base_url=here, region=region, timeout_s=_LOOK_S if is_local else 10.0)
        if is_local:
            return replace(each, models=found.models, reason="it runs on this machine") if found.models else each
        return found

    wanted = [each for each in providers if not chosen or each.name == chosen]
    looks = asyncio.gather(*(look(each) for each in wanted))
    seen, prometheus, clickhouse = await asyncio.gather(looks, _prometheus(), _clickhouse())
    by_name = {each.name: each for each in seen}
    return tuple(by_name.get(each.name, each) for each in providers), prometheus, clickhouse


async def _prometheus() -> str:
    from quell.config import PrometheusSettings
    from quell.signals import PrometheusReader

    reader = PrometheusReader(PrometheusSettings(name="prometheus", url=PROMETHEUS_URL, timeout_s=_LOOK_S))
    try:
        return "" if await reader.check() else PROMETHEUS_URL
    finally:
        await reader.close()


async def _clickhouse() -> str:
    from quell.config import StoreSettings
    from quell.domain import QuellError
    from quell.runs import system_clock
    from quell.signals import Store

    settings = StoreSettings(url=CLICKHOUSE_URL, query_timeout_s=_LOOK_S)
    try:
        async with asyncio.timeout(2 * _LOOK_S):
            store = await Store.open(settings, state_dir=Path(), clock=system_clock)
    except (QuellError, TimeoutError):
        return ""
    await store.close()
    return CLICKHOUSE_URL
