"""One service of the shop: what the code of a release builds upon."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field

from opentelemetry import context as otel_context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quell_lab._clock import epoch_s
from quell_lab._http import CallError, Peer
from quell_lab._plan import CERTIFICATE_NAME
from quell_lab._watched import Document, WatchedFile
from quell_lab.kit import _tokens
from quell_lab.kit._database import Database
from quell_lab.kit._errors import RefusedError, ShopError, UnavailableError
from quell_lab.kit._figures import Figures
from quell_lab.kit._pool import Pool
from quell_lab.kit._spec import ProcessSpec
from quell_lab.kit._spool import Spool
from quell_lab.kit._strain import Strain
from quell_lab.kit._telemetry import PROPAGATOR, Signals

TOKEN_HEADER = "x-shop-token"  # noqa: S105 - the name of a header
FORWARDED = ("traceparent", TOKEN_HEADER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as a handler sees it."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Document
    token: str


Reply = Mapping[str, object]
Endpoint = Callable[[Call], Awaitable[Reply]]
Background = Callable[[], Coroutine[None, None, None]]


@dataclass(slots=True)
class _Bucket:
    """Admits at most so many requests a second."""

    level: float = 0.0
    filled_s: float = field(default_factory=time.monotonic)

    def admits(self, rate: float) -> bool:
        now_s = time.monotonic()
        self.level = min(rate, self.level + (now_s - self.filled_s) * rate)
        self.filled_s = now_s
        if self.level < 1:
            return False
        self.level -= 1
        return True


class Service:
    """What the platform offers to the code of a release: routes, database, calls, flags, settings, logs."""

    def __init__(self, spec: ProcessSpec, signals: Signals) -> None:
        self.spec = spec
        self.signals = signals
        self.report = signals.report
        self.spool = Spool(spec.spool, limit_kb=spec.spool_limit_kb)
        self.rules: dict[str, int] = {}
        self.background: list[Background] = []
        self.random = random.Random(spec.instance)
        self._routes: list[Route] = []
        self._flags_used: set[str] = set()
        self._bucket = _Bucket()
        self._soon: set[asyncio.Future[None]] = set()
        self._strain = Strain()
        self._flags = WatchedFile(spec.flags, on_change=self._flags_changed)
        self._settings = WatchedFile(spec.settings, on_change=self._settings_changed)
        self._conditions = WatchedFile(spec.conditions, on_change=self._conditions_changed)
        self._figures = Figures(spec, signals=signals, spool=self.spool, clock_offset=self._clock_offset_s)
        self.database = self._open_database()
        self._peers = self._open_peers()
        self._strain.follow(self._conditions.content)

    # -- what a release uses ------------------------------------------------------------------------------------

    def route(self, method: str, path: str) -> Callable[[Endpoint], Endpoint]:
        """Serve a route with the decorated handler."""

        def register(endpoint: Endpoint) -> Endpoint:
            name = f"{method} {path}"

            async def answer(request: Request) -> Response:
                return await self._answer(request, name, path, endpoint)

            self._routes.append(Route(path, answer, methods=[method]))
            return endpoint

        return register

    def flag(self, key: str) -> bool:
        """Tell whether a feature flag is on."""
        self._flags_used.add(key)
        return self._flags.content.get(key) == "on"

    def setting(self, key: str, default: float) -> float:
        """Return a number from the settings of this service."""
        values = self._settings.content.get("values", {})
        assert isinstance(values, dict)
        return float(values.get(key, default))

    def condition(self, key: str) -> float:
        """Return a figure of the machine that this process runs on; 0 when there is nothing to say."""
        return float(str(self._conditions.content.get(key, 0)))

    def clock_s(self) -> float:
        """Return the time as this machine's clock shows it."""
        return epoch_s() + self._clock_offset_s()

    async def rows(self, summary: str, sql: str, *parameters: object) -> list[dict[str, object]]:
        """Run one SQL statement."""
        assert self.database is not None, "this service has no database"
        return await self.database.rows(summary, sql, parameters)

    async def call(self, callee: str, method: str, path: str, *, token: str, body: Reply | None = None) -> Document:
        """Call another service and return what it answered."""
        peer = self._peers[callee]
        timeout_s = self.setting(f"{callee}_timeout_s", 2.5)
        with self.signals.tracer.start_as_current_span(
            method,
            kind=SpanKind.CLIENT,
            attributes={
                "http.request.method": method,
                "url.path": path,
                "peer.service": callee,
                "server.address": peer.address[0],
                "server.port": peer.address[1],
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            headers: dict[str, str] = {TOKEN_HEADER: token}
            PROPAGATOR.inject(headers)
            raw = json.dumps(body).encode() if body is not None else b""
            try:
                status, answer = await peer.request(method, path, body=raw, headers=headers, timeout_s=timeout_s)
            except CallError as error:
                _mark_failed(span, error.kind, str(error))
                status = 504 if error.kind == "timeout" else 503
                raise UnavailableError(
                    f"{callee} cannot be reached: {error}", kind=error.kind, status=status
                ) from error
            span.set_attribute("http.response.status_code", status)
            if status < 400:
                return _parsed(answer)
            _mark_failed(span, str(status), "")
            raise _refusal(callee, status)

    def issue_token(self, subject: str) -> str:
        """Sign a token for a call of a user."""
        return _tokens.issue(subject, secret=self.spec.token_secret, now_s=self.clock_s())

    def append_journal(self, record: str) -> None:
        """Write a record to the journal of this service."""
        try:
            self.spool.append(record)
        except OSError as error:
            raise ShopError(f"cannot append to journal: [Errno {error.errno}] {error.strerror}") from error

    # -- what the process around it uses -------------------------------------------------------------------------

    def asgi(self) -> Starlette:
        """Return the application of all routes, with /health and /metrics."""

        async def health(_request: Request) -> Response:
            return Response(b"ok", media_type="text/plain")

        async def metrics(_request: Request) -> Response:
            return Response(generate_latest(self._figures.registry), media_type="text/plain; version=0.0.4")

        return Starlette(routes=[*self._routes, Route("/health", health), Route("/metrics", metrics)])

    async def load_rules(self) -> None:
        """Read the business rules of this service; a rule that cannot be parsed is fatal."""
        if self.database is None:
            return
        found = await self.rows("SELECT rules", "SELECT name, value FROM rules WHERE service = %s", self.spec.service)
        self.rules = {str(row["name"]): int(str(row["value"])) for row in found}

    def tick(self) -> None:
        """Look at the watched files and at the conditions of the machine."""
        for file in (self._flags, self._settings, self._conditions):
            file.refresh()
        self._strain.step(self._conditions.content)
        if self.random.random() < self.condition("late_refresh_share"):
            entries, late_ms = self.random.randrange(100, 900), self.random.randrange(3, 40)
            self.report.warn(f"price cache with {entries} entries refreshed {late_ms} ms later than planned")
        grow_mb = self.condition("spool_mb_per_tick")
        if grow_mb:
            self.spool.grow(int(grow_mb * 1_048_576))
        else:
            self.spool.rotate()

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, name: str, path: str, endpoint: Endpoint) -> Response:
        began_s = time.perf_counter()
        headers = {key: request.headers[key] for key in FORWARDED if key in request.headers}
        parent = PROPAGATOR.extract(headers)
        span = self.signals.tracer.start_span(
            name,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": request.method, "http.route": path, "url.path": request.url.path},
        )
        scope = otel_context.attach(set_span_in_context(span, parent))
        self._figures.active += 1
        status = 500
        try:
            status, body = await self._outcome(request, name, endpoint, span, headers.get(TOKEN_HEADER, ""))
            return Response(json.dumps(body), status_code=status, media_type="application/json")
        finally:
            self._figures.active -= 1
            span.set_attribute("http.response.status_code", status)
            span.end()
            otel_context.detach(scope)
            self._figures.requests.labels(self.spec.service, path, str(status)).inc()
            self._figures.seconds.labels(self.spec.service, path).observe(time.perf_counter() - began_s)

    async def _outcome(
        self,
        request: Request,
        name: str,
        endpoint: Endpoint,
        span: Span,
        token: str,
    ) -> tuple[int, Reply]:
        try:
            self._admit(token)
            raw = await request.body()
            call = Call(path=request.path_params, query=request.query_params, body=_parsed(raw), token=token)
            return 200, await endpoint(call)
        except ShopError as error:
            if error.status >= 500:
                _mark_failed(span, error.kind, str(error))
                span.record_exception(error)
                self.report.error(f"{name} failed: {error}", cause=error.__cause__ or error)
            elif error.kind != "refused":
                self.report.warn(f"{name} rejected: {error}")
            return error.status, {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - the last line of defence of a server
            _mark_failed(span, type(error).__name__, str(error))
            span.record_exception(error)
            self.report.error(f"unhandled exception in {name}: {type(error).__name__}: {error}", cause=error)
            return 500, {"error": "internal error"}

    def _admit(self, token: str) -> None:
        capacity_per_s = self.setting("capacity_per_s", 0)
        if capacity_per_s and not self._bucket.admits(capacity_per_s):
            message = f"over capacity: more than {capacity_per_s:g} requests a second"
            raise UnavailableError(message, kind="over_capacity")
        if self.spec.service == "gateway":
            return
        reason = _tokens.rejection(token, secret=self.spec.token_secret, now_s=self.clock_s())
        if reason:
            self.report.warn(f"token rejected: {reason}")
            raise UnavailableError(f"token rejected: {reason}", kind="token", status=401)

    def _open_database(self) -> Database | None:
        if not self.spec.conninfo:
            return None
        wait = self.signals.meter.create_histogram("db.client.connection.wait_time", unit="s")
        pool = Pool(
            self.spec.conninfo,
            size=self.spec.pool_size,
            observe_wait=lambda waited_s: wait.record(waited_s, {"db.client.connection.pool.name": "postgres"}),
        )
        self._figures.watch_pool(pool)
        return Database(
            pool,
            tracer=self.signals.tracer,
            address=self.spec.database_address,
            keeps_connection=lambda: self.random.random() < self.condition("connection_leak_share"),
        )

    def _open_peers(self) -> dict[str, Peer]:
        tls = ssl.create_default_context(cafile=self.spec.authority)
        return {
            name: Peer(
                address=(peer.host, peer.port),
                tls=tls if peer.tls else None,
                server_name=CERTIFICATE_NAME,
            )
            for name, peer in self.spec.peers.items()
        }

    def _clock_offset_s(self) -> float:
        return self.condition("clock_offset_s")

    def _flags_changed(self, before: Document, after: Document) -> None:
        for key in sorted(self._flags_used):
            old, new = str(before.get(key, "off")), str(after.get(key, "off"))
            if old != new:
                self.report.event(
                    "feature_flag.changed",
                    f"feature flag {key} is now {new}",
                    {
                        "feature_flag.key": key,
                        "feature_flag.result.variant": new,
                        "feature_flag.result.variant.previous": old,
                        "service.name": self.spec.service,
                    },
                )

    def _settings_changed(self, before: Document, after: Document) -> None:
        old, new = before.get("values", {}), after.get("values", {})
        assert isinstance(old, dict)
        assert isinstance(new, dict)
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        for key in changed:
            self.report.event(
                "config.changed",
                f"setting {key} is now {new.get(key)}",
                {
                    "service.name": self.spec.service,
                    "config.key": key,
                    "config.value": str(new.get(key, "")),
                    "config.value.previous": str(old.get(key, "")),
                },
            )
        self.report.info(f"configuration reloaded, {len(changed)} settings changed")

    def _conditions_changed(self, _before: Document, after: Document) -> None:
        self._strain.follow(after)
        if self.database is not None and "connection_leak_share" not in after:
            self._soon_run(self.database.pool.recover())

    def _soon_run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._soon.add(task)
        task.add_done_callback(self._soon.discard)


def _mark_failed(span: Span, kind: str, message: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, message))


def _parsed(raw: bytes) -> Document:
    if not raw:
        return {}
    parsed: Document = json.loads(raw)
    return parsed


def _refusal(callee: str, status: int) -> ShopError:
    if status in {404, 409, 422}:
        return RefusedError(f"{callee} answered {status}", status=status)
    answer = 503 if status == 503 else 502
    return UnavailableError(f"{callee} answered {status}", kind=str(status), status=answer)
