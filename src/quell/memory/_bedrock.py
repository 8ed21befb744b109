"""A knowledge base in Amazon Bedrock: AWS keeps and embeds the documents, we ask; its client is an extra."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from typing import Any

from quell.domain import ConfigError, SourceError
from quell.memory._passage import Audience, Passage

_QUESTION_CHARS_MAX = 1_000
"""Bedrock refuses longer ones."""
PASSAGES_MAX = 50
_SOURCE_KEYS = ("uri", "url", "id", "query")
_MORE_MAX, _MORE_CHARS_MAX = 20, 400


class BedrockStore:
    """One knowledge base. AWS decides by the account who may ask it; it knows nothing of roles here."""

    def __init__(
        self,
        *,
        name: str,
        knowledge_base: str,
        region: str = "",
        profile: str = "",
        managed: bool = False,
        env: Mapping[str, str],
        url: str = "",
        timeout_s: float = 20.0,
    ) -> None:
        """Reach a knowledge base; nothing is asked before it is searched. Raises ConfigError without its client."""
        if importlib.util.find_spec("boto3") is None:
            raise ConfigError(
                f"the store {name!r} is of the type bedrock_kb, and the package 'boto3' is not installed",
                hint="pip install 'quell[bedrock]'",
            )
        self._name, self._knowledge_base, self._region, self._profile = name, knowledge_base, region, profile
        self._managed, self._env, self._url, self._timeout_s = managed, env, url, timeout_s
        self._client: Any = None
        self._opening = asyncio.Lock()

    @property
    def name(self) -> str:
        """Return its name."""
        return self._name

    async def search(self, question: str, *, audience: Audience, passages_max: int) -> tuple[Passage, ...]:  # noqa: ARG002 - AWS knows accounts only
        """Return the passages that Bedrock finds. Raises SourceError when it cannot be asked."""
        words = question.strip()[:_QUESTION_CHARS_MAX]
        if not words:
            return ()
        most = max(1, min(passages_max, PASSAGES_MAX))
        try:
            async with self._opening:
                if self._client is None:
                    self._client = await asyncio.to_thread(self._made)
            answer = await asyncio.to_thread(self._asked, words, most)
        except Exception as error:
            # What the SDK raises has no root in common.
            said = " ".join(str(error).split())[:300]
            hint = "check `knowledge_base_id`, `region`, and that the account may call bedrock:Retrieve"
            raise SourceError(f"Bedrock did not search the store {self._name!r}: {said}", hint=hint) from error
        return tuple(_passage(each) for each in answer.get("retrievalResults", ())[:most])

    async def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await asyncio.to_thread(self._client.close)

    def _asked(self, words: str, most: int) -> Mapping[str, Any]:
        # A managed knowledge base chooses how it searches; of others the number of results is said.
        more = (
            {}
            if self._managed
            else {"retrievalConfiguration": {"vectorSearchConfiguration": {"numberOfResults": most}}}
        )
        found: Mapping[str, Any] = self._client.retrieve(
            knowledgeBaseId=self._knowledge_base, retrievalQuery={"text": words}, **more
        )
        return found

    def _made(self) -> Any:
        import boto3  # noqa: PLC0415 - an extra
        from botocore.config import Config  # noqa: PLC0415 - an extra

        keys = {
            "aws_access_key_id": self._env.get("AWS_ACCESS_KEY_ID"),
            "aws_secret_access_key": self._env.get("AWS_SECRET_ACCESS_KEY"),
            "aws_session_token": self._env.get("AWS_SESSION_TOKEN"),
        }
        found = {"profile_name": self._profile} if self._profile else keys if keys["aws_access_key_id"] else {}
        session = boto3.Session(region_name=self._region or None, **found)
        config = Config(connect_timeout=10, read_timeout=self._timeout_s, retries={"total_max_attempts": 2})
        return session.client("bedrock-agent-runtime", endpoint_url=self._url or None, config=config)


def _passage(result: Mapping[str, Any]) -> Passage:
    """Read one result; where it lies has a form of its own for every kind of source."""
    location = result.get("location") or {}
    places = [each for each in location.values() if isinstance(each, Mapping)]
    source = next((str(each[key]) for each in places for key in _SOURCE_KEYS if each.get(key)), "")
    metadata = result.get("metadata") or {}
    more = {
        str(key): str(value)[:_MORE_CHARS_MAX]
        for key, value in sorted(metadata.items())
        if not key.startswith("x-amz-")
    }
    return Passage(
        text=str((result.get("content") or {}).get("text") or ""),
        score=round(float(result.get("score") or 0.0), 6),
        source=source,
        more=dict(list(more.items())[:_MORE_MAX]),
    )
