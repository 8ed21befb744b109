"""What providers with a protocol of their own offer: their lists of models, read when Quell is set up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from quell.config import LlmSettings
from quell.domain import Clock, ModelError, ModelFault
from quell.models._direct import needs
from quell.models._direct_faults import fault_of
from quell.models._exchange import Exchange, Patience
from quell.models._proxy import Proxy, proxy_for

_T = TypeVar("_T")


class _Claude(msgspec.Struct):
    id: str


class _Claudes(msgspec.Struct):
    data: list[_Claude]


class _Gemini(msgspec.Struct):
    name: str
    supportedGenerationMethods: list[str] = []  # noqa: N815 - the provider's word; msgspec copies defaults


class _Geminis(msgspec.Struct):
    models: list[_Gemini]


async def listed(settings: LlmSettings, *, clock: Clock, env: Mapping[str, str], timeout_s: float) -> tuple[str, ...]:
    """Return what Anthropic, Bedrock or Gemini offer. Raises as `list_models` does."""
    if settings.provider == "bedrock":
        needs("bedrock")
        return await asyncio.to_thread(_bedrock, settings, env=env, timeout_s=timeout_s, clock=clock)
    if settings.provider == "anthropic":
        url = (settings.base_url or "https://api.anthropic.com").rstrip("/").removesuffix("/v1")
        via = proxy_for(url, env=env, wish=settings.proxy.reveal())
        headers = {"x-api-key": settings.api_key.reveal(), "anthropic-version": "2023-06-01"}
        body = await _fetched(url, "/v1/models?limit=1000", headers=headers, clock=clock, timeout_s=timeout_s, via=via)
        return tuple(sorted(each.id for each in _read(body, _Claudes).data))
    url = settings.base_url.rstrip("/") or "https://generativelanguage.googleapis.com"
    via = proxy_for(url, env=env, wish=settings.proxy.reveal())
    headers = {"x-goog-api-key": settings.api_key.reveal()}
    body = await _fetched(
        url, "/v1beta/models?pageSize=1000", headers=headers, clock=clock, timeout_s=timeout_s, via=via
    )
    found = _read(body, _Geminis).models
    return tuple(
        sorted(
            each.name.removeprefix("models/") for each in found if "generateContent" in each.supportedGenerationMethods
        )
    )


async def _fetched(
    url: str, path: str, *, headers: Mapping[str, str], clock: Clock, timeout_s: float, via: Proxy | None
) -> bytes:
    exchange = Exchange(url, headers=headers, clock=clock, patience=Patience(connect_s=timeout_s), via=via)
    try:
        return await exchange.fetched(path, timeout_s=timeout_s)
    finally:
        await exchange.close()


def _read(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ModelError(f"the list of models is none: {error}", fault=ModelFault.BAD_ANSWER) from error


def _bedrock(settings: LlmSettings, *, env: Mapping[str, str], timeout_s: float, clock: Clock) -> tuple[str, ...]:
    from quell.models._direct_ways import bedrock_client  # noqa: PLC0415 - an extra

    try:
        client = bedrock_client("bedrock", settings, env=env, connect_s=timeout_s, read_s=timeout_s)
        try:
            found = client.list_foundation_models(byOutputModality="TEXT")["modelSummaries"]
        finally:
            client.close()
    except Exception as error:
        # What SDKs raise has no root in common.
        raise fault_of(error, said=False, now=clock()) from error
    return tuple(sorted(each["modelId"] for each in found))
