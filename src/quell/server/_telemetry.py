"""Telemetry comes in: OTLP over HTTP, and changes of production."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quell import telemetry
from quell.app import App
from quell.domain import ChangeKind, ObservedChange, OverloadError, QuellError
from quell.server._body import Bodies
from quell.server._errors import RETRY_AFTER_S, Form, WireError, json_response, otlp_error_response, wire_error_of
from quell.signals import Receiver

Signal = Literal["logs", "traces", "metrics"]

_FORMS: dict[str, Form] = {
    "application/x-protobuf": "protobuf",
    "application/protobuf": "protobuf",
    "application/json": "json",
}
_MEDIA: dict[Form, str] = {"json": "application/json", "protobuf": "application/x-protobuf"}
_ENCODINGS = {"", "identity", "gzip"}
_TEXT_MAX = 200
_OLDEST_YEAR, _NEWEST_YEAR = 1970, 2200


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChangeWire:
    """What POST /api/v1/changes takes."""

    change: ChangeKind
    subject: str
    service: str = ""
    before: str = ""
    after: str = ""
    detail: str = ""
    at: datetime | None = None


class Intake:
    """Handles the requests that bring telemetry, so many at once and no more."""

    def __init__(self, app: App, *, bodies: Bodies) -> None:
        self._app = app
        self._bodies = bodies
        self._in_flight = 0

    def endpoint(self, signal: Signal) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of one signal."""

        async def receive(request: Request) -> Response:
            return await self._receive(request, signal)

        return receive

    async def _receive(self, request: Request, signal: Signal) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        form = _FORMS.get(content_type, "protobuf")
        settings = self._app.settings.server
        if self._in_flight >= settings.in_flight_max:
            telemetry.event("receiver.overloaded", signal=signal, retry_after_s=1)
            busy = OverloadError("too many requests at once", retry_after_s=1, hint="send fewer, larger batches")
            return otlp_error_response(wire_error_of(busy), form=form)
        self._in_flight += 1
        try:
            encoding = _encoding(request, content_type)
            body = await self._bodies.read(request, body_max_mb=settings.body_max_mb)
            receiver = self._receiver()
            receipt = await receiver.receive(signal, body, content_type=content_type, content_encoding=encoding)
            return Response(receipt.response_body, media_type=_MEDIA[form])
        except WireError as error:
            return otlp_error_response(error, form=form)
        except QuellError as error:
            return otlp_error_response(wire_error_of(error), form=form)
        finally:
            self._in_flight -= 1

    async def change(self, request: Request) -> Response:
        """Record one change of production, or several."""
        body = await self._bodies.read(request, body_max_mb=self._app.settings.server.body_max_mb)
        receiver = self._receiver()
        try:
            raw = msgspec.json.decode(body)
            wires = msgspec.convert(raw if isinstance(raw, list) else [raw], type=list[_ChangeWire])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            hint = "send {change, subject, service, before, after, detail, at}; see docs/reference/http.md"
            raise WireError(400, "UsageError", f"not a change: {error}", hint=hint) from error
        changes = [self._observed(wire) for wire in wires]
        for change in changes:
            await receiver.record_change(change)
        return json_response({"kind": "changes", "ok": True, "recorded": len(changes)}, status=202)

    def _receiver(self) -> Receiver:
        receiver = self._app.receiver
        if receiver is None:
            raise WireError(503, "StoreError", "the telemetry store is not open yet", retry_after_s=RETRY_AFTER_S)
        return receiver

    def _observed(self, wire: _ChangeWire) -> ObservedChange:
        """Return the change. Raises WireError 400 for one that says nothing, or a time that the store cannot hold."""
        if not wire.subject.strip():
            hint = "name what was changed: a flag key, a config key, `service.version`"
            raise WireError(400, "UsageError", "`subject` is empty", hint=hint)
        at = wire.at or self._app.clock()
        if at.tzinfo is None:
            raise WireError(400, "UsageError", "`at` must carry its offset", hint="such as 2026-11-20T12:00:00Z")
        if not _OLDEST_YEAR < at.year < _NEWEST_YEAR:
            raise WireError(400, "UsageError", f"`at` is in the year {at.year}", hint="leave it out for now")
        return ObservedChange(
            at=at.astimezone(UTC),
            change=wire.change,
            service=wire.service[:_TEXT_MAX],
            subject=wire.subject[:_TEXT_MAX],
            before=wire.before[:_TEXT_MAX],
            after=wire.after[:_TEXT_MAX],
            detail=wire.detail[:_TEXT_MAX],
        )


def _encoding(request: Request, content_type: str) -> str:
    """Return the content encoding. Raises WireError 415 for a type or an encoding that nobody reads."""
    if content_type not in _FORMS:
        hint = "send application/x-protobuf or application/json"
        raise WireError(415, "UsageError", f"content type {content_type or 'none'!r} is not known", hint=hint)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise WireError(415, "UsageError", f"content encoding {encoding!r} is not known", hint="send gzip, or none")
    return "" if encoding == "identity" else encoding
