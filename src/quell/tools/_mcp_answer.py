"""Judge what a server answered, by its structure alone: its words may say anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import mcp_types as types
from pydantic import ValidationError

from quell.domain import Ask, NeedsPeople, OutcomeKind, ServerAnswer
from quell.tools._canonical import canonical
from quell.tools._exchange import Exchange
from quell.tools._mcp_schema import OutputSchema

ASK_MAX_BYTES = 64_000
"""A question is shown to people whole, so a longer one is not shown at all."""
ASKS_MAX = 16
_ENVELOPE = frozenset({"error", "errors", "message", "code", "status", "detail", "success", "ok", "timestamp", "path"})
"""What the body of a failed request holds and an answer does not hold alone."""
_NOTHING: tuple[object, ...] = (None, "", [], {})

Json: TypeAlias = Any
"""Whatever JSON can hold: looked at, never believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What an answer must be to be believed."""

    output: OutputSchema | None
    """None when the tool declares none."""
    answers: Literal["anything", "json"] = "anything"
    as_of: str = ""
    fresh_for_s: float | None = None
    now: Callable[[], datetime]
    result_max_bytes: int


def judge_result(raw: Mapping[str, Json], *, expected: Expectation) -> ServerAnswer:
    """Judge a result of `tools/call` as it came over the wire; blocks for as long as its schema takes."""
    structured = raw.get("structuredContent")
    value, content, is_json = _content(structured, raw.get("content"))
    encoded = content.encode("utf-8", "replace")
    digest, size = hashlib.sha256(encoded).hexdigest(), len(encoded)

    def answer(
        kind: OutcomeKind, detail: str = "", *, shown: str = content, as_of: datetime | None = None
    ) -> ServerAnswer:
        whole = is_json and shown is content
        return ServerAnswer(
            kind=kind, content=shown, is_json=whole, detail=detail, digest=digest, size_bytes=size, as_of=as_of
        )

    if size > expected.result_max_bytes:
        head = encoded[: expected.result_max_bytes].decode("utf-8", "ignore")
        limit = f"the answer has {size} bytes, more than {expected.result_max_bytes}; ask for less"
        return answer(OutcomeKind.TRUNCATED, limit, shown=head)
    if raw.get("isError") is True and not _form_doubt(raw):
        return answer(OutcomeKind.TOOL_ERROR, "the tool says that it failed")
    if doubt := _form_doubt(raw) or _doubt(value, structured, is_json=is_json, size_bytes=size, expected=expected):
        return answer(OutcomeKind.SUSPICIOUS, doubt)
    if _is_empty(value, content):
        return answer(OutcomeKind.EMPTY, "the tool answered nothing")
    as_of = _time_at(value, expected.as_of) if expected.as_of else None
    if old := _age_doubt(as_of, expected):
        return answer(OutcomeKind.STALE, old, as_of=as_of)
    return answer(OutcomeKind.OK, as_of=as_of)


def judge_refusal(code: int, message: str, exchange: Exchange) -> ServerAnswer:
    """Judge an error of the protocol, by what the wire saw; the words of the server go into the detail only."""
    said, status = message[:500], exchange.status
    kind = exchange.content_type or "no type"
    is_other = exchange.content_type not in {"application/json", "text/event-stream"}
    is_failure = status >= 500 or (status >= 400 and code == types.INTERNAL_ERROR)
    cases = (
        (exchange.fault == "overflow", OutcomeKind.TRUNCATED, f"{exchange.detail}; ask for less"),
        (
            status in {401, 403},
            OutcomeKind.TOOL_ERROR,
            f"the server refused who called (HTTP {status}); check its headers",
        ),
        (is_failure, OutcomeKind.TRANSPORT_ERROR, f"the server failed (HTTP {status}): {said}"),
        (
            status == 200 and is_other,
            OutcomeKind.SUSPICIOUS,
            f"HTTP 200 with {kind} where JSON was promised: the page of a login, or of a proxy?",
        ),
        (
            200 < status < 400,
            OutcomeKind.SUSPICIOUS,
            f"HTTP {status} is no answer: nobody knows what becomes of the call",
        ),
        (code == types.PARSE_ERROR, OutcomeKind.SUSPICIOUS, "the body is no message of the protocol"),
        (code == types.CONNECTION_CLOSED, OutcomeKind.TRANSPORT_ERROR, f"no answer came: {said}"),
        (True, OutcomeKind.TOOL_ERROR, f"the server refused the call ({code}): {said}"),
    )
    return next(ServerAnswer(kind=outcome, detail=detail) for fits, outcome, detail in cases if fits)


def needs_of(raw: Mapping[str, Json]) -> NeedsPeople | str:
    """Read an `input_required` result; a sentence when it asks for what is never given."""
    requests, state = raw.get("inputRequests") or {}, raw.get("requestState")
    if not isinstance(requests, dict) or len(requests) > ASKS_MAX:
        return f"the server asks more than {ASKS_MAX} questions at once"
    asks = []
    for key, request in requests.items():
        method = request.get("method") if isinstance(request, dict) else None
        if method != "elicitation/create":
            return f"the server asks for {method}, which is refused"
        try:
            ask = ask_of(str(key), types.ElicitRequest.model_validate(request).params)
        except ValidationError:
            return "the server's question does not have the form of the protocol"
        if isinstance(ask, str):
            return ask
        asks.append(ask)
    return NeedsPeople(asks=tuple(asks), request_state=str(state or ""))


def ask_of(key: str, params: types.ElicitRequestParams) -> Ask | str:
    """Turn one question into ours; a sentence when it cannot be shown whole."""
    url = params.url if isinstance(params, types.ElicitRequestURLParams) else ""
    schema = "" if isinstance(params, types.ElicitRequestURLParams) else canonical(params.requested_schema)
    if len(params.message) + len(schema) + len(url) > ASK_MAX_BYTES:
        return f"the server's question is longer than {ASK_MAX_BYTES} bytes"
    return Ask(key=key, message=params.message, schema=schema, url=url)


def key_of_question(params: types.ElicitRequestParams) -> str:
    """Name a question of an old server by its content, so that a reply fits only what was shown."""
    shown = params.model_dump(mode="json", exclude={"task", "elicitation_id", "meta"})
    return hashlib.sha256(canonical(shown).encode()).hexdigest()[:32]


def _form_doubt(raw: Mapping[str, Json]) -> str:
    """Return why a result is none; empty when it is one. The SDK lets some pass (mcp 2.3, 2026-07-28)."""
    blocks = raw.get("content")
    has_form = (
        isinstance(blocks, list)
        and all(isinstance(block, dict) for block in blocks)
        and isinstance(raw.get("isError", False), bool)
        and raw.get("resultType", "complete") == "complete"
    )
    return "" if has_form else "the result does not have the form of the protocol"


def _content(structured: Json, blocks: Json) -> tuple[Json, str, bool]:
    """Return the value if there is one, its text, and whether that is JSON. Structured content goes first."""
    if structured is not None:
        text = json.dumps(structured, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return structured, text, _has_json_numbers(text)
    known = [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    text = "\n".join(filter(None, map(_text_of, known)))
    if text.lstrip()[:1] in {"{", "["}:
        try:
            return json.loads(text, parse_constant=_refuse), text, True
        except (ValueError, RecursionError):
            pass
    return None, text, False


def _has_json_numbers(text: str) -> bool:
    """Tell whether what Python wrote is JSON: the SDK's parser takes NaN and infinity, and Python writes them."""
    if "NaN" not in text and "Infinity" not in text:
        return True
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


def _text_of(block: Mapping[str, Json]) -> str:
    """Return the text of one block; what is no text is described."""
    kind = block.get("type")
    if kind == "text":
        return str(block.get("text", ""))
    if kind == "resource" and isinstance(resource := block.get("resource"), dict):
        if "text" in resource:
            return str(resource["text"])
        return f"[resource {resource.get('uri')}, {len(str(resource.get('blob', '')))} characters of base64]"
    if kind == "resource_link":
        return f"[link {block.get('uri')} {block.get('name')}]"
    return f"[{kind} {block.get('mimeType')}, {len(str(block.get('data', '')))} characters of base64]"


def _doubt(value: Json, structured: Json, *, is_json: bool, size_bytes: int, expected: Expectation) -> str:
    """Return why an answer is not what was promised; empty when it is."""
    if structured is not None and not is_json:
        return "its structured content is no JSON: it holds NaN or infinity"
    if expected.output is not None:
        if structured is None:
            return "the tool promises structured output and gave none"
        if doubt := expected.output.doubt(structured, size_bytes=size_bytes):
            return doubt
    if expected.answers == "json" and not is_json:
        return "JSON was promised and something else came: a login or an error page?"
    if isinstance(value, dict) and (value.get("error") or value.get("errors")) and value.keys() <= _ENVELOPE:
        return "the tool says that all is well, and its answer is nothing but an error"
    return ""


def _is_empty(value: Json, content: str) -> bool:
    """Tell whether there is nothing in it."""
    if value is None:
        return not content.strip()
    # Lists and plain values are wrapped under this one key (MCP Python SDK, func_metadata).
    inner = value["result"] if isinstance(value, dict) and value.keys() == {"result"} else value
    return any(inner == nothing for nothing in _NOTHING)


def _age_doubt(as_of: datetime | None, expected: Expectation) -> str:
    """Return why an answer is too old; empty when it is not, or when nobody asked."""
    if expected.fresh_for_s is None:
        return ""
    if as_of is None:
        return "the answer does not say how old its data is"
    is_old = expected.now() - as_of > timedelta(seconds=expected.fresh_for_s)
    return f"its data is of {as_of.isoformat()}" if is_old else ""


def _time_at(value: Json, pointer: str) -> datetime | None:
    """Read a time, ISO 8601 or seconds since 1970, where the pointer points (RFC 6901)."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    try:
        if isinstance(value, str):
            told = datetime.fromisoformat(value)
            return told if told.tzinfo else told.replace(tzinfo=UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, tz=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None
