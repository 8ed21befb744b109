"""Vectors and other people's stores: our wire for embeddings, Qdrant in memory, Bedrock by its bytes on loopback."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from quell.config import EmbeddingSettings, Secret
from quell.domain import ConfigError, ModelError, ModelFault, SourceError
from quell.memory import Audience, BedrockStore, QdrantStore
from quell.models import open_embedder
from tests.doors._memory_bench import in_loop
from tests.doors._model_bench import NOW, plain, provider

AWS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}


def needs(module: str, extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"left out: needs {module} (quell[{extra}])")


def vectors(*rows: Sequence[float], order: Sequence[int] | None = None) -> dict[str, object]:
    indexes = order or range(len(rows))
    return {"object": "list", "data": [{"index": at, "embedding": list(rows[at])} for at in indexes]}


def embedding(url: str) -> EmbeddingSettings:
    return EmbeddingSettings(provider="openai", model="small", api_key=Secret("k-1"), base_url=url)


@in_loop
async def test_texts_become_vectors_in_their_order_whatever_order_they_come_in() -> None:
    async with provider(plain(200, vectors((1.0, 0.0), (0.0, 1.0), order=(1, 0)))) as state:
        embed = open_embedder(embedding(state.url), clock=lambda: NOW, env={})
        assert await embed(["a", "b"]) == [[1.0, 0.0], [0.0, 1.0]]
        assert state.heads[0][":path"] == "/v1/embeddings"
        assert state.heads[0]["authorization"] == "Bearer k-1"
        assert state.bodies[0] == {"model": "small", "input": ["a", "b"], "encoding_format": "float"}
        assert await embed([]) == []
        await embed.close()


@in_loop
async def test_many_texts_go_in_several_requests() -> None:
    batch = vectors(*[(float(number),) for number in range(64)])
    async with provider(plain(200, batch), plain(200, vectors((64.0,)))) as state:
        embed = open_embedder(embedding(state.url), clock=lambda: NOW, env={})
        assert await embed([str(number) for number in range(65)]) == [[float(number)] for number in range(65)]
        assert len(state.bodies) == 2
        await embed.close()


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (401, {"error": {"message": "bad key"}}, ModelFault.AUTH),
        (200, {"data": [{"index": 0}]}, ModelFault.BAD_ANSWER),
        (200, {"data": []}, ModelFault.BAD_ANSWER),
        (200, {"data": [{"index": 1, "embedding": [1.0]}]}, ModelFault.BAD_ANSWER),
        (200, b"<html>", ModelFault.BAD_ANSWER),
    ],
)
@in_loop
async def test_vectors_that_did_not_come_are_a_fault(status: int, body: object, fault: ModelFault) -> None:
    async with provider(plain(status, body)) as state:
        embed = open_embedder(embedding(state.url), clock=lambda: NOW, env={})
        with pytest.raises(ModelError) as told:
            await embed(["a"])
        assert told.value.fault is fault
        await embed.close()


async def by_letter(texts: Sequence[str]) -> Sequence[Sequence[float]]:
    """Point a text where its first letter points."""
    return [[1.0, 0.1] if text.startswith("a") else [0.1, 1.0] for text in texts]


@needs("qdrant_client", "qdrant")
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("where", [":memory:", "directory"])
@in_loop
async def test_a_collection_is_searched_and_its_permissions_are_held(where: str, tmp_path: Path) -> None:
    models = importlib.import_module("qdrant_client").models
    url = where if where == ":memory:" else str(tmp_path / "qdrant")
    store = QdrantStore(name="kb", url=url, collection="c", embed=by_letter)
    client = await store.opened()
    size = models.VectorParams(size=2, distance=models.Distance.COSINE)
    await client.create_collection("c", vectors_config=size)
    payloads: list[dict[str, object]] = [
        {"text": "apple", "source": "fruit.md", "heading": "A", "kind": "fruit"},
        {"page_content": "avocado", "metadata": {"source": "green.md", "page": 3}, "roles": ["sre"]},
        {"text": "almond", "tenant": "acme"},
        {"text": "banana"},
    ]
    spots = await by_letter(["a", "a", "a", "b"])
    points = [
        models.PointStruct(id=number, vector=list(spot), payload=payload)
        for number, (spot, payload) in enumerate(zip(spots, payloads, strict=True), start=1)
    ]
    await client.upsert("c", points=points)

    async def seen(audience: Audience, most: int = 3) -> set[str]:
        return {each.text for each in await store.search("a?", audience=audience, passages_max=most)}

    assert await seen(Audience()) == {"apple", "banana"}
    assert await seen(Audience(), most=1) == {"apple"}
    assert await seen(Audience(roles=("sre",))) == {"apple", "avocado", "banana"}
    assert await seen(Audience(tenant="acme")) == {"apple", "almond", "banana"}
    found = {each.text: each for each in await store.search("a", audience=Audience(roles=("sre",)), passages_max=3)}
    assert (found["apple"].source, found["apple"].heading, found["apple"].more) == ("fruit.md", "A", {"kind": "fruit"})
    assert (found["avocado"].source, found["avocado"].more) == ("green.md", {"page": "3"})
    assert found["apple"].score > found["banana"].score
    assert await store.search("  ", audience=Audience(), passages_max=3) == ()
    await store.close()


@needs("qdrant_client", "qdrant")
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("default")
@in_loop
async def test_a_collection_that_is_not_there_is_told_with_what_to_check() -> None:
    for url in (":memory:", "http://127.0.0.1:9"):
        store = QdrantStore(name="kb", url=url, collection="missing", embed=by_letter, timeout_s=5)
        with pytest.raises(SourceError, match="Qdrant") as told:
            await store.search("a", audience=Audience(), passages_max=3)
        assert "collection_name" in told.value.hint
        await store.close()


@needs("qdrant_client", "qdrant")
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("default")
@in_loop
async def test_a_server_is_asked_with_the_vector_the_filter_and_the_key() -> None:
    points = [{"id": 7, "version": 1, "score": 0.5, "payload": {"text": "answer", "url": "https://x"}}]
    async with provider(plain(200, {"result": {"points": points}, "status": "ok", "time": 0.1})) as state:
        store = QdrantStore(
            name="kb", url=state.url.removesuffix("/v1"), collection="c", embed=by_letter, api_key="q-1"
        )
        (found,) = await store.search("a", audience=Audience(roles=("sre",)), passages_max=2)
        await store.close()
    assert (found.text, found.source, found.score) == ("answer", "https://x", 0.5)
    assert state.heads[0][":path"] == "/collections/c/points/query"
    assert state.heads[0]["api-key"] == "q-1"
    assert state.bodies[0]["query"] == {"nearest": [1.0, 0.1]}
    assert '"roles"' in json.dumps(state.bodies[0]["filter"])


@needs("boto3", "bedrock")
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("managed", [False, True])
@in_loop
async def test_a_knowledge_base_is_asked_by_its_own_bytes(managed: bool) -> None:
    result = {
        "content": {"text": "Restart it.", "type": "TEXT"},
        "location": {"type": "S3", "s3Location": {"uri": "s3://bucket/runbook.md"}},
        "score": 0.61,
        "metadata": {"team": "sre", "x-amz-bedrock-kb-chunk-id": "1"},
    }
    async with provider(plain(200, {"retrievalResults": [result]}), plain(403, {"message": "not authorized"})) as state:
        store = BedrockStore(
            name="kb",
            knowledge_base="KB12345678",
            region="eu-west-1",
            managed=managed,
            env=AWS,
            url=state.url.removesuffix("/v1"),
        )
        (found,) = await store.search("how?", audience=Audience(), passages_max=4)
        assert (found.text, found.source, found.score) == ("Restart it.", "s3://bucket/runbook.md", 0.61)
        assert found.more == {"team": "sre"}
        assert state.heads[0][":path"] == "/knowledgebases/KB12345678/retrieve"
        assert "AKIAEXAMPLE" in state.heads[0]["authorization"]
        assert state.bodies[0]["retrievalQuery"] == {"text": "how?"}
        assert ("retrievalConfiguration" in state.bodies[0]) is not managed
        with pytest.raises(SourceError, match="not authorized") as told:
            await store.search("how?", audience=Audience(), passages_max=4)
        assert "bedrock:Retrieve" in told.value.hint
        await store.close()


@needs("boto3", "bedrock")
@needs("pydantic_ai", "bedrock")
@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("model", "answer"),
    [
        ("amazon.titan-embed-text-v2:0", {"embedding": [0.5, 0.25]}),
        ("eu.cohere.embed-v4:0", {"embeddings": {"float": [[0.5, 0.25]]}}),
        ("cohere.embed-english-v3", {"embeddings": [[0.5, 0.25]]}),
    ],
)
@in_loop
async def test_a_model_of_bedrock_embeds_in_the_form_of_its_family(model: str, answer: object) -> None:
    async with provider(plain(200, answer), plain(200, {"nothing": 1})) as state:
        settings = EmbeddingSettings(
            provider="bedrock", model=model, region="eu-west-1", base_url=state.url.removesuffix("/v1")
        )
        embed = open_embedder(settings, clock=lambda: NOW, env=AWS)
        assert await embed(["hello"]) == [[0.5, 0.25]]
        assert "hello" in json.dumps(state.bodies[0])
        with pytest.raises(ModelError) as told:
            await embed(["hello"])
        assert told.value.fault is ModelFault.BAD_ANSWER
        await embed.close()


def test_what_is_not_installed_is_told_with_the_line_that_installs_it() -> None:
    code = """
import sys
sys.modules["qdrant_client"] = sys.modules["boto3"] = None
from quell.domain import ConfigError
from quell.memory import BedrockStore, QdrantStore
for make in (
    lambda: QdrantStore(name="kb", url="http://x", collection="c", embed=None),
    lambda: BedrockStore(name="kb", knowledge_base="K", env={}),
):
    try:
        make()
    except ConfigError as error:
        print(error.hint)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == ["pip install 'quell[qdrant]'", "pip install 'quell[bedrock]'"]


@needs("boto3", "bedrock")
def test_a_model_of_bedrock_that_embeds_in_no_known_form_is_refused() -> None:
    if importlib.util.find_spec("pydantic_ai") is None:
        pytest.skip("left out: needs pydantic_ai (quell[bedrock])")
    with pytest.raises(ConfigError, match="not known"):
        open_embedder(EmbeddingSettings(provider="bedrock", model="x", region="r"), clock=lambda: NOW, env=AWS)
