"""Turn texts into vectors: POST /embeddings on our own wire, or a model of Bedrock through its extra."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from quell.config import EmbeddingSettings, LlmSettings
from quell.domain import Clock, ConfigError, ModelError, ModelFault
from quell.models._direct import needs
from quell.models._direct_faults import fault_of
from quell.models._exchange import Exchange, whole
from quell.models._proxy import proxy_for

_BATCH = 64
"""Texts of one request: providers take more, and a large request that fails costs more."""
_OPENAI = "https://api.openai.com/v1"


class Embedder(Protocol):
    """Turns texts into vectors."""

    async def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Return a vector for each text, in their order. Raises ModelError."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


def open_embedder(
    settings: EmbeddingSettings, *, clock: Clock, env: Mapping[str, str], timeout_s: float = 30.0
) -> Embedder:
    """Return the embedding model that the settings name; nothing is sent before it is asked.

    Raises ConfigError when its address is none, or what its provider needs is not installed.
    """
    if settings.provider == "bedrock":
        needs("bedrock")
        return _Bedrock(settings, clock=clock, env=env, timeout_s=timeout_s)
    return _OpenAI(settings, clock=clock, env=env, timeout_s=timeout_s)


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class _OpenAI:
    """A model behind POST /embeddings."""

    def __init__(self, settings: EmbeddingSettings, *, clock: Clock, env: Mapping[str, str], timeout_s: float) -> None:
        key = settings.api_key.reveal()
        self._model = settings.model
        self._timeout_s = timeout_s
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = settings.base_url or _OPENAI
        self._exchange = Exchange(url, headers=headers, clock=clock, via=proxy_for(url, env=env))

    async def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        vectors: list[Sequence[float]] = []
        for at in range(0, len(texts), _BATCH):
            vectors += await self._asked(texts[at : at + _BATCH])
        return vectors

    async def close(self) -> None:
        await self._exchange.close()

    async def _asked(self, texts: Sequence[str]) -> list[list[float]]:
        body = msgspec.json.encode({"model": self._model, "input": list(texts), "encoding_format": "float"})
        asked = self._exchange.asked("/embeddings", body, accept="application/json", deadline_s=self._timeout_s)
        with await asked as wire:
            said = await whole(wire)
        try:
            found = sorted(msgspec.json.decode(said, type=_Vectors).data, key=lambda each: each.index)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ModelError(f"the vectors cannot be read: {error}", fault=ModelFault.BAD_ANSWER) from error
        if [each.index for each in found] != list(range(len(texts))):
            raise ModelError(
                f"{len(found)} vectors came for {len(texts)} texts, or not one for each", fault=ModelFault.BAD_ANSWER
            )
        return [each.embedding for each in found]


class _Bedrock:
    """A Titan or Cohere model of Bedrock, which have bodies of their own."""

    def __init__(self, settings: EmbeddingSettings, *, clock: Clock, env: Mapping[str, str], timeout_s: float) -> None:
        if not any(family in settings.model for family in _FAMILIES):
            known = ", ".join(sorted(_FAMILIES))
            raise ConfigError(f"how {settings.model!r} embeds is not known", hint=f"models of Bedrock: {known}…")
        self._settings, self._clock, self._env, self._timeout_s = settings, clock, env, timeout_s
        self._client: Any = None
        self._opening = asyncio.Lock()

    async def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        try:
            async with self._opening:
                if self._client is None:
                    self._client = await asyncio.to_thread(self._made)
            return [await asyncio.to_thread(self._asked, text) for text in texts]
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            raise ModelError(f"the vector cannot be read: {error!r}", fault=ModelFault.BAD_ANSWER) from error
        except Exception as error:
            # What SDKs raise has no root in common.
            raise fault_of(error, said=False, now=self._clock()) from error

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)

    def _made(self) -> Any:
        from quell.models._direct_ways import bedrock_client  # noqa: PLC0415 - an extra

        settings = self._settings
        asked = LlmSettings(
            provider="bedrock",
            model=settings.model,
            region=settings.region,
            profile=settings.profile,
            base_url=settings.base_url,
        )
        seconds = self._timeout_s
        return bedrock_client("bedrock-runtime", asked, env=self._env, connect_s=min(10.0, seconds), read_s=seconds)

    def _asked(self, text: str) -> list[float]:
        model = self._settings.model
        body_of, vector_of = next(ways for family, ways in _FAMILIES.items() if family in model)
        answer = self._client.invoke_model(
            modelId=model,
            body=json.dumps(body_of(text)),
            accept="application/json",
            contentType="application/json",
        )
        return [float(number) for number in vector_of(json.loads(answer["body"].read()))]


_FAMILIES: Mapping[str, tuple[Callable[[str], object], Callable[[Any], list[float]]]] = {
    "amazon.titan-embed": (lambda text: {"inputText": text}, lambda answer: answer["embedding"]),
    "cohere.embed": (
        lambda text: {"texts": [text], "input_type": "search_query"},
        lambda answer: (
            answer["embeddings"]["float"][0] if isinstance(answer["embeddings"], dict) else answer["embeddings"][0]
        ),
    ),
}
"""By a part of a model's name: what is sent, and where its vector stands in the answer."""
