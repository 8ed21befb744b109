"""Models behind a proxy: which one stands before whom, what it is told, and what it may not see."""

from __future__ import annotations

import asyncio
import importlib.util
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from quell.config import EmbeddingSettings, LlmSettings, Secret
from quell.domain import ConfigError, ModelError, ModelFault, ModelReply
from quell.models import ask, list_models, open_embedder, open_model
from quell.models._proxy import proxy_for
from quell.runs import system_clock
from tests.doors._direct_bench import bedrock, claude, claude_begins, claude_ends, claude_text, gemini, gemini_chunk
from tests.doors._model_bench import HELLO, NOW, Answer, Provider, delta, end, ndjson, plain, provider, sse, usage

pytestmark = pytest.mark.timeout(60)  # whoever comes first loads an SDK
HOST = "model.test"
PROOF = f"Basic {b64encode(b'ann:p ss').decode()}"
SAID = sse(delta("Hello."), end(), usage(3, 2))


@dataclass(slots=True)
class Middle:
    """A proxy: what it was asked, and what it saw go by."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    seen: bytearray = field(default_factory=bytearray)

    @property
    def url(self) -> str:
        return f"http://ann:p%20ss@127.0.0.1:{self.port}"


@asynccontextmanager
async def middle(to_port: int, *, answer: str = "", tls: ssl.SSLContext | None = None) -> AsyncIterator[Middle]:
    """Run a proxy that takes every name for this machine; `answer` is what it says instead of letting through."""
    state = Middle()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        opened = [writer]
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            state.heads.append(head.decode("latin-1"))
            if answer:
                writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
                await reader.read()
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to_port)
            opened.append(far_writer)
            if head.startswith(b"CONNECT"):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                far_writer.write(head)
            await asyncio.gather(_carry(reader, far_writer, state), _carry(far_reader, writer, state))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            for each in opened:
                each.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: Middle) -> None:
    while piece := await reader.read(65_536):
        state.seen += piece
        writer.write(piece)
        await writer.drain()
    writer.close()


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Return what a server proves itself with; everybody in this test believes it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), system_clock()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    names = x509.SubjectAlternativeName([x509.DNSName(HOST), x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, both = tmp_path / "public.pem", tmp_path / "both.pem"
    public.write_bytes(made.public_bytes(Encoding.PEM))
    both.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + public.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context


def model_of(url: str, *, proxy: str = "") -> LlmSettings:
    key = Secret("key-of-the-test")
    return LlmSettings(provider="openai", model="m", api_key=key, base_url=url, proxy=Secret(proxy))


async def _said(settings: LlmSettings, *, env: Mapping[str, str], times: int = 1) -> ModelReply:
    model = open_model(settings, clock=lambda: NOW, env=env)
    try:
        for _ in range(times - 1):
            await ask(model, HELLO, deadline_s=5)
        return await ask(model, HELLO, deadline_s=5)
    finally:
        await model.close()


def test_a_proxy_sees_where_a_request_goes_and_nothing_of_it(tls: ssl.SSLContext) -> None:
    async def story() -> tuple[ModelReply, Middle, Provider]:
        async with provider(SAID, tls=tls) as state, middle(state.port) as way:
            env = {"HTTPS_PROXY": way.url}
            reply = await _said(model_of(f"https://{HOST}:{state.port}/v1"), env=env, times=3)
            return reply, way, state

    reply, way, state = asyncio.run(story())
    assert reply.text == "Hello."
    assert len(state.bodies) == 3
    (head,) = way.heads
    assert head.splitlines()[0] == f"CONNECT {HOST}:{state.port} HTTP/1.1"
    assert f"Proxy-Authorization: {PROOF}" in head
    assert b"key-of-the-test" not in way.seen
    assert len(way.seen) > 500
    assert all("proxy-authorization" not in head for head in state.heads)


def test_a_proxy_that_is_itself_spoken_to_by_tls_carries_it_too(tls: ssl.SSLContext) -> None:
    async def story() -> ModelReply:
        async with provider(SAID, tls=tls) as state, middle(state.port, tls=tls) as way:
            wish = f"https://127.0.0.1:{way.port}"
            return await _said(model_of(f"https://{HOST}:{state.port}/v1", proxy=wish), env={})

    assert asyncio.run(story()).text == "Hello."


def test_what_goes_out_in_the_clear_names_the_whole_address(tls: ssl.SSLContext) -> None:
    async def story() -> tuple[Middle, Provider]:
        async with provider(SAID) as state, middle(state.port) as way:
            url = f"http://{HOST}:{state.port}/v1"
            await _said(model_of(url), env={"http_proxy": way.url, "HTTPS_PROXY": "http://127.0.0.1:9"})
            return way, state

    way, state = asyncio.run(story())
    assert way.heads[0].startswith(f"POST http://{HOST}:{state.port}/v1/chat/completions HTTP/1.1\r\n")
    assert state.heads[0]["proxy-authorization"] == PROOF


@pytest.mark.parametrize(
    ("answer", "fault", "words"),
    [
        ("407 Proxy Authentication Required", ModelFault.AUTH, "HTTP 407"),
        ("403 Forbidden", ModelFault.AUTH, "HTTP 403"),
        ("502 Bad Gateway", ModelFault.UNREACHABLE, "HTTP 502"),
        ("nonsense", ModelFault.UNREACHABLE, "HTTP 0"),
    ],
)
def test_a_proxy_that_refuses_is_told_from_a_provider_that_does(
    tls: ssl.SSLContext, answer: str, fault: ModelFault, words: str
) -> None:
    async def story() -> None:
        async with middle(9, answer=answer) as way:
            await _said(model_of(f"https://{HOST}:443/v1"), env={"HTTPS_PROXY": way.url})

    with pytest.raises(ModelError, match=words) as told:
        asyncio.run(story())
    assert told.value.fault is fault
    assert "p ss" not in f"{told.value}{told.value.hint}"


def test_a_proxy_in_the_clear_that_wants_proof_is_told_from_a_provider(tls: ssl.SSLContext) -> None:
    async def story() -> None:
        async with middle(9, answer="407 Proxy Authentication Required") as way:
            await _said(model_of(f"http://{HOST}:80/v1"), env={"HTTP_PROXY": way.url})

    with pytest.raises(ModelError, match=r"the proxy .* refuses us") as told:
        asyncio.run(story())
    assert told.value.fault is ModelFault.AUTH


def test_a_server_behind_a_proxy_has_to_prove_who_it_is(tls: ssl.SSLContext) -> None:
    async def story() -> None:
        async with provider(SAID, tls=tls) as state, middle(state.port) as way:
            await _said(model_of(f"https://other.test:{state.port}/v1"), env={"ALL_PROXY": way.url})

    with pytest.raises(ModelError, match="no trusted connection"):
        asyncio.run(story())


def test_this_machine_is_never_reached_by_a_proxy_and_settings_can_say_none() -> None:
    async def story() -> None:
        async with provider(SAID) as state:
            env = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
            await _said(model_of(state.url), env=env)
            assert len(state.bodies) == 1

    asyncio.run(story())
    env = {"HTTPS_PROXY": "http://proxy:3128"}
    assert proxy_for("https://api.openai.com/v1", env=env, wish="none") is None
    assert proxy_for("https://[::1]:8/v1", env=env, wish="http://other:1") is None
    found = proxy_for("https://api.openai.com/v1", env={**env, "NO_PROXY": "*"}, wish="http://other:1")
    assert found is not None
    assert found.named == "other:1"


@pytest.mark.parametrize(
    ("url", "said", "is_excepted"),
    [
        ("https://api.example.com/v1", "example.com", True),
        ("https://example.com/v1", ".example.com", True),
        ("https://api.example.com/v1", "*.example.com", True),
        ("https://notexample.com/v1", "example.com", False),
        ("https://API.Example.com./v1", "api.EXAMPLE.com", True),
        ("https://api.example.com:8443/v1", "example.com:8443", True),
        ("https://api.example.com:8443/v1", "example.com:443", False),
        ("https://api.example.com/v1", " other.com , example.com:443", True),
        ("https://10.1.2.3/v1", "10.0.0.0/8", True),
        ("https://10.1.2.3/v1", "10.1.2.3", True),
        ("https://11.1.2.3/v1", "10.0.0.0/8,1.2.3", False),
        ("https://[fd00::7]/v1", "fd00::/8", True),
        ("https://[fd00::7]:444/v1", "[fd00::7]:444", True),
        ("https://api.example.com/v1", "*", True),
        ("https://api.example.com/v1", ",,", False),
    ],
)
def test_what_is_excepted_is_reached_directly(url: str, said: str, *, is_excepted: bool) -> None:
    env = {"https_proxy": "proxy:3128", "HTTPS_PROXY": "http://wrong:1", "no_proxy": said}
    found = proxy_for(url, env=env)
    assert (found is None) == is_excepted
    assert found is None or found.named == "proxy:3128"


@pytest.mark.parametrize(
    "text", ["socks5://proxy:1080", "http://:3128", "http://proxy:x", "http://a:s3cret@proxy/path"]
)
def test_a_proxy_that_is_none_is_a_mistake_whose_message_holds_no_password(text: str) -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as told:
        proxy_for("https://api.openai.com/v1", env={"HTTPS_PROXY": text})
    assert "s3cret" not in str(told.value)


def test_lists_vectors_and_a_local_server_go_the_same_way(tls: ssl.SSLContext) -> None:
    vectors = plain(200, {"data": [{"embedding": [1.0], "index": 0}]})
    lines = ndjson({"message": {"content": "Hi."}, "done": False}, {"done": True, "done_reason": "stop"})

    async def story() -> list[Middle]:
        ways: list[Middle] = []
        async with provider(plain(200, {"data": [{"id": "m"}]}), tls=tls) as state, middle(state.port) as way:
            url, env = f"https://{HOST}:{state.port}/v1", {"HTTPS_PROXY": way.url}
            assert await list_models(model_of(url), clock=lambda: NOW, env=env) == ("m",)
            ways.append(way)
        async with provider(vectors, tls=tls) as state, middle(state.port) as way:
            told = EmbeddingSettings(
                provider="openai", model="e", api_key=Secret("key-of-the-test"), base_url=f"https://{HOST}:{state.port}"
            )
            embed = open_embedder(told, clock=lambda: NOW, env={"HTTPS_PROXY": way.url})
            assert await embed(["x"]) == [[1.0]]
            await embed.close()
            ways.append(way)
        async with provider(lines, tls=tls) as state, middle(state.port) as way:
            local = LlmSettings(provider="ollama", model="m", base_url=f"https://{HOST}:{state.port}")
            assert (await _said(local, env={"HTTPS_PROXY": way.url})).text == "Hi."
            ways.append(way)
        return ways

    assert [len(way.heads) for way in asyncio.run(story())] == [1, 1, 1]


_CLAUDE = claude(claude_begins(), *claude_text(0, "Hello."), *claude_ends())
_GEMINI = gemini(gemini_chunk({"text": "Hello."}, reason="STOP", promptTokenCount=1, candidatesTokenCount=1))
_BEDROCK = bedrock(
    ("messageStart", {"role": "assistant"}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hello."}}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    ("messageStop", {"stopReason": "end_turn"}),
    ("metadata", {"usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}, "metrics": {"latencyMs": 1}}),
)


@pytest.mark.parametrize(("name", "answer"), [("anthropic", _CLAUDE), ("gemini", _GEMINI), ("bedrock", _BEDROCK)])
@pytest.mark.parametrize("by", ["environment", "settings"])
def test_models_of_the_sdks_go_the_same_way(
    tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    name: Literal["anthropic", "gemini", "bedrock"],
    answer: Answer,
    by: str,
) -> None:
    package = {"anthropic": "anthropic", "gemini": "google.genai", "bedrock": "boto3"}[name]
    try:
        is_there = all(importlib.util.find_spec(each) for each in ("pydantic_ai", package))
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        pytest.skip(f"left out: needs the extra `{name}` (pip install 'quell[{name}]')")
    # botocore brings authorities of its own and is told of another by this; what else the process has is not asked.
    monkeypatch.setenv("AWS_CA_BUNDLE", ssl.get_default_verify_paths().cafile or "")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    async def story() -> tuple[ModelReply, Middle]:
        async with provider(answer, tls=tls) as state, middle(state.port) as way:
            settings = LlmSettings(
                provider=name,
                model="anthropic.claude-sonnet-4-5-20250929-v1:0" if name == "bedrock" else "m",
                api_key=Secret("key-of-the-test"),
                region="eu-central-1",
                base_url=f"https://{HOST}:{state.port}",
                proxy=Secret(way.url if by == "settings" else ""),
            )
            keys = {"AWS_ACCESS_KEY_ID": "AKIDOFTHETEST", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}
            return await _said(settings, env={**keys, **({"HTTPS_PROXY": way.url} if by == "environment" else {})}), way

    reply, way = asyncio.run(story())
    assert reply.text == "Hello."
    assert way.heads[0].startswith(f"CONNECT {HOST}:")
    assert PROOF in way.heads[0]
