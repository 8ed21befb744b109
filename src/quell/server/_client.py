"""The other side of our own wire: what the command line speaks to a `quell serve`, or to anybody's OpenAI endpoint."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar
from urllib.parse import quote

import httpx2

from quell.domain import OverloadError, QuellError, RefusalCode, RefusedError, RunTrace, UsageError, WorldError

T = TypeVar("T")
_CONNECT_S = 5.0
_ANSWER_S = 30.0
_SILENCE_S = 120.0
"""Servers send a heartbeat far more often than that."""
_LINE_BYTES_MAX = 16_000_000
_ANSWER_BYTES_MAX = 32_000_000
_ERROR_BYTES_MAX = 64_000
_REFUSALS: Mapping[int, RefusalCode] = {401: "unauthenticated", 403: "forbidden", 409: "mismatch", 410: "gone"}
_BUSY = frozenset({"OverloadError", "StateHeldError"})
"""Kinds of a 503 that another try may cure; errors of OpenAI's form have no kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One server-sent event."""

    name: str
    """Empty for a plain one."""
    body: str
    id: str = ""


@dataclass(slots=True)
class Stream:
    """A stream of events that a server has begun."""

    headers: Mapping[str, str]
    frames: AsyncGenerator[Frame, None] = field(repr=False)


class ServerClient:
    """Requests to one server. Every refusal becomes an error that says what to do."""

    def __init__(self, url: str, *, key: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Take an address such as `http://127.0.0.1:4320`, with or without `/v1`. Raises UsageError for what is none."""
        bare = url.rstrip("/").removesuffix("/v1")
        try:
            parsed = httpx2.URL(bare)
        except httpx2.InvalidURL as error:
            raise UsageError(f"{url!r} is no address: {error}", hint="such as http://127.0.0.1:4320") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise UsageError(f"{url!r} is no address", hint="such as http://127.0.0.1:4320")
        self.url = bare
        told = {**(headers or {}), **({"Authorization": f"Bearer {key}"} if key else {})}
        bounds = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, read=_SILENCE_S)
        # Certificates take a tenth of a second to load; in the clear nobody asks for them, and nothing is trusted.
        trusts = True if parsed.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._http = httpx2.AsyncClient(
            headers=told, timeout=bounds, trust_env=False, follow_redirects=False, verify=trusts
        )

    async def __aenter__(self) -> Self:
        """Use it, and close it after that."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = _ANSWER_S,
    ) -> Mapping[str, object]:
        """Return the JSON object that the server answers. Raises WorldError, RefusedError, UsageError or OverloadError."""
        try:
            response = await self._http.request(
                method,
                f"{self.url}{path}",
                params=dict(query) if query else None,
                json=body,
                headers=dict(headers or {}),
                timeout=timeout_s,
            )
        except (httpx2.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise _refusal(response.status_code, response.content[:_ERROR_BYTES_MAX], response.headers, url=self.url)
        if len(response.content) > _ANSWER_BYTES_MAX:
            raise WorldError(f"{self.url} answers at too great length", hint="narrow the question")
        return _object(response.content, url=self.url)

    async def trace(self, run: str) -> RunTrace:
        """Return a run as a tree. Raises as `ask` does, and WorldError for a server that tells something else."""
        return self.read(await self.ask("GET", self.path("runs", run, "trace")), RunTrace)

    @staticmethod
    def path(*parts: str) -> str:
        """Return the path of something of our API; whatever stands in a part, it stays one."""
        return "/".join(("/api/v1", *(quote(part, safe="") for part in parts)))

    def read(self, told: object, kind: type[T]) -> T:
        """Read an answer, or a part of one, as what it must be. Raises WorldError when it is something else."""
        # Only who wants more than JSON waits for it to load.
        import msgspec  # noqa: PLC0415

        try:
            return msgspec.convert(told, type=kind)
        except msgspec.ValidationError as error:
            name = getattr(kind, "__name__", str(kind))
            raise WorldError(
                f"{self.url} tells no {name}: {error}", hint="is it a `quell serve` like this one?"
            ) from error

    async def stream(
        self, method: str, path: str, *, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Stream:
        """Begin a stream of events; close its frames when done. Raises as `ask` does."""
        request = self._http.build_request(method, f"{self.url}{path}", json=body, headers=dict(headers or {}))
        try:
            response = await self._http.send(request, stream=True)
        except (httpx2.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            told = await _head(response)
            await response.aclose()
            raise _refusal(response.status_code, told, response.headers, url=self.url)
        return Stream(headers=response.headers, frames=self._frames(response))

    async def _frames(self, response: httpx2.Response) -> AsyncGenerator[Frame, None]:
        name, identifier, lines, size_bytes = "", "", list[str](), 0
        try:
            async for line in response.aiter_lines():
                if not line:
                    if lines:
                        yield Frame(name=name, body="\n".join(lines), id=identifier)
                    name, identifier, lines, size_bytes = "", "", [], 0
                    continue
                key, _, value = line.partition(":")
                value = value.removeprefix(" ")
                size_bytes += len(line)
                if size_bytes > _LINE_BYTES_MAX:
                    raise WorldError(f"{self.url} sends an event without an end", hint="is it a `quell serve`?")
                if key == "data":
                    lines.append(value)
                elif key == "event":
                    name = value
                elif key == "id":
                    identifier = value
        except (httpx2.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()

    def _unreachable(self, error: Exception) -> WorldError:
        what = "did not answer in time" if isinstance(error, httpx2.TimeoutException) else "cannot be reached"
        return WorldError(f"{self.url} {what}: {type(error).__name__}", hint="is `quell serve` running there?")


async def _head(response: httpx2.Response) -> bytes:
    told = bytearray()
    async for piece in response.aiter_bytes():
        told += piece
        if len(told) > _ERROR_BYTES_MAX:
            break
    return bytes(told)


def refusal_of(told: Mapping[str, object], *, status: int, retry_after_s: float = 1.0, url: str = "") -> QuellError:
    """Return the error that an error object of OpenAI's or of our own API stands for."""
    inner = told.get("error")
    error: Mapping[str, object] = inner if isinstance(inner, dict) else {}
    message = str(error.get("message") or f"{url} answered {status}")
    hint = str(error.get("hint") or "")
    if (code := _REFUSALS.get(status)) is not None:
        cure = "set QUELL_API_KEY to a key of that server" if status == 401 else ""
        return RefusedError(message, hint=hint or cure, code=code)
    if status == 503 and error.get("kind", "OverloadError") not in _BUSY:
        return WorldError(message, hint=hint)  # it does answer: what it asked itself did not
    if status in {429, 503}:
        return OverloadError(message, retry_after_s=retry_after_s, hint=hint or f"try again in {retry_after_s:g} s")
    if 400 <= status < 500:
        return UsageError(message, hint=hint)
    return WorldError(message, hint=hint)


def _refusal(status: int, body: bytes, headers: Mapping[str, str], *, url: str) -> QuellError:
    try:
        told = _object(body, url=url)
    except WorldError:
        told = {}
    try:
        retry_after_s = float(headers.get("retry-after", "1"))
    except ValueError:
        retry_after_s = 1.0
    return refusal_of(told, status=status, retry_after_s=retry_after_s, url=url)


def _object(body: bytes, *, url: str) -> Mapping[str, object]:
    try:
        told = json.loads(body)
    except ValueError as error:
        raise WorldError(f"{url} answers something that is no JSON", hint="is it a `quell serve`?") from error
    if not isinstance(told, dict):
        raise WorldError(f"{url} answers JSON that is no object", hint="is it a `quell serve`?")
    return told
