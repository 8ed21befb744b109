"""The HTTP API of Prometheus, as far as we ask it: typed replies, and every failure told apart."""

from __future__ import annotations

from typing import TypeVar

import httpx2
import msgspec

from quell import telemetry
from quell.config import PrometheusSettings
from quell.domain import GapReason
from quell.signals._reader import CannotAnswerError
from quell.signals._reader_text import escape_line
from quell.signals._trust import trusted

T = TypeVar("T")
_BODY_MAX_BYTES = 64 << 20
_DETAIL_CHARS = 160


class Matrix(msgspec.Struct):
    """One series of a range query."""

    metric: dict[str, str]
    values: list[tuple[float, float]]


class Vector(msgspec.Struct):
    """One series of an instant query."""

    metric: dict[str, str]
    value: tuple[float, float]


class MatrixResult(msgspec.Struct, tag_field="resultType", tag="matrix"):
    """What a range query gives."""

    result: list[Matrix]


class TextMatrix(msgspec.Struct):
    """One series of a range query in which some value is no plain number, such as `NaN` or `+Inf`."""

    metric: dict[str, str]
    values: list[tuple[float, str]]


class TextMatrixResult(msgspec.Struct, tag_field="resultType", tag="matrix"):
    """What a range query gives when some values are no plain numbers."""

    result: list[TextMatrix]


class VectorResult(msgspec.Struct, tag_field="resultType", tag="vector"):
    """What an instant query gives."""

    result: list[Vector]


class Metadata(msgspec.Struct):
    """Type and unit of a metric."""

    type: str = ""
    unit: str = ""


class _Reply(msgspec.Struct):
    status: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    error_type: str = msgspec.field(name="errorType", default="")
    error: str = ""
    warnings: list[str] = []


class Api:
    """Asks one server; raises CannotAnswerError with the right reason for whatever goes wrong."""

    def __init__(self, settings: PrometheusSettings) -> None:
        secret = settings.bearer.reveal()
        headers = {"User-Agent": "quell"} | ({"Authorization": f"Bearer {secret}"} if secret else {})
        self._url = settings.url.rstrip("/")
        self._timeout_s = settings.timeout_s
        self._http = httpx2.AsyncClient(headers=headers, trust_env=False, verify=trusted(settings.url))
        self.warnings: list[str] = []
        """What the server warned about since they were last taken."""

    async def ask(self, path: str, form: dict[str, str], *, answer: type[T], timeout_s: float) -> T:
        """Post one request and decode what it holds."""
        deadline_s = min(timeout_s, self._timeout_s)
        query = form.get("query", path)
        try:
            body = await self._body("POST" if "query" in form else "GET", path, form, timeout_s=deadline_s)
        except httpx2.TimeoutException as error:
            raise CannotAnswerError("timeout", f"no answer within {deadline_s:g} s", query=query) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise CannotAnswerError("failed", f"cannot be reached: {error!r}", query=query) from error
        except CannotAnswerError as error:
            raise CannotAnswerError(error.reason, error.detail, query=query) from error
        try:
            return msgspec.json.decode(self._unwrapped(body, query=query), type=answer, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CannotAnswerError("nonsense", f"the answer cannot be read: {error}", query=query) from error

    async def range(self, form: dict[str, str], *, timeout_s: float) -> list[Matrix]:
        """Ask for series over time."""
        raw = await self.ask("/api/v1/query_range", form, answer=msgspec.Raw, timeout_s=timeout_s)
        try:
            return msgspec.json.decode(raw, type=MatrixResult, strict=False).result
        except msgspec.ValidationError:
            return _texts(bytes(raw), query=form["query"])

    def _unwrapped(self, body: bytes, *, query: str) -> msgspec.Raw:
        reply = msgspec.json.decode(body, type=_Reply)
        if reply.status != "success":
            raise CannotAnswerError("failed", _line(reply.error_type, reply.error), query=query)
        self.warnings.extend(reply.warnings)
        return reply.data

    async def _body(self, method: str, path: str, form: dict[str, str], *, timeout_s: float) -> bytes:
        headers: dict[str, str] = {}
        telemetry.inject(headers)
        asked = {"params" if method == "GET" else "data": form, "headers": headers}
        async with self._http.stream(method, self._url + path, timeout=timeout_s, **asked) as reply:  # type: ignore[arg-type] # params or data, by method
            body = bytearray()
            async for part in reply.aiter_bytes():
                body += part
                if len(body) > _BODY_MAX_BYTES:
                    raise CannotAnswerError("partial", f"the answer is larger than {_BODY_MAX_BYTES >> 20} MiB")
        if reply.status_code != 200:
            raise CannotAnswerError(_reason_of(reply.status_code), _refusal(reply.status_code, bytes(body)))
        return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _texts(raw: bytes, *, query: str) -> list[Matrix]:
    """Decode values one by one: slower, and right where the fast way met `NaN`."""
    try:
        found = msgspec.json.decode(raw, type=TextMatrixResult)
        return [Matrix(one.metric, [(at, float(text)) for at, text in one.values]) for one in found.result]
    except (msgspec.DecodeError, ValueError) as error:
        raise CannotAnswerError("nonsense", f"the answer cannot be read: {error}", query=query) from error


def _reason_of(status: int) -> GapReason:
    if status in {401, 403}:
        return "refused"
    return "timeout" if status in {408, 504} else "unsupported" if status == 404 else "failed"


def _refusal(status: int, body: bytes) -> str:
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"HTTP {status}"
    return f"HTTP {status}: {_line(reply.error_type, reply.error)}"


def _line(kind: str, message: str) -> str:
    return escape_line(f"{kind}: {message}" if kind else message or "no reason given", chars_max=_DETAIL_CHARS)
