"""Skills and documents as tools: what operators taught, looked up by agents as reads of our own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from quell.app._own_answers import Work, answering, as_json
from quell.config import VectorStoreSettings
from quell.domain import (
    CallRequest,
    Clock,
    ConfigError,
    ResourceRule,
    Tool,
    own_read,
)
from quell.memory import Audience, BedrockStore, DocumentStore, Library, Passage, QdrantStore, Shelf, Skills
from quell.models import open_embedder
from quell.tools import LocalHand

DOCUMENTS = "documents"
"""The store of the library that is there without configuration; its tool is `search_documents`."""
_NAME = {"type": "string", "minLength": 1, "maxLength": 64}
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PASSAGES, _PASSAGES_MAX = 5, 20
_SKILL_S, _SEARCH_S = 5.0, 45.0


def skill_hands(skills_of: Callable[[CallRequest], Skills]) -> list[tuple[Tool, LocalHand]]:
    """Return `load_skill` and `read_skill_file`; `skills_of` tells which skills the agent of a call has."""

    async def load(request: CallRequest, given: Mapping[str, object]) -> tuple[str, bool]:
        return skills_of(request).load_skill(str(given["name"])), False

    async def read(request: CallRequest, given: Mapping[str, object]) -> tuple[str, bool]:
        return skills_of(request).read_file(str(given["name"]), str(given["path"])), False

    path = {"type": "string", "minLength": 1, "maxLength": 400}
    return [
        _hand("load_skill", "Read the instructions of a skill.", {"name": _NAME}, ("name",), load, timeout_s=_SKILL_S),
        _hand(
            "read_skill_file",
            "Read a file of a skill, by its path as load_skill names it.",
            {"name": _NAME, "path": path},
            ("name", "path"),
            read,
            timeout_s=_SKILL_S,
        ),
    ]


def search_hand(store: DocumentStore, *, clock: Clock, context_prefix: str = "") -> tuple[Tool, LocalHand]:
    """Return the tool that searches a store: `vector_search_NAME`, or `search_documents` for the one that is always there.

    Raises ConfigError when the store's name makes no name of a tool.
    """
    name = f"search_{DOCUMENTS}" if store.name == DOCUMENTS else f"vector_search_{store.name}"
    if not _TOOL_NAME.fullmatch(name):
        raise ConfigError(
            f"the store {store.name!r} makes no name of a tool", hint="letters, digits, - and _, at most 50"
        )

    async def search(request: CallRequest, given: Mapping[str, object]) -> tuple[str, bool]:
        principal = request.caller.principal
        limit = given.get("limit", _PASSAGES)
        found = await store.search(
            str(given["query"]),
            audience=Audience(tenant=principal.tenant, roles=principal.roles),
            passages_max=limit if isinstance(limit, int) else _PASSAGES,
        )
        if not found:
            return f"Nothing in {store.name} that the caller may see fits this question.", False
        return as_json([_written(passage, now=clock()) for passage in found]), True

    about = f"{context_prefix.strip()} " if context_prefix.strip() else ""
    words = {"type": "string", "minLength": 1, "maxLength": 10_000}
    limit = {"type": "integer", "minimum": 1, "maximum": _PASSAGES_MAX}
    return _hand(
        name,
        f"{about}Search the operator's documents ({store.name}): passages with source, version and age.",
        {"query": words, "limit": limit},
        ("query",),
        search,
        timeout_s=_SEARCH_S,
    )


def open_store(
    settings: VectorStoreSettings, *, library: Library, clock: Clock, env: Mapping[str, str]
) -> DocumentStore:
    """Return the store that an agent's file names; nothing is asked before it is searched.

    `in_memory` is the store of that name in the library. Raises ConfigError when what it needs is not there.
    """
    if settings.type == "bedrock_kb":
        return BedrockStore(
            name=settings.name,
            knowledge_base=settings.knowledge_base_id,
            region=settings.region,
            profile=settings.profile,
            managed=settings.managed,
            env=env,
        )
    if settings.type == "in_memory":
        return Shelf(library, name=settings.name)
    if settings.embedding_model is None:
        raise ConfigError(f"the store {settings.name!r} has no `embedding_model`", hint="add it: Qdrant keeps vectors")
    embedder = open_embedder(settings.embedding_model, clock=clock, env=env)
    return QdrantStore(
        name=settings.name,
        url=settings.url,
        collection=settings.collection_name,
        embed=embedder,
        close_embed=embedder.close,
        api_key=env.get("QDRANT_API_KEY", ""),
    )


def _written(passage: Passage, *, now: datetime) -> dict[str, object]:
    """Write a passage in AURA's shape: score, text, metadata."""
    modified = passage.modified_at
    known = {
        "source": passage.source,
        "heading": passage.heading,
        "line": passage.line,
        "version": passage.version,
        "modified": modified.isoformat(timespec="seconds") if modified else "",
        "snippet": passage.snippet,
        "also_in": passage.also_in,
    }
    metadata = {**passage.more, **{key: value for key, value in known.items() if value}}
    if modified is not None:
        metadata["age_days"] = max(0, (now - modified).days)
    return {"score": passage.score, "text": passage.text, "metadata": metadata}


def _hand(
    name: str,
    description: str,
    properties: Mapping[str, object],
    required: Sequence[str],
    work: Work,
    *,
    timeout_s: float,
) -> tuple[Tool, LocalHand]:
    shape = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    resource = ResourceRule(kind="Memory")
    tool = own_read(name, description=description, takes=shape, resource=resource, timeout_s=timeout_s)
    return tool, LocalHand(name, answering(work))
