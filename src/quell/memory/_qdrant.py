"""A collection in Qdrant: on a server, in a directory of this machine, or in memory; the client is an extra.

Where points carry `tenant` or `roles`, they are held by the query, as in the library; points without are for everybody,
as collections that others filled are.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from quell.domain import ConfigError, ModelError, SourceError
from quell.memory._passage import Audience, Embed, Passage

PASSAGES_MAX = 50
_TEXT_KEYS = ("text", "content", "page_content", "document", "chunk")
"""Under which of these a payload holds its text: every framework that fills a collection has its own."""
_SOURCE_KEYS = ("source", "path", "url", "file", "title")
_TOLD = frozenset({*_TEXT_KEYS, *_SOURCE_KEYS, "heading", "version", "tenant", "roles", "line"})
_MORE_MAX, _MORE_CHARS_MAX = 20, 400
_HINT = "check `url` and `collection_name`, and that Qdrant runs"


class QdrantStore:
    """One collection, asked with vectors that an embedding model makes of the question."""

    def __init__(
        self,
        *,
        name: str,
        url: str,
        collection: str,
        embed: Embed,
        close_embed: Callable[[], Awaitable[None]] | None = None,
        api_key: str = "",
        timeout_s: float = 15.0,
    ) -> None:
        """Reach a collection: `http…` is a server, `:memory:` is in memory, anything else a directory.

        Nothing is opened before it is searched. Raises ConfigError when the client is not installed.
        """
        if importlib.util.find_spec("qdrant_client") is None:
            raise ConfigError(
                f"the store {name!r} is of the type qdrant, and the package 'qdrant_client' is not installed",
                hint="pip install 'quell[qdrant]'",
            )
        self._name, self._url, self._collection, self._embed = name, url, collection, embed
        self._close_embed, self._api_key, self._timeout_s = close_embed, api_key, timeout_s
        self._client: Any = None
        self._opening = asyncio.Lock()

    @property
    def name(self) -> str:
        """Return its name."""
        return self._name

    async def search(self, question: str, *, audience: Audience, passages_max: int) -> tuple[Passage, ...]:
        """Return the passages nearest to a question. Raises SourceError, and ModelError when it cannot be embedded."""
        if not question.strip():
            return ()
        vectors = await self._embed([question])
        client = await self.opened()
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await client.query_points(
                    self._collection,
                    query=list(vectors[0]),
                    limit=max(1, min(passages_max, PASSAGES_MAX)),
                    query_filter=_seen_by(audience),
                    with_payload=True,
                )
        except TimeoutError as error:
            raise SourceError(f"Qdrant did not answer within {self._timeout_s:g} s", hint=_HINT) from error
        except (ModelError, asyncio.CancelledError):
            raise
        except Exception as error:
            # What the client raises has no root in common: HTTP, its own, and ValueError in local mode.
            said = " ".join(str(error).split())[:300]
            raise SourceError(f"Qdrant did not search {self._collection!r}: {said}", hint=_HINT) from error
        return tuple(_passage(point.payload or {}, float(point.score), str(point.id)) for point in found.points)

    async def opened(self) -> Any:
        """Return the client of Qdrant, opened once; loading it takes about a second of CPU."""
        async with self._opening:
            if self._client is None:
                module = await asyncio.to_thread(importlib.import_module, "qdrant_client")
                self._client = self._made(module.AsyncQdrantClient)
            return self._client

    async def close(self) -> None:
        """Close its connections, and those of the embedding model that was handed to it."""
        if self._client is not None:
            await self._client.close()
        if self._close_embed is not None:
            await self._close_embed()

    def _made(self, client: Callable[..., Any]) -> Any:
        if self._url == ":memory:":
            return client(location=":memory:")
        if "://" not in self._url:
            return client(path=self._url)
        # The check of versions asks the server in the constructor, and a key on loopback is no secret on a wire.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return client(
                url=self._url, api_key=self._api_key or None, timeout=int(self._timeout_s), check_compatibility=False
            )


def _seen_by(audience: Audience) -> Any:
    from qdrant_client import models  # noqa: PLC0415 - an extra

    def free_or(key: str, match: Any) -> Any:
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
        return models.Filter(should=[empty, models.FieldCondition(key=key, match=match)])

    return models.Filter(
        must=[
            free_or("tenant", models.MatchValue(value=audience.tenant)),
            free_or("roles", models.MatchAny(any=list(audience.roles))),
        ]
    )


def _passage(payload: Mapping[str, Any], score: float, point: str) -> Passage:
    below = payload.get("metadata")
    known = {**(below if isinstance(below, Mapping) else {}), **payload}
    more = {
        key: str(value)[:_MORE_CHARS_MAX]
        for key, value in sorted(known.items())
        if key not in _TOLD and isinstance(value, str | int | float | bool)
    }
    line = known.get("line")
    return Passage(
        text=_first(known, _TEXT_KEYS),
        score=round(score, 6),
        source=_first(known, _SOURCE_KEYS) or point,
        heading=_first(known, ("heading",)),
        line=line if isinstance(line, int) else 0,
        version=_first(known, ("version",)),
        more=dict(list(more.items())[:_MORE_MAX]),
    )


def _first(known: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((value for key in keys if isinstance(value := known.get(key), str) and value), "")
